"""M3 and MQT-LLaVA as subclasses of transformers' LLaVA (one grid) and LLaVA-NeXT (tiles).

`get_image_features` pools the projected grid of visual tokens, or takes the first of the learned queries,
before they enter the decoder; transformers does the rest. `token_scale` is an argument of `forward` and
`generate`; it is not stored.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Len
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.arguments import PositiveInt, accepts
from m3_backbone.llava.pooling import PoolingMethod, exact_scales, grid_scales, pool
from m3_backbone.llava.preprocessing import Tiling
from m3_backbone.llava.queries import (
    QueryTransformer,
    check_prefix,
    num_heads_of,
    num_queries_of,
    query_scales,
)
from m3_backbone.loading.weights import IGNORED


def grid_of(config: LlavaConfig | LlavaNextConfig) -> int:
    """Side of the grid of visual tokens of one tile."""
    vision: Any = config.vision_config
    return vision.image_size // vision.patch_size


def feature_layer_of(config: LlavaConfig | LlavaNextConfig) -> int:
    """Number of layers of the vision tower that the visual tokens pass through."""
    vision: Any = config.vision_config
    layer: Any = config.vision_feature_layer
    return layer if layer >= 0 else vision.num_hidden_layers + 1 + layer


class _MatryoshkaModel:
    """Common base of the inner models with and without tiles: vision pass, and merge of image and text."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any
    get_input_embeddings: Any

    def __init__(self, config: LlavaConfig | LlavaNextConfig) -> None:
        if config.vision_feature_select_strategy != "default":
            raise ValueError(
                "vision_feature_select_strategy must be 'default': the class token is not part of the grid"
            )
        super().__init__(config)  # type: ignore[call-arg]

    @property
    def grid(self) -> int:
        return grid_of(self.config)

    @property
    def pooling(self) -> PoolingMethod:
        return getattr(self.config, "token_pooling", "average")

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """The one vision pass for every scale: projected tokens `[num_tiles, grid * grid, hidden]`."""
        return self._project(self._stack_tiles(pixel_values, image_sizes))

    def encode_patches(
        self, pixel_values: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patch features, which the projector turns into tokens, and the input of the layer that gives them.

        `[num_tiles, grid * grid, width]` and `[num_tiles, 1 + grid * grid, width]`, class token first.
        """
        states, index = self._run_tower(self._stack_tiles(pixel_values, image_sizes))
        return self._drop_class_token(states[index]), states[index - 1]

    def _stack_tiles(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Tensor:
        """Tiles of all images, `[num_tiles, 3, height, width]`."""
        return pixel_values

    def pool_images(
        self, tokens: Tensor, token_scale: int, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        """The tokens of `encode_images` at one scale: `[num_tokens, hidden]` of each image."""
        return list(pool(tokens, token_scale, self.pooling))

    def get_image_features(
        self,
        pixel_values: Tensor,
        token_scale: int | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Pool the visual tokens of images at a scale.

        `pixel_values` and `image_sizes` come from the processor. `.pooler_output` of the result holds
        `[num_tokens, hidden]` for each image. Raises ValueError without `token_scale`.
        """
        if token_scale is None:
            possible = describe_scales(self.config)
            raise ValueError(f"token_scale must be given with pixel_values: one of {possible}")
        tokens = self.encode_images(pixel_values, image_sizes)
        features = self.pool_images(tokens, token_scale, image_sizes)
        return BaseModelOutputWithPooling(pooler_output=features)  # type: ignore[arg-type]

    def _project(self, tiles: Tensor, **tower_arguments: Any) -> Tensor:
        return self.multi_modal_projector(self._encode_patches(tiles, **tower_arguments))

    def _encode_patches(self, tiles: Tensor, **tower_arguments: Any) -> Tensor:
        """Patch features `[num_tiles, grid * grid, width]` of the tower, without the class token.

        They have the dtype of the language model, also if that of the tower is another one.
        """
        states, index = self._run_tower(tiles, **tower_arguments)
        return self._drop_class_token(states[index])

    def _drop_class_token(self, features: Tensor) -> Tensor:
        return features[:, 1:].to(self.get_input_embeddings().weight.dtype)

    def _run_tower(self, tiles: Tensor, **tower_arguments: Any) -> tuple[Sequence[Tensor], int]:
        """Hidden states of the tower, and the index among them of the one that gives the features.

        A state is `[num_tiles, 1 + grid * grid, width]`. Only that with the index and the one below exist.
        """
        # Before transformers 5.23, the input of the first layer is missing among selected hidden states: the
        # layer below is selected too, and the features are indexed from the end.
        layer = feature_layer_of(self.config)
        index = layer - (self.config.vision_config.num_hidden_layers + 1)
        pixels = tiles.to(self.vision_tower.dtype)
        outputs = self.vision_tower(pixels, output_hidden_states=[layer - 1, layer], **tower_arguments)
        return outputs.hidden_states, index

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_scale: int | None = None,
        image_sizes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, token_scale, image_sizes).pooler_output
        else:
            features = mm_encoder_outputs["image"].pooler_output if mm_encoder_outputs else None
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self._merge(input_ids, features)
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]

    def _merge(self, input_ids: Tensor, features: Any) -> Tensor:
        """Token embeddings `[batch, length, hidden]` in which visual tokens replace the placeholders."""
        embed = self.get_input_embeddings()
        if features is None:
            return embed(input_ids)
        # Published vocabularies have no image token: its id is beyond the embedding and is never looked up.
        is_image = input_ids == self.config.image_token_id
        embeds = embed(input_ids.masked_fill(is_image, 0))
        visual = torch.cat(features).to(embeds)
        if int(is_image.sum()) != len(visual):
            raise ValueError(
                f"{int(is_image.sum())} image placeholders for {len(visual)} visual tokens:"
                " give the processor and the model the same token_scale"
            )
        return embeds.masked_scatter(is_image.unsqueeze(-1), visual)


class M3LlavaModel(_MatryoshkaModel, LlavaModel):
    """M3 without tiles. `pixel_values` are `[num_images, 3, height, width]`."""

    def encode_shrunk(self, pixel_values: Tensor) -> Tensor:
        """Projected tokens `[num_images, grid * grid, hidden]` of images of any size.

        The tower interpolates its position embeddings to the grid of patches.
        """
        return self._project(pixel_values, interpolate_pos_encoding=True)


class QueryLlavaModel(_MatryoshkaModel, LlavaModel):
    """MQT-LLaVA: a query transformer in place of the projector. `pixel_values` as in `M3LlavaModel`."""

    # Its attention reads the weights of its parts itself, so they have to be on one device.
    _no_split_modules = ["QueryTransformer"]  # noqa: RUF012

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        del self.multi_modal_projector
        vision: Any = config.vision_config
        text: Any = config.get_text_config()
        self.query_abstractor = QueryTransformer(
            vision.hidden_size, text.hidden_size, self.config.num_queries, num_heads_of(self.config)
        )

    def _project(self, tiles: Tensor, **tower_arguments: Any) -> Tensor:
        return self.query_abstractor(self._encode_patches(tiles, **tower_arguments))

    def pool_images(
        self, tokens: Tensor, token_scale: int, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        return list(tokens[:, : check_prefix(token_scale, self.config.num_queries)])


class M3LlavaNextModel(_MatryoshkaModel, LlavaNextModel):
    """M3 with tiles. `pixel_values` are `[num_images, max_tiles, 3, height, width]`, base tile first.

    `image_sizes` `[num_images, 2]` are height and width of the images in pixels. The tokens of an image
    include newline tokens.
    """

    @property
    def tiling(self) -> Tiling:
        """The grids of tiles. The configuration stores (height, width), as is usual in transformers."""
        resolutions = tuple((width, height) for height, width in self.config.image_grid_pinpoints)
        return Tiling(resolutions, self.config.vision_config.image_size)

    def _stack_tiles(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Tensor:
        counts = [self.tiling.num_tiles(size) for size in _width_first(image_sizes)]
        return torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])

    def pool_images(
        self, tokens: Tensor, token_scale: int, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        sizes = _width_first(image_sizes)
        images = pool(tokens, token_scale, self.pooling).split([self.tiling.num_tiles(s) for s in sizes])
        return [
            self.tiling.pack(image, size, self.image_newline)
            for image, size in zip(images, sizes, strict=True)
        ]


def _width_first(image_sizes: Tensor | None) -> list[tuple[int, int]]:
    if image_sizes is None:
        raise ValueError("a tiled model needs image_sizes with pixel_values: pass those of the processor")
    return [(width, height) for height, width in image_sizes.tolist()]


def describe_scales(config: LlavaConfig | LlavaNextConfig) -> str:
    """Scales that are possible with a configuration, such as "1, 4, 16"."""
    num_queries = num_queries_of(config)
    return f"1, 2, ..., {num_queries}" if num_queries else ", ".join(map(str, exact_scales(grid_of(config))))


def make_ladder(
    config: LlavaConfig | LlavaNextConfig, scales: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Distinct `scales` in ascending order; if None, those of M3 for the grid, or those of MQT-LLaVA.

    Raises ValueError for a scale that is not possible, as in `grid_scales` and `query_scales`.
    """
    num_queries = num_queries_of(config)
    return query_scales(num_queries, scales) if num_queries else grid_scales(grid_of(config), scales)


def scales_of(config: LlavaConfig | LlavaNextConfig) -> tuple[int, ...]:
    """Scales in a configuration, or those of `make_ladder` if the configuration has none.

    Raises ValueError if they are not a list of positive whole numbers, or as in `make_ladder`.
    """
    named = getattr(config, "matryoshka_vis_token_scale", None)
    if named is None:
        return make_ladder(config)
    if not accepts(Annotated[list[PositiveInt], Len(1)], named):
        possible = describe_scales(config)
        raise ValueError(
            f"matryoshka_vis_token_scale={named!r} is not a list of scales: give some of {possible} with "
            "backbone.scales=[...]"
        )
    try:
        return make_ladder(config, named)
    except ValueError as error:
        raise ValueError(
            f"matryoshka_vis_token_scale={named}: {error}; give other scales with backbone.scales=[...]"
        ) from error


class _MatryoshkaGeneration:
    """Common base of the outer models with and without tiles."""

    config: Any
    model: Any
    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [IGNORED]  # noqa: RUF012

    @property
    def scales(self) -> tuple[int, ...]:
        return scales_of(self.config)

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """The one vision pass for every scale: projected tokens `[num_tiles, grid * grid, hidden]`."""
        return self.model.encode_images(pixel_values, image_sizes)

    def pool_images(
        self, tokens: Tensor, token_scale: int, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        """The tokens of `encode_images` at one scale: `[num_tokens, hidden]` of each image."""
        return self.model.pool_images(tokens, token_scale, image_sizes)

    # All arguments are spelled out because `generate` inspects the signature.
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_scale: int | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model as transformers' LLaVA does; `pixel_values` need `token_scale`, tokens per grid."""
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            pixel_values=pixel_values,
            token_scale=token_scale,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(*args, **kwargs)

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """Save as transformers does, always with its own weight names, whatever the layout of the source."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)  # type: ignore[misc]


class M3LlavaForConditionalGeneration(_MatryoshkaGeneration, LlavaForConditionalGeneration):
    _inner_class: type[M3LlavaModel | QueryLlavaModel] = M3LlavaModel

    def __init__(self, config: LlavaConfig) -> None:
        # LlavaForConditionalGeneration's own __init__ would build a second model.
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = self._inner_class(config)
        text = config.get_text_config()
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


class QueryLlavaForConditionalGeneration(M3LlavaForConditionalGeneration):
    """MQT-LLaVA. The configuration has `num_queries`, and may have `num_query_heads`."""

    _inner_class = QueryLlavaModel


class M3LlavaNextForConditionalGeneration(_MatryoshkaGeneration, LlavaNextForConditionalGeneration):
    def __init__(self, config: LlavaNextConfig) -> None:
        super(LlavaNextForConditionalGeneration, self).__init__(config)
        self.model = M3LlavaNextModel(config)
        text = config.get_text_config()
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


M3Model = M3LlavaForConditionalGeneration | M3LlavaNextForConditionalGeneration


def model_class_of(config: LlavaConfig | LlavaNextConfig) -> type[M3Model]:
    """Class of the model with a configuration."""
    if isinstance(config, LlavaNextConfig):
        return M3LlavaNextForConditionalGeneration
    return QueryLlavaForConditionalGeneration if num_queries_of(config) else M3LlavaForConditionalGeneration
