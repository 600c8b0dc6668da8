"""Qwen2.5-VL and Qwen3-VL: the resolution of an image is a cap on its area."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.native.base import NativeBackbone
from m3_backbone.native.checkpoint import ModelFamily
from m3_backbone.views import Panel

# The longest side may be this many times the shortest one, as in the image processor.
_MAX_ASPECT = 200


class QwenVLBackbone(NativeBackbone):
    """Backbone of a Qwen2.5-VL or Qwen3-VL checkpoint.

    A scale of n visual tokens caps the area of the image at n tokens, each `merge_size` x `merge_size`
    patches. The aspect ratio is kept and sides are rounded to whole tokens, so that an image has at most n
    tokens, and fewer if it is smaller than that: images are not enlarged to a cap. Only an image that is
    thinner than a token may have more.

    Arguments are those of `NativeBackbone`.
    """

    families: ClassVar[Mapping[str, ModelFamily]] = {
        model_type: ModelFamily(model, "Qwen2VLImageProcessorPil", "<|image_pad|>")
        for model_type, model in {
            "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
            "qwen3_vl": "Qwen3VLForConditionalGeneration",
        }.items()
    }

    def _default_scales(self) -> Sequence[int]:
        return (16, 64, 256, 1024)

    @property
    def _vision(self) -> Any:
        return self.checkpoint.config.vision_config

    @cached_property
    def _token_side(self) -> int:
        """Side of the square of pixels that becomes one visual token."""
        images = self.checkpoint.image_processor
        return images.patch_size * images.merge_size

    def _limits(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """Smallest and largest area of the resized image, in pixels.

        A long and thin image can get more tokens at a lower cap, because its short side is rounded up to one
        token. It then has the finer scale's resolution at the coarser one too, so that counts ascend.
        """
        candidates = [cap for cap in self.scales if cap >= check_scale(scale, self.scales)]
        limits = [self._limits_of_cap(cap) for cap in candidates]
        return min(limits, key=lambda limit: math.prod(self._resize(image_size, *limit)))

    def _limits_of_cap(self, cap: int) -> tuple[int, int]:
        area = cap * self._token_side**2
        return min(self.checkpoint.image_processor.size["shortest_edge"], area), area

    def _resize(self, image_size: tuple[int, int], smallest: int, largest: int) -> tuple[int, int]:
        """(rows, columns) of visual tokens within these areas, as the image processor computes them."""
        width, height = image_size
        resized = smart_resize(height, width, self._token_side, smallest, largest)
        return resized[0] // self._token_side, resized[1] // self._token_side

    def grid(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(rows, columns) of visual tokens of an image of (width, height) pixels."""
        return self._resize(image_size, *self._limits(image_size, scale))

    def processor_arguments(self, image_size: tuple[int, int], scale: int) -> dict[str, Any]:
        smallest, largest = self._limits(image_size, scale)
        return {"min_pixels": smallest, "max_pixels": largest}

    def resized_size(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        rows, columns = self.grid(image_size, scale)
        return columns * self._token_side, rows * self._token_side

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        self.check_image(image.size)
        return self.view_resized(
            self.prepare_image(image, scale), self.grid(image.size, scale), self._token_side
        )

    def check_image(self, image_size: tuple[int, int]) -> None:
        if max(image_size) > _MAX_ASPECT * min(image_size):
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels is too long: its sides may differ by a "
                f"factor of {_MAX_ASPECT}"
            )

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        rows, columns = self.grid(image_size, scale)
        return rows * columns

    def max_prefix_tokens(self, scale: int) -> int:
        # Sides are at least one token, so that a ribbon may exceed the cap.
        return max(check_scale(scale, self.scales), _MAX_ASPECT)

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        return vision_flops(self._vision, self.grid(image_size, scale))

    def preprocess(self, images: Sequence[Image.Image], scale: int) -> dict[str, Tensor]:
        parts = []
        for image in images:
            smallest, largest = self._limits(image.size, scale)
            size = {"shortest_edge": smallest, "longest_edge": largest}
            parts.append(self.checkpoint.image_processor(images=[image], size=size, return_tensors="pt"))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        inputs = self.preprocess(images, scale)
        output = self.model.model.get_image_features(
            inputs["pixel_values"].to(self._decoder.device),
            inputs["image_grid_thw"].to(self._decoder.device),
            return_dict=True,
        )
        # One tuple per layer, with the features of each image; Qwen2.5-VL has none.
        layers = getattr(output, "deepstack_features", None) or []
        prefixes = []
        for number, (image, embeds) in enumerate(zip(images, output.pooler_output, strict=True)):
            rows, columns = self.grid(image.size, scale)
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            positions = torch.stack([torch.zeros_like(row), row, column]).flatten(1)
            deep = tuple(layer[number].clone() for layer in layers)
            prefixes.append(VisualPrefix(embeds.clone(), positions, max(rows, columns), deep))
        return prefixes


def vision_flops(vision: Any, grid: tuple[int, int]) -> int:
    """Operations of the vision transformer and the mergers on an image of `grid` (rows, columns) tokens.

    With p patches, layers of width h and an MLP of width m with k matrices, attention in which patch i sees
    s_i patches, and mergers from g patches to one token of width d:
    `2 p h (channels) + L (8 p h^2 + 4 h sum(s_i) + 2 k p h m) + mergers (p / g) (2 (g h)^2 + 2 g h d)`.
    Qwen2.5-VL attends within windows in most layers and has k = 3, Qwen3-VL attends to all and has k = 2.
    Source: the modelling code of transformers; equal to `torch.utils.flop_counter` under eager attention.
    """
    merge = vision.spatial_merge_size
    rows, columns = grid
    patches = rows * columns * merge**2
    hidden, inner = vision.hidden_size, vision.intermediate_size
    is_windowed = hasattr(vision, "window_size")
    num_full = len(vision.fullatt_block_indexes) if is_windowed else vision.depth
    attention = num_full * patches**2
    if is_windowed:
        side = vision.window_size // vision.patch_size // merge
        windows = [
            min(side, rows - top) * min(side, columns - left) * merge**2
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]
        attention += (vision.depth - num_full) * sum(size**2 for size in windows)
    num_matrices = 3 if is_windowed else 2
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    group = hidden * merge**2
    num_mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    return (
        2 * patches * channels * hidden
        + vision.depth * (8 * patches * hidden**2 + 2 * num_matrices * patches * hidden * inner)
        + 4 * hidden * attention
        + num_mergers * rows * columns * 2 * (group**2 + group * vision.out_hidden_size)
    )
