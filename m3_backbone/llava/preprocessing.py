"""Preprocessing of images for the vision tower, and packing of the tokens of tiles.

Pixels equal those of the M3 authors' code, which uses CLIP's image processor. Tiles follow the authors'
version of LLaVA-NeXT's anyres scheme: the whole image as one base tile, then a grid of tiles. Each tile is
pooled, then the padding is cut off and a newline token is appended to every row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from m3_backbone.images import MAX_PIXELS, to_rgb
from m3_backbone.llava.pooling import pooled_side
from m3_backbone.views import Panel


@dataclass(frozen=True)
class Tiling:
    """Grids of tiles to choose from: `resolutions` are (width, height) in pixels, multiples of `tile_size`.

    Raises ValueError for resolutions that are no such multiples or too large.
    """

    resolutions: tuple[tuple[int, int], ...]
    tile_size: int

    def __post_init__(self) -> None:
        for width, height in self.resolutions:
            if width % self.tile_size or height % self.tile_size:
                raise ValueError(
                    f"{width}x{height} in image_grid_pinpoints: not a multiple of tile size {self.tile_size}"
                )
            if min(width, height) < 1 or width * height > MAX_PIXELS:
                raise ValueError(
                    f"{width}x{height} in image_grid_pinpoints: give sides from {self.tile_size} up, of at "
                    f"most {MAX_PIXELS:,} pixels together"
                )

    def resolution(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The resolution (width, height) that keeps most pixels of an image and, among equals, pads least."""
        width, height = image_size
        best = select_best_resolution((height, width), [(h, w) for w, h in self.resolutions])
        return best[1], best[0]

    def shape(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tiles for an image of (width, height) pixels, the base tile not counted."""
        width, height = self.resolution(image_size)
        return height // self.tile_size, width // self.tile_size

    def num_tiles(self, image_size: tuple[int, int]) -> int:
        """Tiles of an image of (width, height) pixels, the base tile included."""
        rows, columns = self.shape(image_size)
        return rows * columns + 1

    def _unpadded(self, image_size: tuple[int, int], side: int) -> tuple[slice, slice]:
        """Rows and columns of the joined token grid that cover the image and not its padding."""
        width, height = image_size
        tile_rows, tile_columns = self.shape(image_size)
        rows, columns = tile_rows * side, tile_columns * side
        # Floats and int() as in the authors' unpad_image: other rounding would cut other rows.
        if width / height > columns / rows:
            padding = (rows - int(height * (columns / width))) // 2
            return slice(padding, rows - padding), slice(0, columns)
        padding = (columns - int(width * (rows / height))) // 2
        return slice(0, rows), slice(padding, columns - padding)

    def num_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Visual tokens of an image of (width, height) pixels at `scale` per tile, newlines included."""
        rows, columns = self._unpadded(image_size, isqrt(scale))
        return scale + (rows.stop - rows.start) * (columns.stop - columns.start + 1)

    def num_newlines(self, image_size: tuple[int, int], scale: int) -> int:
        """Newline tokens among the visual tokens of `num_tokens`."""
        rows, _ = self._unpadded(image_size, isqrt(scale))
        return rows.stop - rows.start

    def pack(self, tiles: Tensor, image_size: tuple[int, int], newline: Tensor) -> Tensor:
        """Pack pooled tiles `[num_tiles, scale, hidden]`, base tile first, into `[num_tokens, hidden]`."""
        side = isqrt(tiles.shape[1])
        tile_rows, tile_columns = self.shape(image_size)
        joined = tiles[1:].unflatten(1, (side, side)).unflatten(0, (tile_rows, tile_columns))
        joined = joined.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # [rows, columns, hidden]
        joined = joined[self._unpadded(image_size, side)]
        ends = newline.to(joined).expand(len(joined), 1, -1)
        return torch.cat([tiles[0], torch.cat([joined, ends], dim=1).flatten(0, 1)])

    def view(self, tiles: Sequence[Image.Image], image_size: tuple[int, int], side: int) -> Panel:
        """Join the tiles of a grid; `side` is that of the tokens of a tile. Padding has no tokens."""
        tile_rows, tile_columns = self.shape(image_size)
        joined = Image.new("RGB", (tile_columns * self.tile_size, tile_rows * self.tile_size))
        for number, tile in enumerate(tiles):
            row, column = divmod(number, tile_columns)
            joined.paste(tile, (column * self.tile_size, row * self.tile_size))
        rows, columns = self._unpadded(image_size, side)
        step = self.tile_size / side
        box = (columns.start * step, rows.start * step, columns.stop * step, rows.stop * step)
        return Panel(joined, (rows.stop - rows.start, columns.stop - columns.start), box)


def parse_resolutions(pinpoints: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Return pairs of (width, height) from a list of lists. Raises ValueError for anything else."""
    try:
        resolutions = tuple((int(width), int(height)) for width, height in pinpoints)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"image_grid_pinpoints must be pairs of width and height, not {pinpoints!r}"
        ) from error
    if not resolutions:
        raise ValueError("image_grid_pinpoints is empty: give at least one pair of width and height")
    return resolutions


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Aspect = Literal["pad", "crop", "anyres"]

# Larger intermediate images are computed in parts. 64 MB, as Pillow needs 4 bytes per pixel.
MAX_WHOLE_PIXELS = 2**24
_MAX_SUPPORT = 3  # largest support of Pillow's resampling filters, in pixels on either side


@dataclass(frozen=True)
class ImagePreprocessor:
    """Image preprocessing of one checkpoint: resizing, cropping or tiling, and normalisation.

    Args:
        image_size, patch_size: sides of the tower's input and of a patch, in pixels.
        aspect: how an image that is not square is treated. `pad` pads it to a square with the mean colour,
            `crop` cuts out the middle, `anyres` makes a base tile of the whole image and tiles of the image
            at the best of `resolutions`.
        resolutions: (width, height) in pixels.
        resize: length of the shorter side before the middle `image_size` x `image_size` pixels are cut out;
            by default `image_size`.
        resample: one of Pillow's resampling filters.
        mean, std: mean and standard deviation of each channel, in [0, 1].
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
        """Number of visual tokens that enter the decoder for an image of (width, height) pixels."""
        pooled_side(token_scale, self.grid)
        return self.tiling.num_tokens(image_size, token_scale) if self.tiling else token_scale

    def max_visual_tokens(self, token_scale: int) -> int:
        """Largest number of visual tokens of any image at a scale."""
        return max(
            (self.num_visual_tokens(size, token_scale) for size in self.resolutions), default=token_scale
        )

    def num_tiles(self, image_size: tuple[int, int]) -> int:
        """Tiles of an image of (width, height) pixels, the base tile included."""
        return self.tiling.num_tiles(image_size) if self.tiling else 1

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels `[num_tiles, 3, image_size, image_size]`, float32; with `anyres`, the base tile comes first.

        Raises UnreadableImage for an image without pixels, or with pixels of unknown range. Additional memory
        is bounded by `MAX_WHOLE_PIXELS` and the largest of `resolutions`, whatever the shape of the image.
        """
        return torch.stack([self.normalise(tile) for tile in self._cut_tiles(to_rgb(image))])

    def view(self, image: Image.Image, token_scale: int) -> tuple[Panel, ...]:
        """Return the pixels of `__call__` as pictures, with the grid of visual tokens at a scale.

        With `anyres`, they are the base tile and the joined other tiles. The newline token at the end of each
        row of the latter has no cell.
        """
        side = pooled_side(token_scale, self.grid)
        base, *tiles = self._cut_tiles(to_rgb(image))
        whole = Panel(base, (side, side))
        return (whole,) if self.tiling is None else (whole, self.tiling.view(tiles, image.size, side))

    def _cut_tiles(self, image: Image.Image) -> list[Image.Image]:
        """Return the tiles of an RGB image, each of `image_size` x `image_size` pixels, base tile first."""
        if self.tiling is not None:
            base = image.resize((self._shorter_side, self._shorter_side))
            tiles = [base, *cut(fit(image, self.tiling.resolution(image.size)), self.image_size)]
            return [self._resize_and_crop(tile) for tile in tiles]
        return [self.resize_grid(image)]

    def resize_grid(self, image: Image.Image) -> Image.Image:
        """Image of `image_size` x `image_size` pixels that a tower without tiles sees, before `normalise`."""
        if self.aspect == "pad":
            return self._resize_and_crop_padded(image)
        return self._resize_and_crop(image)

    @property
    def _shorter_side(self) -> int:
        return self.resize or self.image_size

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `resize` and cut out the middle square of `image_size`, as CLIP does."""
        width, height = image.size
        short = self._shorter_side
        size = (
            (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        )
        if size[0] * size[1] > MAX_WHOLE_PIXELS:
            return resize_middle(image, size, self.image_size, self.resample)
        return crop_middle(image.resize(size, self.resample), self.image_size)

    def _resize_and_crop_padded(self, image: Image.Image) -> Image.Image:
        """Pad the image to a square with the mean colour, then resize and crop it as `_resize_and_crop`."""
        if max(image.size) ** 2 <= MAX_WHOLE_PIXELS:
            return self._resize_and_crop(pad_to_square(image, self.mean))
        square = resize_padded(image, self.mean, self._shorter_side, self.resample)
        return crop_middle(square, self.image_size)

    def normalise(self, image: Image.Image) -> Tensor:
        """Pixels `[3, height, width]` minus the mean of each channel, divided by its standard deviation."""
        mean, std = (np.array(value, dtype=np.float32)[:, None, None] for value in (self.mean, self.std))
        # Transposing first and computing in place takes a fifth of the time that copies take.
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= mean
        pixels /= std
        return torch.from_numpy(pixels)


def crop_middle(image: Image.Image, side: int) -> Image.Image:
    """Return the middle `side` x `side` pixels, padded with black if the image is smaller."""
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def resize_middle(image: Image.Image, size: tuple[int, int], side: int, resample: int) -> Image.Image:
    """Compute `crop_middle(image.resize(size, resample), side)` from the visible part of the longer axis.

    The part includes all neighbours that the filter reads. Pixels differ by rounding only: by at most one of
    256 levels, if the longer axis is enlarged.
    """
    axis = int(size[1] > size[0])
    scale = image.size[axis] / size[axis]
    start = (size[axis] - side) // 2
    first, last = start * scale, (start + side) * scale
    margin = _MAX_SUPPORT * max(scale, 1) + 1
    low, high = max(0, math.floor(first - margin)), min(image.size[axis], math.ceil(last + margin))
    region, box, target = [0, 0, *image.size], [0.0, 0.0, *map(float, image.size)], list(size)
    region[axis], region[axis + 2] = low, high
    box[axis], box[axis + 2] = first - low, last - low
    target[axis] = side
    part = image.crop((region[0], region[1], region[2], region[3]))
    resized = part.resize((target[0], target[1]), resample, (box[0], box[1], box[2], box[3]))
    return crop_middle(resized, side)


def resize_padded(image: Image.Image, mean: Sequence[float], side: int, resample: int) -> Image.Image:
    """Compute `pad_to_square(image, mean).resize((side, side), resample)` without making the large square.

    The pixels are the same, because Pillow first resizes every row separately and then the columns.
    """
    width, height = image.size
    square_side = max(width, height)
    left, top = (square_side - width) // 2, (square_side - height) // 2
    color = _to_color(mean)
    num_rows = max(1, MAX_WHOLE_PIXELS // (4 * square_side))
    narrow = Image.new("RGB", (side, square_side), color)
    for start in range(0, height, num_rows):
        rows = image.crop((0, start, width, min(start + num_rows, height)))
        padded = Image.new("RGB", (square_side, rows.height), color)
        padded.paste(rows, (left, 0))
        narrow.paste(padded.resize((side, rows.height), resample), (0, top + start))
    return narrow.resize((side, side), resample)


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Return the image in the middle of a square of the mean colour; `mean` is in [0, 1]."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), _to_color(mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _to_color(mean: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(value * 255) for value in mean)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image resized to fit into (width, height), centred on black."""
    (width, height), (target_width, target_height) = image.size, size
    if target_width / width < target_height / height:
        fitted = (target_width, min(math.ceil(height * (target_width / width)), target_height))
    else:
        fitted = (min(math.ceil(width * (target_height / height)), target_width), target_height)
    canvas = Image.new("RGB", size)
    canvas.paste(image.resize(fitted), ((target_width - fitted[0]) // 2, (target_height - fitted[1]) // 2))
    return canvas


def cut(image: Image.Image, tile_size: int) -> list[Image.Image]:
    """Cut an image into square tiles, row by row."""
    return [
        image.crop((left, top, left + tile_size, top + tile_size))
        for top in range(0, image.height, tile_size)
        for left in range(0, image.width, tile_size)
    ]
