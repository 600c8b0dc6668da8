"""From a picture to the pixels of its tiles, as the M3 authors' code does it with CLIP's image processor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3_backbone.ladder import pooled_side
from m3_backbone.tiles import Tiling

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Aspect = Literal["pad", "crop", "anyres"]


@dataclass(frozen=True)
class ImagePreprocessor:
    """`aspect` says what becomes of an image that is not square.

    `pad` makes it square with the mean colour; `crop` cuts the middle out; `anyres` shows it whole once, then
    cut into tiles, on the one of `resolutions` ((width, height) in pixels) that suits its shape. `resize` is
    the length of the shorter side before the middle `image_size` x `image_size` pixels are cut out.
    """

    image_size: int
    patch_size: int
    aspect: Aspect = "pad"
    resolutions: tuple[tuple[int, int], ...] = ()
    resize: int | None = None
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tiling(self) -> Tiling | None:
        return Tiling(self.resolutions, self.image_size) if self.aspect == "anyres" else None

    def num_visual_tokens(self, image_size: tuple[int, int], token_scale: int) -> int:
        """What an image of (width, height) pixels costs: the tokens that enter the decoder."""
        pooled_side(token_scale, self.grid)
        return self.tiling.num_tokens(image_size, token_scale) if self.tiling else token_scale

    def max_visual_tokens(self, token_scale: int) -> int:
        """The most that any image costs."""
        return max(
            (self.num_visual_tokens(size, token_scale) for size in self.resolutions), default=token_scale
        )

    def num_tiles(self, image_size: tuple[int, int]) -> int:
        """Tiles of an image of (width, height) pixels, the base tile included."""
        return self.tiling.num_tiles(image_size) if self.tiling else 1

    def __call__(self, image: Image.Image) -> Tensor:
        """`[num_tiles, 3, image_size, image_size]`, float32; with `anyres` the base tile first."""
        image = image.convert("RGB")
        if self.tiling is not None:
            base = image.resize((self._shorter_side, self._shorter_side))
            tiles = [base, *cut(fit(image, self.tiling.resolution(image.size)), self.image_size)]
        else:
            tiles = [pad_to_square(image, self.mean) if self.aspect == "pad" else image]
        return torch.stack([self._normalise(tile) for tile in tiles])

    @property
    def _shorter_side(self) -> int:
        return self.resize or self.image_size

    def _normalise(self, image: Image.Image) -> Tensor:
        """CLIP's own steps: shorter side to `resize`, middle square, mean and deviation of each channel."""
        width, height = image.size
        short = self._shorter_side
        size = (
            (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        )
        left, top = ((side - self.image_size) // 2 for side in size)
        image = image.resize(size, self.resample)
        image = image.crop((left, top, left + self.image_size, top + self.image_size))
        mean, std = (np.array(value, dtype=np.float32)[:, None, None] for value in (self.mean, self.std))
        # Channels apart first, and in place after: a fifth of the time of the same steps on copies.
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= mean
        pixels /= std
        return torch.from_numpy(pixels)


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image in the middle of a square of the mean colour (given in [0, 1])."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as large as it fits into (width, height), in the middle of black."""
    (width, height), (target_width, target_height) = image.size, size
    if target_width / width < target_height / height:
        fitted = (target_width, min(math.ceil(height * (target_width / width)), target_height))
    else:
        fitted = (min(math.ceil(width * (target_height / height)), target_width), target_height)
    canvas = Image.new("RGB", size)
    canvas.paste(image.resize(fitted), ((target_width - fitted[0]) // 2, (target_height - fitted[1]) // 2))
    return canvas


def cut(image: Image.Image, tile_size: int) -> list[Image.Image]:
    """Square tiles, row by row."""
    return [
        image.crop((left, top, left + tile_size, top + tile_size))
        for top in range(0, image.height, tile_size)
        for left in range(0, image.width, tile_size)
    ]
