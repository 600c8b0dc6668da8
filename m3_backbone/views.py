"""Pictures of an image as a backbone sees it at a scale, and the grid of visual tokens drawn over them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

_GAP = 8  # pixels between pictures that stand side by side
_GROUND = (255, 255, 255)
_LIGHT, _DARK = (255, 255, 255, 230), (0, 0, 0, 200)
_SHADE = (0, 0, 0, 130)
_MIN_CELL = 16  # pixels of a cell from which its lines are drawn twice as wide


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture that the vision pass reads, and the grid of the visual tokens that it gives.

    `image` holds the RGB pixels after resizing, padding and cropping. `grid` is (rows, columns) of visual
    tokens, one for each cell of `box`; None if tokens have no place, as learned queries. `box` is (left, top,
    right, bottom) in pixels, by default the whole picture; what is outside has no token.
    """

    image: Image.Image
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def num_cells(self) -> int:
        """Number of visual tokens that have a place in the picture."""
        return 0 if self.grid is None else self.grid[0] * self.grid[1]


def draw_view(panels: Sequence[Panel], side: int = 384) -> Image.Image:
    """Return the panels side by side with their grids, each enlarged or shrunk to `side` pixels.

    `side` is the longer side of a panel. An enlarged panel shows its pixels as squares, so that the detail
    that a coarse scale loses is seen. Raises ValueError without panels, and for a side below 1.
    """
    if not panels or side < 1:
        raise ValueError(f"{len(panels)} panels of {side} pixels: give at least one panel and one pixel")
    drawn = [_draw_panel(panel, side) for panel in panels]
    width = sum(image.width for image in drawn) + _GAP * (len(drawn) - 1)
    canvas = Image.new("RGB", (width, max(image.height for image in drawn)), _GROUND)
    left = 0
    for image in drawn:
        canvas.paste(image, (left, (canvas.height - image.height) // 2))
        left += image.width + _GAP
    return canvas


def _draw_panel(panel: Panel, side: int) -> Image.Image:
    """Return one panel with its grid; its longer side has `side` pixels."""
    factor = side / max(panel.image.size)
    size = (max(1, round(panel.image.width * factor)), max(1, round(panel.image.height * factor)))
    enlarges = factor > 1
    image = panel.image.resize(size, Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)
    if panel.grid is None:
        return image
    rows, columns = panel.grid
    left, top, right, bottom = (edge * factor for edge in panel.box or (0, 0, *panel.image.size))
    overlay = Image.new("RGBA", size, _SHADE)
    # The last pixel of a rectangle of Pillow belongs to it.
    inside = (round(left), round(top), round(right) - 1, round(bottom) - 1)
    pen = ImageDraw.Draw(overlay)
    pen.rectangle(inside, fill=(0, 0, 0, 0))
    is_wide = min((right - left) / columns, (bottom - top) / rows) >= _MIN_CELL
    for shift, color in ((1, _DARK), (0, _LIGHT)) if is_wide else ((0, _LIGHT),):
        for column in range(columns + 1):
            x = min(round(left + column * (right - left) / columns) + shift, inside[2])
            pen.line((x, inside[1], x, inside[3]), fill=color)
        for row in range(rows + 1):
            y = min(round(top + row * (bottom - top) / rows) + shift, inside[3])
            pen.line((inside[0], y, inside[2], y), fill=color)
    return Image.alpha_composite(image.convert("RGBA"), overlay).convert("RGB")
