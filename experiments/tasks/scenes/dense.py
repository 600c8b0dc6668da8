"""What covers each patch of a picture: the labels on which the vision tower learns to see.

M3 starts from CLIP's tower; an embedded model has to make its own. The renderer knows what lies where, so
each patch carries the type, color, shape and glyph of the item that covers most of it.
"""

import numpy as np

from experiments.tasks.scenes.layout import Item, Scene
from experiments.tasks.scenes.render import sign_text_box
from experiments.tasks.scenes.vocabulary import COLORS, GLYPHS, MAX_TABLE_SIDE, SHAPES

TYPES = ("ground", "object", "character", "sign", "digit")
_COLOR_OF = {color: index for index, color in enumerate(COLORS)}
# Classes per head. Class 0 is "does not apply", but for the color, which the ground has too.
HEADS = {
    "item": len(TYPES),
    "color": len(COLORS),
    "shape": len(SHAPES) + 1,
    "glyph": len(GLYPHS) + 1,
    "row": MAX_TABLE_SIDE + 1,
    "column": MAX_TABLE_SIDE + 1,
    "place": 10,  # the ninth of the picture that the item's center lies in
}
# A glyph lies on a sign and is thinner than it: weighted up, it wins the patches that it touches.
GLYPH_WEIGHT = 4.0
LEAST_SHARE = 0.06


def _labels_of(item: Item, size: int) -> tuple[int, ...]:
    return (
        TYPES.index(item.type),
        _COLOR_OF[item.color],
        SHAPES.index(item.shape) + 1 if item.shape else 0,
        GLYPHS.index(item.text) + 1 if item.type in ("character", "digit") else 0,
        item.row,
        item.column,
        _place_of(item, size),
    )


def _place_of(item: Item, size: int) -> int:
    column, row = (int(3 * coordinate / size) for coordinate in item.center)
    return 3 * row + column + 1


def _glyphs_of(sign: Item, size: int) -> list[tuple[tuple[float, float, float, float], tuple[int, ...]]]:
    """A sign's glyphs: labelled with the sign's color, and with their place in the text as the column."""
    left, top, right, bottom = sign_text_box(sign)
    width = (right - left) / len(sign.text)
    kind, color, place = TYPES.index("sign"), _COLOR_OF[sign.color], _place_of(sign, size)
    return [
        (
            (left + index * width, top, left + (index + 1) * width, bottom),
            (kind, color, 0, GLYPHS.index(glyph) + 1, 0, index + 1, place),
        )
        for index, glyph in enumerate(sign.text)
    ]


def label_patches(scene: Scene, grid: int) -> np.ndarray:
    """Labels of every patch, `[grid * grid, len(HEADS)]` int64, patches in reading order."""
    boxes: list[tuple[float, float, float, float]] = []
    labels, weights = [], []
    for item in scene.items:
        boxes.append(item.box)
        labels.append(_labels_of(item, scene.size))
        weights.append(1.0)
        if item.type == "sign":
            for box, label in _glyphs_of(item, scene.size):
                boxes.append(box)
                labels.append(label)
                weights.append(GLYPH_WEIGHT)
    edges = np.arange(grid + 1) * (scene.size / grid)
    left, top, right, bottom = np.array(boxes, np.float32).T
    across = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    down = np.minimum(bottom, edges[1:, None]) - np.maximum(top, edges[:-1, None])
    area = np.clip(down, 0, None)[:, None] * np.clip(across, 0, None)[None] * np.array(weights, np.float32)
    area = area.reshape(grid * grid, -1)
    best = area.argmax(1)
    covered = area[np.arange(grid * grid), best] > LEAST_SHARE * (scene.size / grid) ** 2
    ground = np.array((0, _COLOR_OF[scene.ground], 0, 0, 0, 0, 0))
    return np.where(covered[:, None], np.array(labels)[best], ground).astype(np.int64)
