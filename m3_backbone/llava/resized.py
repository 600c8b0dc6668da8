"""Plain downsampling of an M3 or LLaVA checkpoint: images are shrunk before the tower instead of pooled."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.images import to_rgb
from m3_backbone.lazy_vision import LazyVision
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.modeling import M3LlavaModel
from m3_backbone.llava.pooling import describe_tokens, pooled_side
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.llava.queries import num_queries_of
from m3_backbone.views import Panel


class ResizedLlavaBackbone(LazyVision, LlavaBackbone):  # type: ignore[misc]  # other encoded images
    """Backbone that shrinks the image so that the tower sees as many patches as the scale has tokens.

    The side of the shrunk image is `sqrt(scale)` patches. The tower interpolates its position embeddings, and
    every scale has a vision pass of its own. The finest scale of the grid equals that of `LlavaBackbone`.

    Arguments and errors are those of `LlavaBackbone`. Raises ValueError for a checkpoint with tiles or
    learned queries.
    """

    def _check_checkpoint(self) -> None:
        config = self.checkpoint.config
        if self.processor.images.tiling is not None or num_queries_of(config) is not None:
            raise ValueError(
                f"{self.checkpoint.source} has tiles or learned queries: only a checkpoint with one grid of "
                "patches per image can be used with resized images"
            )

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        pooled = super().fingerprints
        return {**pooled, "prompt": hashlib.sha256(f"resized {pooled['prompt']}".encode()).hexdigest()[:16]}

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        return vision_flops(self.checkpoint.config, side=pooled_side(scale, self.processor.images.grid))

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        inputs = super().generate_inputs(images, questions, scale)
        tokens = [prefix.embeds for prefix in self.run_vision([to_rgb(image) for image in images], scale)]
        features: Any = BaseModelOutputWithPooling(pooler_output=tokens)  # type: ignore[arg-type]
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return {**prompt, "mm_encoder_outputs": {"image": features}}

    def preprocessor_at(self, scale: int) -> ImagePreprocessor:
        """Preprocessing to a side of `sqrt(scale)` patches. Raises ValueError as in `pooled_side`."""
        images = self.processor.images
        side = pooled_side(scale, images.grid)
        resize = None if images.resize is None else round(images.resize * side / images.grid)
        return replace(images, image_size=side * images.patch_size, resize=resize)

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        return self.preprocessor_at(check_scale(scale, self.scales)).view(image, scale)

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        preprocess = self.preprocessor_at(scale)
        pixels = torch.cat([preprocess(image) for image in images]).to(self._decoder.device)
        model = self.model.model
        assert isinstance(model, M3LlavaModel)
        return [VisualPrefix(tokens.clone()) for tokens in model.encode_resized(pixels)]

    def _describe_tower(self, image: Any) -> dict[str, float]:
        (tokens,) = self.visual_tokens([image], self.scales[0])
        return describe_tokens(tokens[None], self.scales[:1])
