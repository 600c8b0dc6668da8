"""Plain downsampling of an M3 or LLaVA checkpoint: images are shrunk before the tower instead of pooled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.modeling import M3LlavaModel
from m3_backbone.llava.pooling import describe_tokens, pooled_side
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.llava.queries import num_queries_of


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """An image and its visual tokens `[num_tokens, hidden]` at the scales that were needed so far."""

    image: Image.Image
    tokens: dict[int, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


class ResizedLlavaBackbone(LlavaBackbone):
    """Backbone that shrinks the image so that the tower sees as many patches as the scale has tokens.

    The side of the shrunk image is `sqrt(scale)` patches. The tower interpolates its position embeddings, and
    every scale has a vision pass of its own. The finest scale of the grid equals that of `LlavaBackbone`.

    Arguments and errors are those of `LlavaBackbone`. Raises ValueError for a checkpoint with tiles or
    learned queries.
    """

    family: Family = "native"

    def _check_checkpoint(self) -> None:
        config = self.checkpoint.config
        if self.processor.images.tiling is not None or num_queries_of(config) is not None:
            raise ValueError(
                f"{self.checkpoint.source} has tiles or learned queries: only a checkpoint with one grid of "
                "patches per image can be used with resized images"
            )

    @property
    def feature_scales(self) -> tuple[int, ...]:
        return self.scales[:1]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        pooled = super().fingerprints
        return {**pooled, "prompt": hashlib.sha256(f"resized {pooled['prompt']}".encode()).hexdigest()[:16]}

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        return vision_flops(self.checkpoint.config, side=pooled_side(scale, self.processor.images.grid))

    def encode(self, images: Sequence[Image.Image]) -> list[ResizedImage]:  # type: ignore[override]
        return [ResizedImage(to_rgb(image)) for image in images]

    def visual_tokens(  # type: ignore[override]
        self, encoded: Sequence[ResizedImage], scale: int
    ) -> list[Tensor]:
        self.encode_at(encoded, scale)
        return [image.tokens[scale] for image in encoded]

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        inputs = super().generate_inputs(images, questions, scale)
        pixels = torch.cat([self.preprocessor_at(scale)(to_rgb(image)) for image in images])
        tokens = list(self.model.model.encode_resized(pixels.to(self._decoder.device)))
        features: Any = BaseModelOutputWithPooling(pooler_output=tokens)  # type: ignore[arg-type]
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return {**prompt, "mm_encoder_outputs": {"image": features}}

    def preprocessor_at(self, scale: int) -> ImagePreprocessor:
        """Preprocessing to a side of `sqrt(scale)` patches. Raises ValueError as in `pooled_side`."""
        images = self.processor.images
        side = pooled_side(scale, images.grid)
        resize = None if images.resize is None else round(images.resize * side / images.grid)
        return replace(images, image_size=side * images.patch_size, resize=resize)

    @torch.no_grad()
    def encode_at(self, encoded: Sequence[ResizedImage], scale: int) -> None:
        preprocess, device = self.preprocessor_at(scale), self._decoder.device
        model = self.model.model
        assert isinstance(model, M3LlavaModel)

        def encode(batch: Sequence[ResizedImage]) -> list[Tensor]:
            pixels = torch.cat([preprocess(image.image) for image in batch]).to(device)
            return [tokens.clone() for tokens in model.encode_resized(pixels)]

        missing = list({id(image): image for image in encoded if scale not in image.tokens}.values())
        results = self.encode_in_batches(encode, missing, scale)
        for image, tokens in zip(missing, results, strict=True):
            image.tokens[scale] = tokens

    def _describe_tower(self, image: Any) -> dict[str, float]:
        (tokens,) = self.visual_tokens([image], self.scales[0])
        return describe_tokens(tokens[None], self.scales[:1])
