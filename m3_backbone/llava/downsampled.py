"""Plain downsampling of an M3 or LLaVA checkpoint: images are shrunk before the tower sees them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from m3_backbone.arguments import checked
from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.images import shrink_and_enlarge
from m3_backbone.lazy_vision import LazyVision
from m3_backbone.llava.backbone import LlavaBackbone, check_single_grid, has_single_grid
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.modeling import M3LlavaModel
from m3_backbone.llava.pooling import describe_tokens, pooled_side
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.loading.checkpoint import Checkpoint
from m3_backbone.views import Panel

Downsampling = Literal["shrunk", "enlarged"]


class DownsampledLlavaBackbone(LazyVision, LlavaBackbone):  # type: ignore[misc]  # other encoded images
    """Backbone that shrinks the image to as many patches of pixels as the scale has tokens.

    The side of the shrunk image is `sqrt(scale)` patches. Every scale has a vision pass of its own. The
    finest scale of the grid equals that of `LlavaBackbone`.

    Args:
        checkpoint: as in `LlavaBackbone`.
        downsampling: `shrunk`: the tower sees the shrunk image and interpolates its position embeddings; its
            patches are the visual tokens. `enlarged`: the shrunk image is enlarged to its former size again,
            encoded, and its tokens are pooled, so that only the pixels have lost information. With tiles or
            learned queries, the original image is shrunk and enlarged, as in `NativeBackbone`, so that the
            finest scale loses information too.
        enlarge: former name of `downsampling="enlarged"`, in saved folders and configurations.
        arguments: further arguments of `LlavaBackbone`.

    Raises ValueError for a checkpoint with tiles or learned queries unless images are enlarged, and as
    `LlavaBackbone`.
    """

    @checked
    def __init__(
        self,
        checkpoint: str | Path | Checkpoint,
        *,
        downsampling: Downsampling = "shrunk",
        enlarge: bool = False,
        **arguments: Any,
    ) -> None:
        self.downsampling: Downsampling = "enlarged" if enlarge else downsampling
        super().__init__(checkpoint, **arguments)

    @property
    def _is_enlarged(self) -> bool:
        return self.downsampling == "enlarged"

    def _check_checkpoint(self) -> None:
        if not self._is_enlarged:
            check_single_grid(self.checkpoint, "used with shrunk images: give downsampling=enlarged")

    @property
    def _is_single_grid(self) -> bool:
        return has_single_grid(self.checkpoint)

    def saved_arguments(self) -> dict[str, Any]:
        return super().saved_arguments() | {"downsampling": self.downsampling}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        pooled = super().fingerprints
        change = "enlarged" if self._is_enlarged else "resized"  # words that stored labels depend on
        return {**pooled, "prompt": hashlib.sha256(f"{change} {pooled['prompt']}".encode()).hexdigest()[:16]}

    @property
    def has_equal_passes(self) -> bool:
        return self._is_enlarged

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        if self._is_enlarged:
            return LlavaBackbone.vision_flops(self, image_size, scale)
        side = pooled_side(check_scale(scale, self.scales), self.processor.images.grid)
        return vision_flops(self.checkpoint.config, side=side)

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        prepared = [self.prepare_image(image, scale) for image in images]
        tokens = [prefix.embeds for prefix in self.run_vision(prepared, scale)]
        return self.join_inputs(images, questions, scale, tokens)

    def prepare_image(self, image: Image.Image, scale: int) -> Image.Image:
        image = super().prepare_image(image, scale)
        if self._is_single_grid:
            return image  # `run_vision` shrinks it after cropping or padding
        num_pixels = self.num_visual_tokens(image.size, scale) * self.processor.images.patch_size**2
        return shrink_and_enlarge(image, num_pixels)

    def preprocessor_at(self, scale: int) -> ImagePreprocessor:
        """Preprocessing to a side of `sqrt(scale)` patches. Raises ValueError as in `pooled_side`."""
        images = self.processor.images
        side = pooled_side(scale, images.grid)
        resize = None if images.resize is None else round(images.resize * side / images.grid)
        return replace(images, image_size=side * images.patch_size, resize=resize)

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        if not self._is_single_grid:
            return LlavaBackbone.view_image(self, self.prepare_image(image, scale), scale)
        return self.preprocessor_at(check_scale(scale, self.scales)).view(image, scale)

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        if not self._is_single_grid:
            encoded = self._encode_batch(images)
            return [VisualPrefix(tokens) for tokens in LlavaBackbone.visual_tokens(self, encoded, scale)]
        shrink, full = self.preprocessor_at(scale), self.processor.images
        model = self.model.model
        assert isinstance(model, M3LlavaModel)
        if not self._is_enlarged:
            pixels = torch.cat([shrink(image) for image in images]).to(self._decoder.device)
            return [VisualPrefix(tokens.clone()) for tokens in model.encode_shrunk(pixels)]
        size = (full.image_size, full.image_size)
        enlarged = [shrink.resize_grid(image).resize(size, full.resample) for image in images]
        pixels = torch.stack([full.normalise(image) for image in enlarged]).to(self._decoder.device)
        return [VisualPrefix(tokens) for tokens in model.pool_images(model.encode_images(pixels), scale)]

    def _describe_tower(self, image: Any) -> dict[str, float]:
        if not self._is_single_grid:
            return super()._describe_tower(image)
        (tokens,) = self.visual_tokens([image], self.scales[0])
        return describe_tokens(tokens[None], self.scales[:1])
