"""How an image of any shape is cut into tiles, and how the tokens of its tiles become one sequence.

The anyres scheme of LLaVA-NeXT as the M3 authors run it: the whole image as one base tile, then a grid of
tiles; pooling happens in each tile, then the padding is cut off and every row ends with a newline token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from m3_backbone.images import MAX_PIXELS


@dataclass(frozen=True)
class Tiling:
    """The grids of tiles on offer: `resolutions` as (width, height) in pixels, multiples of `tile_size`."""

    resolutions: tuple[tuple[int, int], ...]
    tile_size: int

    def __post_init__(self) -> None:
        for width, height in self.resolutions:
            if width % self.tile_size or height % self.tile_size:
                raise ValueError(
                    f"{width}x{height} in image_grid_pinpoints: no multiple of the tile size {self.tile_size}"
                )
            if min(width, height) < 1 or width * height > MAX_PIXELS:
                raise ValueError(
                    f"{width}x{height} in image_grid_pinpoints: give sides from {self.tile_size} up, of at "
                    f"most {MAX_PIXELS:,} pixels together"
                )

    def resolution(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels that keeps most of an image of (width, height) and wastes least."""
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
        """Rows and columns of the joined token grid that lie on the image and not on its padding."""
        width, height = image_size
        tile_rows, tile_columns = self.shape(image_size)
        rows, columns = tile_rows * side, tile_columns * side
        # Floats and int() as in the authors' unpad_image: rounding otherwise would cut other rows.
        if width / height > columns / rows:
            padding = (rows - int(height * (columns / width))) // 2
            return slice(padding, rows - padding), slice(0, columns)
        padding = (columns - int(width * (rows / height))) // 2
        return slice(0, rows), slice(padding, columns - padding)

    def num_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Visual tokens of an image of (width, height) pixels at `scale` per tile, newlines included."""
        rows, columns = self._unpadded(image_size, isqrt(scale))
        return scale + (rows.stop - rows.start) * (columns.stop - columns.start + 1)

    def pack(self, tiles: Tensor, image_size: tuple[int, int], newline: Tensor) -> Tensor:
        """Pooled tiles `[num_tiles, scale, hidden]`, base tile first -> `[num_tokens, hidden]`."""
        side = isqrt(tiles.shape[1])
        tile_rows, tile_columns = self.shape(image_size)
        joined = tiles[1:].unflatten(1, (side, side)).unflatten(0, (tile_rows, tile_columns))
        joined = joined.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # [rows, columns, hidden]
        joined = joined[self._unpadded(image_size, side)]
        ends = newline.to(joined).expand(len(joined), 1, -1)
        return torch.cat([tiles[0], torch.cat([joined, ends], dim=1).flatten(0, 1)])


def parse_resolutions(pinpoints: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Pairs of (width, height) from a list of lists; ValueError for anything else."""
    try:
        resolutions = tuple((int(width), int(height)) for width, height in pinpoints)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"image_grid_pinpoints must be pairs of width and height, not {pinpoints!r}"
        ) from error
    if not resolutions:
        raise ValueError("image_grid_pinpoints is empty: give at least one pair of width and height")
    return resolutions
