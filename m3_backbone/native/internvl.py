"""InternVL: an image is split into square tiles, and a small copy of the whole image is added."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.ladder import Family
from m3_backbone.lazy_vision import LazyImage
from m3_backbone.native.checkpoint import ModelFamily
from m3_backbone.native.tiles import SquareTilesBackbone

# Largest number of tiles at each default scale; published models were trained with at most 12.
_DEFAULT_TILES = (1, 2, 4, 12)


class InternVLBackbone(SquareTilesBackbone):
    """Backbone of an InternVL checkpoint in the layout of transformers (repositories that end in `-hf`).

    At the coarsest scale an image is one square tile, the thumbnail. At a finer scale it is stretched to the
    grid of at most `max_patches` tiles whose aspect ratio is closest to its own, and a thumbnail follows the
    tiles. If that grid is a single tile, the image is the thumbnail alone, so that scales may coincide. All
    tiles have the same number t of visual tokens, 256 in published models. A scale is named by the largest
    number of tokens of an image: t for the thumbnail alone, t (max_patches + 1) for max_patches >= 2.

    The thumbnail is made from the original image, so that it is the same at every scale. It is encoded once:
    the family is thumbnail, and `run_vision` of a finer scale encodes the other tiles. With
    `downsampling`, it differs between scales, and the family is native.

    Arguments are those of `NativeBackbone`; by default, `scales` are those of 1, 2, 4 and 12 tiles.

    Raises ValueError for other scales, for a ladder without the thumbnail alone, and for a checkpoint whose
    tiles cannot be encoded.
    """

    family: Family = "thumbnail"
    families: ClassVar[Mapping[str, ModelFamily]] = {
        "internvl": ModelFamily(
            "InternVLForConditionalGeneration",
            "GotOcr2ImageProcessorPil",
            "<IMG_CONTEXT>",
            image_markers=("<img>", "</img>"),
        )
    }

    @cached_property
    def _tile(self) -> int:
        return int(self.checkpoint.image_processor.size["height"])

    @property
    def _patch_size(self) -> int:
        return int(self.checkpoint.config.vision_config.patch_size[0])

    @property
    def _patches_per_side(self) -> int:
        return self._tile // self._patch_size

    @cached_property
    def _tokens_per_side(self) -> int:
        return int(self._patches_per_side * self.checkpoint.config.downsample_ratio)

    @cached_property
    def _flops_per_tile(self) -> int:
        return vision_flops_per_tile(self.checkpoint.config, self._patches_per_side**2)

    def _default_scales(self) -> Sequence[int]:
        return [self._tokens_per_tile * (1 if most == 1 else most + 1) for most in _DEFAULT_TILES]

    def _check_scales(self, scales: Sequence[int]) -> None:
        size = self.checkpoint.image_processor.size
        side = self._patch_size / self.checkpoint.config.downsample_ratio  # of a visual token, in pixels
        if size["width"] != self._tile or self._tile % side:
            raise ValueError(
                f"{self.checkpoint.source}: tiles of {size['width']}x{self._tile} pixels cannot be encoded: "
                f"they must be square, with sides of a multiple of {side:g}"
            )
        tokens = self._tokens_per_tile
        if tokens not in scales or any(scale % tokens or scale == 2 * tokens for scale in scales):
            raise ValueError(
                f"scales={list(scales)}: with tiles of {tokens} visual tokens, give {tokens}, which is the "
                f"thumbnail alone, and {tokens} (n + 1) for at most n >= 2 tiles"
            )

    def _max_tiles(self, scale: int) -> int:
        """Largest number of tiles at a scale besides the thumbnail, or 1 for the thumbnail alone."""
        return max(1, check_scale(scale, self.scales) // self._tokens_per_tile - 1)

    def processor_arguments(self, image_size: tuple[int, int], scale: int) -> dict[str, Any]:
        return {"crop_to_patches": True, "max_patches": self._max_tiles(scale)}

    def grid(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        width, height = image_size
        smallest, largest = self.checkpoint.image_processor.min_patches, self._max_tiles(scale)
        tile = (self._tile, self._tile)
        columns, rows = get_optimal_tiled_canvas((height, width), tile, smallest, largest)
        return (0, 0) if rows * columns == 1 else (rows, columns)

    def check_image(self, image_size: tuple[int, int]) -> None:
        """Accept every image: any size is stretched to tiles."""

    def max_prefix_tokens(self, scale: int) -> int:
        return check_scale(scale, self.scales)

    def preprocess(self, images: Sequence[Image.Image], scale: int) -> dict[str, Tensor]:
        pixels = [self._tile_pixels(image, scale) for image in images]
        return {"pixel_values": torch.cat(pixels)}

    def _tile_pixels(self, image: Image.Image, scale: int) -> Tensor:
        settings = self.processor_arguments(image.size, scale)
        inputs = self.checkpoint.image_processor(images=[image], return_tensors="pt", **settings)
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    def _mark_visual(self, ids: Tensor) -> dict[str, Tensor]:
        return {}

    def _reuses_thumbnail(self, scale: int) -> bool:
        return self.family == "thumbnail" and scale != self.scales[0]

    def encode_at(self, encoded: Sequence[Any], scale: int) -> None:
        if self._reuses_thumbnail(scale):
            super().encode_at(encoded, self.scales[0])
        super().encode_at(encoded, scale)

    def _encode_images(self, images: Sequence[LazyImage], scale: int) -> list[VisualPrefix]:
        prefixes = super()._encode_images(images, scale)
        coarsest = self.scales[0]
        if not self._reuses_thumbnail(scale):
            return prefixes
        return [
            VisualPrefix(torch.cat([tiles.embeds, image.prefixes[coarsest].embeds]))
            for image, tiles in zip(images, prefixes, strict=True)
        ]

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        """Vision pass of the tiles at a scale, without a thumbnail that is encoded at the coarsest scale."""
        tiles = [self._tile_pixels(image, scale) for image in images]
        if self._reuses_thumbnail(scale):
            tiles = [pixels[:-1] for pixels in tiles]
        output = self.model.model.get_image_features(
            torch.cat(tiles).to(self._decoder.device), return_dict=True
        )
        tokens = output.pooler_output.flatten(0, 1)
        lengths = [len(pixels) * self._tokens_per_tile for pixels in tiles]
        return [VisualPrefix(embeds.clone()) for embeds in tokens.split(lengths)]


def vision_flops_per_tile(config: Any, num_patches: int) -> int:
    """Operations of the vision transformer and the projector on one tile of `num_patches` patches.

    With p patches and a class token, n = p + 1, L layers of width h and an MLP of width m, and a projector
    from s x s patches to one token of width d:
    `2 p h (channels) + L (8 n h^2 + 4 n^2 h + 4 n h m) + 2 p h d + 2 (p / s^2) d^2`.
    Source: the modelling code of transformers; equal to `torch.utils.flop_counter` under eager attention.
    """
    vision = config.vision_config
    hidden, width = vision.hidden_size, config.get_text_config().hidden_size
    channels = vision.num_channels * vision.patch_size[0] ** 2
    num_tokens = num_patches + 1
    layer = (
        8 * num_tokens * hidden**2
        + 4 * num_tokens**2 * hidden
        + 4 * num_tokens * hidden * vision.intermediate_size
    )
    projector = 2 * num_patches * hidden * width
    projector += 2 * round(num_patches * config.downsample_ratio**2) * width**2
    return 2 * num_patches * channels * hidden + vision.num_hidden_layers * layer + projector
