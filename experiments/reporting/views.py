"""Pictures of an image as a backbone sees it at each scale, with its grid of visual tokens, for the gallery.

A backbone shows them without its weights. For labels of a model that is not on this machine, the shape of the
grid follows from the number of visual tokens and the family.
"""

import base64
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, log
from typing import Any, Protocol, Self

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from m3_backbone.images import to_rgb
from m3_backbone.outcomes.table import OutcomeTable
from m3_backbone.views import Panel

logger = logging.getLogger(__name__)

LONGEST_SIDE = 320
# Smaller pictures are stored without loss, as they are shown enlarged.
_LOSSLESS_SIDE = 96
# A derived grid whose aspect ratio differs from that of the image by more than this factor is not shown.
_ASPECT_FACTOR = 1.5

Grid = tuple[int, int]


class Viewer(Protocol):
    """A backbone that shows images as it sees them; no method needs its weights."""

    def view_image(self, image: Image.Image, scale: int) -> Sequence[Panel]: ...

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int: ...


@dataclass(frozen=True)
class View:
    """A picture in the lightbox: its number among those of the card, its grid, and its size for the model.

    `picture` is None for the image of the card. `box` are shares of width and height. `size` is (width,
    height) in pixels as the model reads it, None if it is not known.
    """

    picture: int | None
    grid: Grid | None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    size: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"picture": self.picture, "grid": self.grid, "box": self.box, "size": self.size}


@dataclass(frozen=True)
class CardViews:
    """Views of one image by scale, and the `pictures` that they show as data URIs."""

    pictures: tuple[str, ...]
    at_scales: tuple[tuple[View, ...], ...]


def view_sample(
    image: Image.Image,
    scales: Sequence[int],
    visual_tokens: Sequence[int],
    rule: "GridRule",
    viewer: Viewer | None,
) -> CardViews:
    """Return the views of an image with these numbers of visual tokens `[num_scales]`.

    A viewer that gives the image other numbers is another backbone than that of the labels, and not used.
    """
    counts = list(map(int, visual_tokens))
    try:
        if viewer is not None and [viewer.num_visual_tokens(image.size, scale) for scale in scales] == counts:
            return _view_image(image, scales, viewer)
    except ValueError as error:  # a backbone that refuses the image or a scale
        logger.info("an image is shown without its backbone: %s", error)
    return rule.view(counts, image.size)


def _view_image(image: Image.Image, scales: Sequence[int], viewer: Viewer) -> CardViews:
    """Return the views of an image that its backbone shows."""
    pictures: dict[str, int] = {}
    at_scales = []
    for scale in scales:
        views = []
        for panel in viewer.view_image(image, scale):
            width, height = panel.image.size
            left, top, right, bottom = panel.box or (0.0, 0.0, float(width), float(height))
            number = pictures.setdefault(shrink_image(panel.image)[0], len(pictures))
            box = (left / width, top / height, right / width, bottom / height)
            views.append(View(number, panel.grid, box, (width, height)))
        at_scales.append(tuple(views))
    return CardViews(tuple(pictures), tuple(at_scales))


def shrink_image(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Return an image as a data URI of at most `LONGEST_SIDE` pixels per side, and its size in pixels."""
    small = to_rgb(image).copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    is_small = max(small.size) <= _LOSSLESS_SIDE
    small.save(buffer, format="WEBP", quality=88, method=4, lossless=is_small)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), small.size


@dataclass(frozen=True)
class GridRule:
    """Shapes of token grids, derived from labels: `square` grids, `wide` ones like the image, or unknown."""

    shape: str

    @classmethod
    def of(cls, table: OutcomeTable, statistic_names: Sequence[str] | None) -> Self:
        """Return the rule for outcomes; grids are square if all numbers of tokens are the nominal squares.

        `statistic_names` are those of the labels (`Inputs`). Without them, pooled grids are unknown.
        """
        tokens = table.visual_tokens
        sides = [isqrt(int(scale)) for scale in table.scales]
        is_square = (
            bool((tokens == np.array(table.scales, dtype=np.int64)).all())
            and all(side**2 == scale for side, scale in zip(sides, table.scales, strict=True))
            and all(sides[-1] % side == 0 for side in sides)
        )
        # Learned queries have no place in the image; their statistics name prefixes of them.
        has_queries = table.family == "pooled" and (
            statistic_names is None or any("prefix_cosine" in name for name in statistic_names)
        )
        # Tiles have a constant number of tokens each, which all counts are multiples of.
        is_tiled = bool((tokens % tokens.min() == 0).all()) and tokens.min() > 1
        if table.options is not None or has_queries:
            return cls("unknown")
        if is_square:
            return cls("square")
        return cls("wide" if table.family == "native" and not is_tiled else "unknown")

    def find(self, num_tokens: int, image_size: tuple[int, int]) -> Grid | None:
        """Return (rows, columns) of the tokens of an image of (width, height) pixels; None if unknown."""
        if self.shape == "unknown":
            return None
        if self.shape == "square":
            side = isqrt(num_tokens)
            # A square grid lies over an image that was padded or cropped in a way that labels do not tell.
            return (side, side) if image_size[0] == image_size[1] else None
        wanted = log(image_size[1] / image_size[0])
        grids = [(rows, num_tokens // rows) for rows in range(1, num_tokens + 1) if num_tokens % rows == 0]
        best = min(grids, key=lambda grid: abs(log(grid[0] / grid[1]) - wanted))
        return best if abs(log(best[0] / best[1]) - wanted) <= log(_ASPECT_FACTOR) else None

    def view(self, visual_tokens: Sequence[int], image_size: tuple[int, int]) -> CardViews:
        """Return the image of the card with a grid at every scale; no views where the grid is unknown."""
        grids = [self.find(int(number), image_size) for number in visual_tokens]
        return CardViews((), tuple((View(None, grid),) if grid else () for grid in grids))


def make_view(
    table: OutcomeTable, viewer: Viewer | None, statistic_names: Sequence[str] | None = None
) -> Callable[[int, Image.Image], CardViews]:
    """Return the function from a row of a table and its image to the views of the row."""
    rule = GridRule.of(table, statistic_names)

    def view(row: int, image: Image.Image) -> CardViews:
        return view_sample(image, table.scales, table.visual_tokens[row].tolist(), rule, viewer)

    return view


def find_configured_viewer(backbone: DictConfig) -> Viewer | None:
    """Return the backbone of a configuration to show images, without its weights; None if it cannot.

    Nothing is downloaded: the backbone is opened only if its checkpoint is on this machine.
    """
    from m3_backbone.loading.weights import is_hub_id

    checkpoint = backbone.get("checkpoint")
    if not isinstance(checkpoint, str) or is_hub_id(checkpoint):
        return None
    try:
        opened: Viewer = instantiate(backbone, _convert_="all")
    except Exception as error:  # whatever opening a checkpoint raises, the evaluation goes on
        logger.info("the gallery shows token grids from the labels alone: %s", error)
        return None
    return opened
