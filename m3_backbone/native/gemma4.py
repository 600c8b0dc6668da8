"""Gemma 4: the resolution of an image is one of five budgets of visual tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.decoding.plain import PlainDecoder
from m3_backbone.native.base import NativeBackbone
from m3_backbone.native.checkpoint import ModelFamily
from m3_backbone.views import Panel

# Values of `max_soft_tokens` that the image processor takes.
BUDGETS = (70, 140, 280, 560, 1120)


class Gemma4Backbone(NativeBackbone):
    """Backbone of a Gemma 4 checkpoint.

    A scale of n is the budget `max_soft_tokens` of the image processor. Every image, also a small one, is
    resized to the largest area of at most n tokens that keeps its aspect ratio, with sides of whole tokens of
    `pooling_kernel_size` x `pooling_kernel_size` patches. The vision transformer always runs on the patches
    of n tokens: those that the image does not fill are padding, which costs as much.

    Sliding windows, shared keys and values, per-layer inputs and bidirectional attention within an image are
    left to the model: questions are decoded by `PlainDecoder`.

    Arguments are those of `NativeBackbone`. Raises ValueError for scales that are no budgets.
    """

    families: ClassVar[Mapping[str, ModelFamily]] = {
        "gemma4": ModelFamily(
            "Gemma4ForConditionalGeneration",
            "Gemma4ImageProcessorPil",
            "<|image|>",
            image_markers=("<|image>", "<image|>"),
        )
    }
    _decoder_class = PlainDecoder

    def _default_scales(self) -> Sequence[int]:
        return BUDGETS

    def _check_scales(self, scales: Sequence[int]) -> None:
        if unknown := sorted(set(scales) - set(BUDGETS)):
            raise ValueError(
                f"scales={list(scales)}: Gemma 4 has no budget of {', '.join(map(str, unknown))} visual "
                f"tokens, choose from {', '.join(map(str, BUDGETS))}"
            )

    def grid(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(rows, columns) of visual tokens of an image of (width, height) pixels."""
        width, height = image_size
        images = self.checkpoint.image_processor
        pooling = images.pooling_kernel_size
        max_patches = check_scale(scale, self.scales) * pooling**2
        resized = get_aspect_ratio_preserving_size(height, width, images.patch_size, max_patches, pooling)
        side = images.patch_size * pooling
        return resized[0] // side, resized[1] // side

    def processor_arguments(self, image_size: tuple[int, int], scale: int) -> dict[str, Any]:
        return {"max_soft_tokens": check_scale(scale, self.scales)}

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        self.check_image(image.size)
        images = self.checkpoint.image_processor
        token_side = images.patch_size * images.pooling_kernel_size
        return self.view_resized(self.prepare_image(image, scale), self.grid(image.size, scale), token_side)

    def check_image(self, image_size: tuple[int, int]) -> None:
        longest_side = max(self.grid(image_size, self.scales[-1]))
        pooling = self.checkpoint.image_processor.pooling_kernel_size
        most = self.checkpoint.config.vision_config.position_embedding_size // pooling
        if longest_side > most:
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels is too long: it has {longest_side} "
                f"tokens a side at scale {self.scales[-1]}, and the model has positions for {most}"
            )

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        rows, columns = self.grid(image_size, scale)
        return rows * columns

    def max_prefix_tokens(self, scale: int) -> int:
        return check_scale(scale, self.scales)

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        num_patches = scale * self.checkpoint.image_processor.pooling_kernel_size**2
        return vision_flops(self.checkpoint.config, num_patches, self.num_visual_tokens(image_size, scale))

    def _decoder_flops(self, num_tokens: int) -> int:
        return prefill_flops(self.checkpoint.config, num_tokens)

    def decode_flops_per_token(self) -> int:
        return decode_flops_per_token(self.checkpoint.config)

    def preprocess(self, images: Sequence[Image.Image], scale: int) -> dict[str, Tensor]:
        """Pixels and further inputs of the vision pass for a batch of RGB images at one scale."""
        inputs = self.checkpoint.image_processor(
            images=list(images), max_soft_tokens=check_scale(scale, self.scales), return_tensors="pt"
        )
        return {name: inputs[name] for name in ("pixel_values", "image_position_ids")}

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        inputs = {
            name: value.to(self._decoder.device) for name, value in self.preprocess(images, scale).items()
        }
        output = self.model.model.get_image_features(**inputs, return_dict=True)
        return [VisualPrefix(embeds.clone()) for embeds in output.pooler_output]

    def _count_tokens(
        self, encoded: Sequence[Any], questions: Sequence[str], groups: Sequence[list[int]], scale: int
    ) -> list[int]:
        """Return the number of tokens of each group of equal questions, each with a cache of its image."""
        counts = []
        for group in groups:
            question, image = questions[group[0]], encoded[group[0]]
            num_text = len(self._suffix_ids(question)) + len(group) * self.max_new_tokens
            counts.append(self.num_visual_tokens(image.size, scale) + num_text)
        return counts

    def token_embeddings(self) -> Tensor:
        # Gemma multiplies its embeddings by the root of the width.
        return super().token_embeddings() * self._decoder.embed.embed_scale.cpu()


def vision_flops(config: Any, num_patches: int, num_tokens: int) -> int:
    """Operations of the vision transformer on `num_patches` patches, padding included, and of the projection.

    With p patches of c numbers, pooled to s = p / k^2 places of which n hold visual tokens, L layers of width
    h with q query and k key-value heads of size d and an MLP of width m, and a decoder of width w:
    `2 p c h + L (2 p h (2 q + 2 k) d + 4 p^2 q d + 6 p h m) + 2 s p h + 2 n h w`.
    Padding runs like any patch: p depends on the scale alone. Source: the modelling code of transformers;
    equal to `torch.utils.flop_counter` under eager attention.
    """
    vision = config.vision_config
    hidden = vision.hidden_size
    query, key = (
        heads * vision.head_dim for heads in (vision.num_attention_heads, vision.num_key_value_heads)
    )
    channels = 3 * vision.patch_size**2
    layer = (
        2 * num_patches * hidden * (2 * query + 2 * key)
        + 4 * num_patches**2 * query
        + 6 * num_patches * hidden * vision.intermediate_size
    )
    num_places = num_patches // vision.pooling_kernel_size**2
    return (
        2 * num_patches * channels * hidden
        + vision.num_hidden_layers * layer
        + 2 * num_places * num_patches * hidden
        + 2 * num_tokens * hidden * config.get_text_config().hidden_size
    )


def prefill_flops(config: Any, num_tokens: int) -> int:
    """Operations of the decoder on a prompt of n tokens, until the first token of the answer.

    A layer of width h with q query and k key-value heads of size d, an MLP of width m and per-layer inputs of
    width p computes t tokens, which attend to all n:
    `4 t h q d + 2 v n h k d + 4 t n q d + 6 t h m + 4 t h p`.
    It maps its input to keys and values, v = 2, or to keys alone that are also the values, v = 1. Layers with
    full attention have their own d and k. Layers that reuse keys and values have v = 0, perhaps a wider MLP,
    and compute only the last token, t = 1 (under flash attention, all of them); the others have t = n.
    Sliding layers count in full, as if every token attended to every other. With e of E experts of width x, a
    layer adds `2 t h E + 6 t e h x`. To the sum over L layers come `2 n h p L` for their inputs and
    `2 h vocabulary` for the output. Source: the modelling code of transformers; equal to
    `torch.utils.flop_counter` under eager attention and eager experts.
    """
    text = config.get_text_config()
    layers = sum(sum(_layer_flops(text, layer, num_tokens)) for layer in range(text.num_hidden_layers))
    return layers + _input_flops(text, num_tokens) + 2 * text.hidden_size * text.vocab_size


def decode_flops_per_token(config: Any) -> int:
    """Operations of one more token in the decoder's linear layers, without attention and output layer."""
    text = config.get_text_config()
    layers = sum(_layer_flops(text, layer, 1)[0] for layer in range(text.num_hidden_layers))
    return layers + _input_flops(text, 1)


def _input_flops(text: Any, num_tokens: int) -> int:
    """Operations of the projection to the inputs of all layers."""
    return 2 * num_tokens * text.hidden_size * text.hidden_size_per_layer_input * text.num_hidden_layers


def _layer_flops(text: Any, layer: int, num_tokens: int) -> tuple[int, int]:
    """Operations of the linear maps of a layer, and of its attention, on a prompt."""
    settings = text.per_layer_config[layer]
    is_shared = layer >= text.num_hidden_layers - text.num_kv_shared_layers
    # Versions of transformers without this property run all prompt tokens through every layer.
    num_computed = 1 if is_shared and hasattr(text, "kv_sharing_modes") else num_tokens
    query = text.num_attention_heads * settings.head_dim
    key = settings.num_key_value_heads * settings.head_dim
    is_key_value = text.attention_k_eq_v and text.layer_types[layer] == "full_attention"
    num_key_maps = 0 if is_shared else 1 if is_key_value else 2
    inner = text.intermediate_size * (2 if is_shared and text.use_double_wide_mlp else 1)
    per_token = 4 * query + 6 * inner + 4 * text.hidden_size_per_layer_input
    if text.enable_moe_block:
        per_token += 2 * text.num_experts + 6 * text.top_k_experts * text.moe_intermediate_size
    linear = text.hidden_size * (num_computed * per_token + num_tokens * 2 * num_key_maps * key)
    return linear, 4 * num_computed * num_tokens * query
