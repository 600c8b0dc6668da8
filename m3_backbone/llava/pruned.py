"""Pruning of an M3 or LLaVA checkpoint: some visual tokens of the finest scale are kept, none are pooled."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.backbone import check_scale
from m3_backbone.images import to_rgb
from m3_backbone.llava.backbone import EncodedImage, LlavaBackbone
from m3_backbone.llava.pooling import describe_tokens
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.llava.pruning import (
    PruningMethod,
    count_contextual,
    find_layer,
    keep,
    measure_attention,
    merge,
    pruning_flops,
    rank_at_random,
    rank_by_attention,
    rank_by_diversity,
)
from m3_backbone.llava.queries import num_queries_of
from m3_backbone.loading.checkpoint import Checkpoint
from m3_backbone.views import Panel


@dataclass(frozen=True, eq=False)
class PrunedImage(EncodedImage):
    """An image after its vision pass.

    `packed` `[num_tokens, hidden]` are the tokens of the finest scale, with newlines if there are tiles, and
    `order` `[num_tokens]` ranks them. `contextual` has the contextual tokens `[count, hidden]` of the scales
    that have some.
    """

    packed: Tensor
    order: Tensor
    contextual: Mapping[int, Tensor]


@dataclass(frozen=True)
class PrunedPreprocessor(ImagePreprocessor):
    """Image preprocessing of a backbone whose scale is the mean number of tokens of a tile."""

    pruning: PruningMethod = "diversity"

    def num_visual_tokens(self, image_size: tuple[int, int], token_scale: int) -> int:
        if not 1 <= token_scale <= self.grid**2:
            raise ValueError(
                f"scale {token_scale} is not possible with {self.grid**2} tokens: choose from 1 to "
                f"{self.grid**2}"
            )
        all_tokens = super().num_visual_tokens(image_size, self.grid**2)
        # At the finest scale, newlines are more tokens than those of the patches.
        if token_scale == self.grid**2:
            return all_tokens
        return min(token_scale * self.num_tiles(image_size), all_tokens)

    def num_newlines(self, image_size: tuple[int, int]) -> int:
        return self.tiling.num_newlines(image_size, self.grid**2) if self.tiling else 0

    def view(self, image: Image.Image, token_scale: int) -> tuple[Panel, ...]:
        """Return the whole pictures: which tokens are kept is known only after the vision pass."""
        return tuple(Panel(panel.image) for panel in super().view(image, self.grid**2))

    def places(self, image_size: tuple[int, int]) -> Tensor:
        """Place of each token of the finest scale among the patches of all tiles, -1 for a newline."""
        patches = torch.arange(self.num_tiles(image_size) * self.grid**2)
        if self.tiling is None:
            return patches
        tiles = patches.view(-1, self.grid**2, 1)
        return self.tiling.pack(tiles, image_size, torch.tensor([-1])).flatten()


class PrunedLlavaBackbone(LlavaBackbone):
    """Backbone whose scales keep the best ranked tokens of the finest one (`m3_backbone.llava.pruning`).

    One vision pass and one ranking serve every scale. A scale is the mean number of tokens of a tile, or that
    of the image if there are none. The finest scale of the grid equals that of
    `LlavaBackbone`.

    Args:
        checkpoint: as in `LlavaBackbone`.
        pruning: how tokens are ranked.
        scales: any numbers of tokens up to those of the grid; by default the scales of the checkpoint.
        arguments: further arguments of `LlavaBackbone`.

    Raises ValueError for a checkpoint with learned queries, for scales that are not possible, and as
    `LlavaBackbone`.
    """

    @checked
    def __init__(
        self,
        checkpoint: str | Path | Checkpoint,
        *,
        pruning: PruningMethod,
        scales: Sequence[PositiveInt] | None = None,
        **arguments: Any,
    ) -> None:
        self.pruning: PruningMethod = pruning
        super().__init__(checkpoint, **arguments)
        self._preprocessor = PrunedPreprocessor(**vars(self.processor.images), pruning=pruning)
        self.processor = copy(self.processor)
        self.processor.images = self._preprocessor
        self._given_scales = None if scales is None else tuple(sorted(set(scales)))
        for scale in self._given_scales or ():
            self._preprocessor.num_visual_tokens((1, 1), scale)

    def _check_checkpoint(self) -> None:
        if num_queries_of(self.checkpoint.config) is not None:
            raise ValueError(
                f"{self.checkpoint.source} has learned queries: only a checkpoint whose visual tokens are "
                "patches can be pruned"
            )

    def saved_arguments(self) -> dict[str, Any]:
        arguments = {**super().saved_arguments(), "pruning": self.pruning}
        return arguments if self._given_scales is None else {**arguments, "scales": list(self.scales)}

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return self._given_scales or self.checkpoint.scales

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        grid = self._preprocessor.grid
        num_tokens = [self._preprocessor.num_visual_tokens(image_size, s) for s in (*self.scales, grid**2)]
        ranking = pruning_flops(
            self.checkpoint.config,
            self.pruning,
            num_tiles=self._preprocessor.num_tiles(image_size),
            num_newlines=self._preprocessor.num_newlines(image_size),
            num_tokens=num_tokens,
        )
        return super().vision_flops(image_size, scale) + ranking

    def _encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        model = self.model.model
        inputs = {name: x.to(self._decoder.device) for name, x in self.processor.preprocess(images).items()}
        features, hidden = model.encode_patches(**inputs)
        tokens = model.multi_modal_projector(features)
        packed = model.pool_images(tokens, self._preprocessor.grid**2, inputs.get("image_sizes"))
        contextual: list[dict[int, Tensor]] = [{} for _ in images]
        if self.pruning == "random":
            orders = [
                rank_at_random(image, len(own)).to(own.device)
                for image, own in zip(images, packed, strict=True)
            ]
        elif self.pruning == "diversity":
            orders = rank_by_diversity(packed)
        else:
            orders, contextual = self._rank_by_attention([image.size for image in images], features, hidden)
        counts = [self._preprocessor.num_tiles(image.size) for image in images]
        parts = zip(tokens.split(counts), images, packed, orders, contextual, strict=True)
        return [
            PrunedImage(tiles.clone(), image, own.clone(), order, merged)
            for tiles, image, own, order, merged in parts
        ]

    def _rank_by_attention(
        self, sizes: Sequence[tuple[int, int]], features: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
        """Return the orders of the tokens of images of these sizes, and their contextual tokens.

        `features` and `hidden` are those of `encode_patches`, for the tiles of all images.
        """
        layer = find_layer(self.model.model.vision_tower, self.checkpoint.config)
        attention, keys = measure_attention(layer, hidden, of_class_token=self.pruning != "patch_attention")
        counts = [self._preprocessor.num_tiles(size) for size in sizes]
        orders: list[Tensor] = []
        contextual: list[dict[int, Tensor]] = []
        for size, received, own_features, own_keys in zip(
            sizes, attention.split(counts), features.split(counts), keys.split(counts), strict=True
        ):
            places = self._preprocessor.places(size).to(attention.device)
            order = rank_by_attention(received, places)
            orders.append(order)
            of_tokens = (part.flatten(0, 1)[places] for part in (own_features, own_keys))
            contextual.append(
                self._merge_others(size, order, *of_tokens) if self.pruning == "visionzip" else {}
            )
        return orders, contextual

    def _merge_others(
        self, image_size: tuple[int, int], order: Tensor, features: Tensor, keys: Tensor
    ) -> dict[int, Tensor]:
        """Return the contextual tokens of an image at each scale that has some.

        `features` and `keys` are those of all tokens; the newlines, last in `order`, are not merged.
        """
        patches = order[: len(order) - self._preprocessor.num_newlines(image_size)]
        project = self.model.model.multi_modal_projector
        contextual = {}
        for scale in self.scales:
            num_kept = self.num_visual_tokens(image_size, scale)
            if count := count_contextual(num_kept, len(patches)):
                contextual[scale] = project(merge(features, keys, patches, num_kept - count, count))
        return contextual

    @torch.no_grad()
    def visual_tokens(self, encoded: Sequence[Any], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[num_tokens, hidden]`."""
        check_scale(scale, self.scales)
        visual = []
        for image in encoded:
            num_kept = self.num_visual_tokens(image.size, scale)
            contextual = image.contextual.get(scale, image.packed[:0])
            kept = keep(image.packed, image.order, num_kept - len(contextual))
            visual.append(torch.cat([kept, contextual]))
        return visual

    @torch.no_grad()
    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        encoded = self._encode_batch([to_rgb(image) for image in images])
        return self.join_inputs(images, questions, scale, self.visual_tokens(encoded, scale))

    def _describe_tower(self, image: EncodedImage) -> dict[str, float]:
        return describe_tokens(image.tokens, self.scales[:1])
