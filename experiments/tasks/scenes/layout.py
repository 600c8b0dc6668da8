"""Composition of scenes: choice and boxes of the items, without drawing them."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from experiments.tasks.scenes.scene import (
    CHARACTERS,
    MAX_TABLE_SIDE,
    PLAIN,
    SHAPES,
    WORDS,
    Box,
    Item,
    Look,
    Scene,
)

NUM_FONTS = 3  # fonts per look
LEAST_CONTRAST = 120  # smallest Euclidean distance in RGB (0 to 255) of an item from the ground
# Sides of the smallest cells in pixels: larger images have larger tables and crowds.
TABLE_CELL, CROWD_CELL = 16, 19


def compose(
    rng: random.Random,
    size: int,
    handwriting: Sequence[int],
    layouts: Mapping[str, float],
    look: Look = PLAIN,
) -> Scene:
    """Return a random scene.

    Args:
        rng: the only source of randomness.
        size: side of the square image in pixels.
        handwriting: digits shown by the handwriting samples of the split; items refer to their positions.
        layouts: relative frequency of each layout.
        look: determines the colors and the sizes of the items.
    """
    name = rng.choices(list(layouts), list(layouts.values()))[0]
    ground = rng.choice(list(look.palette))
    items, rows, columns = _LAYOUTS[name](rng, size, colors_on(ground, look), handwriting)
    items = [replace(item, box=_scale(item.box, look.size)) for item in items]
    texture, seed = rng.choice(look.textures), rng.getrandbits(32)
    return Scene(name, size, ground, texture, seed, items, rows, columns, look)


def restyle(scene: Scene, look: Look) -> Scene:
    """Return the same items in another look: palette, fonts, texture and sizes.

    Ground and colors were chosen for the contrast of the former palette; black on brown is the only pair far
    below `LEAST_CONTRAST` (61) in the shifted one.
    """
    items = [replace(item, box=_scale(item.box, look.size / scene.look.size)) for item in scene.items]
    texture = random.Random(scene.seed).choice(look.textures)
    return replace(scene, look=look, texture=texture, items=items)


def colors_on(ground: str, look: Look) -> list[str]:
    """Return the colors with enough contrast to the ground: red on brown cannot be read, for example."""
    inks = look.palette
    return [color for color, ink in inks.items() if math.dist(ink, inks[ground]) > LEAST_CONTRAST]


def _scale(box: Box, factor: float) -> Box:
    """Return the box scaled about its center, with sides of at least 5 pixels."""
    if factor == 1:
        return box
    left, top, right, bottom = box
    width, height = (max(5, round(factor * length)) for length in (right - left, bottom - top))
    left, top = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    return left, top, left + width, top + height


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _cells(rng: random.Random, size: int, count: int, rows: int, columns: int) -> list[tuple[int, int, Box]]:
    """Return (row, column, box) of `count` distinct cells of a rows x columns grid, in reading order."""
    chosen = sorted(rng.sample(range(rows * columns), count))
    return [
        (
            index // columns + 1,
            index % columns + 1,
            (
                index % columns * size // columns,
                index // columns * size // rows,
                (index % columns + 1) * size // columns,
                (index // columns + 1) * size // rows,
            ),
        )
        for index in chosen
    ]


def _inside(rng: random.Random, cell: Box, width: int, height: int) -> Box:
    left = rng.randint(cell[0], max(cell[0], cell[2] - width))
    top = rng.randint(cell[1], max(cell[1], cell[3] - height))
    return left, top, left + width, top + height


def _square_in(rng: random.Random, cell: Box, fill: float) -> Box:
    side = max(5, round(fill * (min(cell[2] - cell[0], cell[3] - cell[1]) - 2)))
    return _inside(rng, cell, side, side)


def _grid_side(rng: random.Random, count: int, most: int) -> int:
    """Return the side of a grid for `count` items, with anything from just enough cells to far too many."""
    least = math.isqrt(count - 1) + 1
    return rng.randint(least, min(most, least + 3)) if rng.random() < 0.7 else rng.randint(least, most)


def _objects(
    rng: random.Random, size: int, colors: Sequence[str], _: Sequence[int]
) -> tuple[list[Item], int, int]:
    most = min(MAX_TABLE_SIDE, max(3, size // CROWD_CELL))
    count = round(_log_uniform(rng, 1, 0.4 * most**2))
    side = _grid_side(rng, count, most)
    # Few colors and shapes per image, with uneven frequencies: else every count would be 0 or 1.
    colors = rng.sample(colors, rng.randint(1, 6))
    shapes = rng.sample(SHAPES, rng.randint(1, 5))
    weights = [rng.random() + 0.1 for _ in colors]
    fill = rng.uniform(0.5, 0.95)
    items = [
        Item(
            "object",
            _square_in(rng, cell, fill * rng.uniform(0.75, 1)),
            rng.choices(colors, weights)[0],
            shape=rng.choice(shapes),
            row=row,
            column=column,
        )
        for row, column, cell in _cells(rng, size, count, side, side)
    ]
    return items, side, side


def _table(
    rng: random.Random, size: int, colors: Sequence[str], _: Sequence[int]
) -> tuple[list[Item], int, int]:
    most = min(MAX_TABLE_SIDE, size // TABLE_CELL)
    count = _log_uniform(rng, 4, most**2)
    tilt = rng.uniform(0.75, 1.33)
    rows = min(most, max(2, round(count**0.5 * tilt)))
    columns = min(most, max(2, round(count / rows)))
    colors = rng.sample(colors, rng.choice((1, 1, 2, 4)))
    fill, style = rng.uniform(0.6, 0.9), rng.randrange(NUM_FONTS)
    items = []
    for row, column, cell in _cells(rng, size, rows * columns, rows, columns):
        side = max(6, round(fill * min(cell[2] - cell[0], cell[3] - cell[1])))
        left, top = (cell[0] + cell[2] - side) // 2, (cell[1] + cell[3] - side) // 2
        items.append(
            Item(
                "character",
                (left, top, left + side, top + side),
                rng.choice(colors),
                text=rng.choice(CHARACTERS),
                row=row,
                column=column,
                style=style,
            )
        )
    return items, rows, columns


def _sign(rng: random.Random, cell: Box, color: str, text: str, fill: float, place: tuple[int, int]) -> Item:
    width = round(fill * (cell[2] - cell[0] - 2))
    # The height fits the text: letters are about 0.7 times as wide as high, plus a margin.
    height = min(round(fill * (cell[3] - cell[1] - 2)), round(width / (0.75 * len(text) + 0.4) * 1.6))
    box = _inside(rng, cell, width, max(9, height))
    return Item("sign", box, color, text=text, row=place[0], column=place[1], style=rng.randrange(NUM_FONTS))


def _sign_text(rng: random.Random, max_digits: int) -> str:
    return str(rng.randrange(10 ** rng.randint(1, max_digits)))


def _signs(
    rng: random.Random, size: int, colors: Sequence[str], _: Sequence[int]
) -> tuple[list[Item], int, int]:
    rows, columns = rng.choice(((1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (5, 2), (5, 3)))
    count = rng.randint(max(1, rows * columns // 2), min(len(colors), rows * columns))
    fill = rng.uniform(0.55, 0.98)
    items = [
        _sign(
            rng,
            cell,
            color,
            rng.choice(WORDS) if rng.random() < 0.4 else _sign_text(rng, 3),
            fill * rng.uniform(0.85, 1),
            (row, column),
        )
        for color, (row, column, cell) in zip(
            rng.sample(colors, count), _cells(rng, size, count, rows, columns), strict=True
        )
    ]
    return items, rows, columns


def _digit(
    rng: random.Random, cell: Box, color: str, handwriting: Sequence[int], place: tuple[int, int]
) -> Item:
    box = _square_in(rng, cell, rng.uniform(0.7, 1))
    style = rng.randrange(len(handwriting))
    return Item("digit", box, color, text=str(handwriting[style]), row=place[0], column=place[1], style=style)


def _digits(
    rng: random.Random, size: int, colors: Sequence[str], handwriting: Sequence[int]
) -> tuple[list[Item], int, int]:
    count = round(_log_uniform(rng, 1, 25))
    least = next(side for side in range(1, 6) if side * side >= count)
    side = rng.randint(least, min(6, least + 2))
    items = [
        _digit(rng, cell, rng.choice(colors), handwriting, (row, column))
        for row, column, cell in _cells(rng, size, count, side, side)
    ]
    return items, side, side


def _mixed(
    rng: random.Random, size: int, colors: Sequence[str], handwriting: Sequence[int]
) -> tuple[list[Item], int, int]:
    side = rng.randint(2, 6)
    count = rng.randint(side, side * side)
    sign_colors = rng.sample(colors, len(colors))
    items = []
    for row, column, cell in _cells(rng, size, count, side, side):
        fraction = rng.random()
        if fraction < 0.25 and sign_colors:
            items.append(_sign(rng, cell, sign_colors.pop(), _sign_text(rng, 2), 0.95, (row, column)))
        elif fraction < 0.4:
            items.append(_digit(rng, cell, rng.choice(colors), handwriting, (row, column)))
        else:
            box = _square_in(rng, cell, rng.uniform(0.5, 0.95))
            shape = rng.choice(SHAPES)
            items.append(Item("object", box, rng.choice(colors), shape=shape, row=row, column=column))
    return items, side, side


_LAYOUTS: dict[
    str, Callable[[random.Random, int, Sequence[str], Sequence[int]], tuple[list[Item], int, int]]
] = {
    "objects": _objects,
    "table": _table,
    "signs": _signs,
    "digits": _digits,
    "mixed": _mixed,
}
LAYOUTS = {"objects": 7.0, "table": 5.0, "signs": 4.0, "digits": 2.0, "mixed": 3.0}
