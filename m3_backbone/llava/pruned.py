"""Pruning of an M3 or LLaVA checkpoint: some visual tokens of the grid are kept, and none are pooled."""

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
from m3_backbone.llava.backbone import EncodedImage, LlavaBackbone, check_single_grid
from m3_backbone.llava.modeling import M3LlavaModel
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
from m3_backbone.loading.checkpoint import Checkpoint
from m3_backbone.views import Panel


@dataclass(frozen=True, eq=False)
class PrunedImage(EncodedImage):
    """An image after its vision pass.

    `order` `[grid * grid]` ranks the tokens of the grid. `contextual` has the contextual tokens
    `[num_tokens, hidden]` of the scales that have some.
    """

    order: Tensor
    contextual: Mapping[int, Tensor]


@dataclass(frozen=True)
class PrunedPreprocessor(ImagePreprocessor):
    """Image preprocessing of a backbone that keeps any number of the tokens of its grid."""

    pruning: PruningMethod = "diversity"

    def num_visual_tokens(self, image_size: tuple[int, int], token_scale: int) -> int:
        if not 1 <= token_scale <= self.grid**2:
            raise ValueError(
                f"scale {token_scale} is not possible with {self.grid**2} tokens: choose from 1 to "
                f"{self.grid**2}"
            )
        return token_scale

    def view(self, image: Image.Image, token_scale: int) -> tuple[Panel, ...]:
        """Return the whole picture: which tokens are kept is known only after the vision pass."""
        return (Panel(self.resize_grid(to_rgb(image))),)


class PrunedLlavaBackbone(LlavaBackbone):
    """Backbone whose scales keep the best ranked visual tokens of the grid (`m3_backbone.llava.pruning`).

    One vision pass and one ranking serve every scale. The finest scale of the grid equals that of
    `LlavaBackbone`.

    Args:
        checkpoint: as in `LlavaBackbone`.
        pruning: how tokens are ranked.
        scales: any numbers of tokens up to those of the grid; by default the scales of the checkpoint.
        arguments: further arguments of `LlavaBackbone`.

    Raises ValueError for a checkpoint with tiles or learned queries, for scales that are not possible, and as
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
        self.processor = copy(self.processor)
        self.processor.images = PrunedPreprocessor(**vars(self.processor.images), pruning=pruning)
        self._given_scales = None if scales is None else tuple(sorted(set(scales)))
        for scale in self._given_scales or ():
            self.processor.images.num_visual_tokens((1, 1), scale)

    def _check_checkpoint(self) -> None:
        check_single_grid(self.checkpoint, "pruned")

    def saved_arguments(self) -> dict[str, Any]:
        arguments = {**super().saved_arguments(), "pruning": self.pruning}
        return arguments if self._given_scales is None else {**arguments, "scales": list(self.scales)}

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return self._given_scales or self.checkpoint.scales

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        return check_scale(scale, self.scales)

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        ranking = pruning_flops(self.checkpoint.config, self.pruning, self.scales)
        return super().vision_flops(image_size, scale) + ranking

    def _encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        model = self.model.model
        assert isinstance(model, M3LlavaModel)
        pixels = self.processor.preprocess(images)["pixel_values"].to(self._decoder.device)
        features, hidden = model.encode_patches(pixels)
        tokens = model.multi_modal_projector(features)
        keys = None
        match self.pruning:
            case "random":
                order = torch.stack([rank_at_random(image, tokens.shape[1]) for image in images])
            case "diversity":
                order = rank_by_diversity(tokens)
            case method:
                layer = find_layer(model.vision_tower, self.checkpoint.config)
                attention, keys = measure_attention(layer, hidden, of_class_token=method != "patch_attention")
                order = rank_by_attention(attention)
        order = order.to(tokens.device)
        encoded: list[EncodedImage] = []
        for row, image in enumerate(images):
            contextual = {}
            if self.pruning == "visionzip" and keys is not None:
                contextual = self._merge_others(features[row], keys[row], order[row])
            encoded.append(PrunedImage(tokens[row : row + 1].clone(), image, order[row], contextual))
        return encoded

    def _merge_others(self, features: Tensor, keys: Tensor, order: Tensor) -> dict[int, Tensor]:
        """Return the contextual tokens of an image at each scale that has some."""
        counts = {scale: count_contextual(scale, len(order)) for scale in self.scales}
        merged = {
            scale: merge(features, keys, order, scale - count, count)
            for scale, count in counts.items()
            if count
        }
        project = self.model.model.multi_modal_projector
        return {scale: project(others) for scale, others in merged.items()}

    def visual_tokens(self, encoded: Sequence[Any], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[scale, hidden]`."""
        check_scale(scale, self.scales)
        visual = []
        for image in encoded:
            contextual = image.contextual.get(scale, image.tokens[0, :0])
            kept = keep(image.tokens[0], image.order, scale - len(contextual))
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
