"""Backbone of M3 and MQT-LLaVA checkpoints: one vision pass serves all scales."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.pooling import describe_tokens
from m3_backbone.llava.processing import M3Processor
from m3_backbone.llava.prompts import prompt_template
from m3_backbone.llava.queries import describe_queries, num_queries_of
from m3_backbone.loading.checkpoint import Checkpoint
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.views import Panel

_VISION_DTYPES = ("float32", "bfloat16", "float16")
# Scales of M3 that are cheap to store and to read.
_FEATURE_SCALES = (1, 9, 36)


def has_single_grid(checkpoint: Checkpoint) -> bool:
    """Return whether the visual tokens of an image are one grid of patches: no tiles, no learned queries."""
    return checkpoint.processor.images.tiling is None and num_queries_of(checkpoint.config) is None


def check_single_grid(checkpoint: Checkpoint, use: str) -> None:
    """Raise ValueError for a checkpoint with tiles or learned queries; `use` ends the message."""
    if not has_single_grid(checkpoint):
        raise ValueError(
            f"{checkpoint.source} has tiles or learned queries: only a checkpoint with one grid of patches "
            f"per image can be {use}"
        )


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the single vision pass that serves every scale.

    `tokens` `[num_tiles, grid * grid, hidden]` are projected but not yet pooled; of an MQT-LLaVA they are
    those of all queries, `[1, num_queries, hidden]`.
    """

    tokens: Tensor
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


class LlavaBackbone(ModelBackbone):
    """Backbone of an M3 or MQT-LLaVA checkpoint.

    The constructor reads only the configuration and the tokenizer; the weights are loaded when first needed.
    It raises ValueError for unknown devices, dtypes and attention kernels, and the errors of
    `Checkpoint.open`.

    Args:
        checkpoint: folder, hub id, `tiny_m3`, or an opened `Checkpoint`.
        scales: scales that replace those in the checkpoint's configuration. The checkpoint must have been
            trained for them.
        image_grid_pinpoints: other grids of tiles for a tiled checkpoint, (width, height) in pixels.
        prompt: name of the prompt template; by default that of the checkpoint.
        max_new_tokens, batch_size, image_batch_size: as in `ModelBackbone`.
        vision_dtype: dtype of the vision tower, `float32`, `bfloat16` or `float16`; by default that of the
            model. Another dtype changes visual tokens slightly, and the fingerprint of `decoding`.
        arguments: further arguments of `ModelBackbone`.
    """

    family: Family = "pooled"

    @checked
    def __init__(
        self,
        checkpoint: str | Path | Checkpoint,
        *,
        scales: Sequence[PositiveInt] | None = None,
        image_grid_pinpoints: Sequence[Sequence[PositiveInt]] | None = None,
        prompt: str | None = None,
        max_new_tokens: PositiveInt = 16,
        batch_size: PositiveInt = 64,
        image_batch_size: PositiveInt = 16,
        vision_dtype: str | None = None,
        **arguments: Any,
    ) -> None:
        if vision_dtype not in (None, *_VISION_DTYPES):
            raise ValueError(
                f"vision_dtype={vision_dtype}: give one of {', '.join(_VISION_DTYPES)}, or null for that of "
                "the model"
            )
        self.vision_dtype = vision_dtype
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(checkpoint, image_grid_pinpoints, scales)
        elif scales is not None:
            checkpoint = replace(checkpoint, given_scales=tuple(scales))
        super().__init__(
            checkpoint,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            image_batch_size=image_batch_size,
            **arguments,
        )
        self.checkpoint: Checkpoint
        self.processor: M3Processor
        if prompt is not None:
            self.processor.template = prompt_template(prompt)
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        """Raise ValueError for a checkpoint that this class cannot use."""

    def saved_arguments(self) -> dict[str, Any]:
        arguments = {**super().saved_arguments(), "prompt": self.processor.template.name}
        if self.vision_dtype is not None:
            arguments["vision_dtype"] = self.vision_dtype
        if self.checkpoint.given_scales is not None:
            arguments["scales"] = list(self.scales)
        if resolutions := self.processor.images.resolutions:
            arguments["image_grid_pinpoints"] = [list(size) for size in resolutions]
        return arguments

    def _describe_decoding(self) -> dict[str, Any]:
        settings = super()._describe_decoding()
        is_other = self.vision_dtype is not None and getattr(torch, self.vision_dtype) != self.torch_dtype
        return {**settings, "vision_dtype": self.vision_dtype} if is_other else settings

    def _load_model(self) -> Any:
        model = super()._load_model()
        if self.vision_dtype is not None:
            model.model.vision_tower.to(getattr(torch, self.vision_dtype))
        return model

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return self.checkpoint.scales

    @property
    def feature_scales(self) -> tuple[int, ...]:
        if num_queries_of(self.checkpoint.config):
            return self.scales[:3]
        return tuple(scale for scale in self.scales if scale in _FEATURE_SCALES) or self.scales[:1]

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        return self.processor.images.num_visual_tokens(image_size, check_scale(scale, self.scales))

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        check_scale(scale, self.scales)
        return vision_flops(self.checkpoint.config, self.processor.images.num_tiles(image_size))

    def max_prefix_tokens(self, scale: int) -> int:
        return self.processor.images.max_visual_tokens(check_scale(scale, self.scales))

    def check_image(self, image_size: tuple[int, int]) -> None:
        """Do nothing: images of every size are resized to the size of the tower."""

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        return self.processor.images.view(image, check_scale(scale, self.scales))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        images = [to_rgb(image) for image in images]
        return self.encode_in_batches(self._encode_batch, images, self.scales[-1])

    def _encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        inputs = {name: x.to(self._decoder.device) for name, x in self.processor.preprocess(images).items()}
        tokens = self.model.encode_images(**inputs)
        counts = [self.processor.images.num_tiles(image.size) for image in images]
        return [EncodedImage(t.clone(), image) for t, image in zip(tokens.split(counts), images, strict=True)]

    @torch.no_grad()
    def visual_tokens(self, encoded: Sequence[EncodedImage], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[num_tokens, hidden]`."""
        check_scale(scale, self.scales)
        if not encoded:
            return []
        sizes = torch.tensor([image.size[::-1] for image in encoded])
        return self.model.pool_images(torch.cat([image.tokens for image in encoded]), scale, sizes)

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        prompts = [self.processor.template.format(question) for question in questions]
        return {**self.processor(images, prompts, scale), "token_scale": scale}

    def join_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int, tokens: list[Tensor]
    ) -> dict[str, Any]:
        """Inputs as of `generate_inputs` with the visual tokens of each image, `[num_tokens, hidden]`."""
        inputs = LlavaBackbone.generate_inputs(self, images, questions, scale)
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        features: Any = BaseModelOutputWithPooling(pooler_output=tokens)  # type: ignore[arg-type]
        return {**prompt, "mm_encoder_outputs": {"image": features}}

    def visual_prefixes(self, encoded: Sequence[EncodedImage], scale: int) -> list[VisualPrefix]:
        return [VisualPrefix(tokens) for tokens in self.visual_tokens(encoded, scale)]

    def _describe_tower(self, image: EncodedImage) -> dict[str, float]:
        describe = describe_queries if num_queries_of(self.checkpoint.config) else describe_tokens
        return describe(image.tokens, self.scales)
