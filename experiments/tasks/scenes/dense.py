"""Labels of every patch of a scene, for pretraining the vision tower of the embedded backbone.

M3 starts from CLIP's tower; an embedded backbone needs a tower of its own. The label of a patch describes the
item that covers most of it: its type, its position and its neighbors, all of which questions ask for. With a
tower that encodes these, the decoder learns to answer from a tenth of the images.
"""

from itertools import product

import numpy as np

from experiments.tasks.scenes.render import sign_text_box
from experiments.tasks.scenes.scene import COLORS, GLYPHS, MAX_TABLE_SIDE, SHAPES, STEPS, Item, Look, Scene

TYPES = ("ground", "object", "character", "sign", "digit")
_COLOR_OF = {color: index for index, color in enumerate(COLORS)}
_PAIRS = {pair: index for index, pair in enumerate(product(COLORS, SHAPES), 1)}
BODY, CENTER = 1, 2
# Number of classes per head. Class 0 is "does not apply", except for color, which the ground has too.
HEADS = {
    "item": len(TYPES),
    "color": len(COLORS),
    "shape": len(SHAPES) + 1,
    "glyph": len(GLYPHS) + 1,
    "row": MAX_TABLE_SIDE + 1,
    "column": MAX_TABLE_SIDE + 1,
    "row from the bottom": MAX_TABLE_SIDE + 1,
    "column from the right": MAX_TABLE_SIDE + 1,
    "place": 10,  # the ninth of the image with the center of the item
    "part": 3,  # whether the patch holds the center of the item, which makes items countable
    "pair": len(_PAIRS) + 1,  # color and shape of an object, which questions name together
    **{f"pair {relation}": len(_PAIRS) + 1 for relation in STEPS},  # those of the adjacent object
}
_GLYPH, _COLUMN, _PART = (list(HEADS).index(name) for name in ("glyph", "column", "part"))
# Weight of the area of a glyph: with it, a glyph outweighs its sign in the patches that it touches.
GLYPH_WEIGHT = 4.0
LEAST_SHARE = 0.06  # of a patch that an item has to cover


def _pair_of(item: Item | None) -> int:
    return _PAIRS[item.color, item.shape] if item and item.type == "object" else 0


def _place_of(item: Item, size: int) -> int:
    column, row = (int(3 * coordinate / size) for coordinate in item.center)
    return 3 * row + column + 1


def _labels_of(item: Item, scene: Scene) -> list[int]:
    """Return one label per head; neighbors are labelled for objects only."""
    return [
        TYPES.index(item.type),
        _COLOR_OF[item.color],
        SHAPES.index(item.shape) + 1 if item.shape else 0,
        GLYPHS.index(item.text) + 1 if item.type in ("character", "digit") else 0,
        item.row,
        item.column,
        scene.num_rows + 1 - item.row,
        scene.num_columns + 1 - item.column,
        _place_of(item, scene.size),
        BODY,
        _pair_of(item),
        *(_pair_of(scene.beside(item, relation)) if item.type == "object" else 0 for relation in STEPS),
    ]


def _glyphs_of(
    sign: Item, look: Look, labels: list[int]
) -> list[tuple[tuple[float, float, float, float], list[int]]]:
    """Return (box, labels) of each glyph of a sign: labels of the sign, with glyph and position as column."""
    left, top, right, bottom = sign_text_box(sign, look)
    width = (right - left) / len(sign.text)
    glyphs = []
    for index, glyph in enumerate(sign.text):
        glyph_labels = labels.copy()
        glyph_labels[_GLYPH], glyph_labels[_COLUMN] = GLYPHS.index(glyph) + 1, index + 1
        glyphs.append(((left + index * width, top, left + (index + 1) * width, bottom), glyph_labels))
    return glyphs


def label_patches(scene: Scene, grid: int) -> np.ndarray:
    """Return the labels of every patch, `[grid * grid, len(HEADS)]` int64, in reading order."""
    boxes: list[tuple[float, float, float, float]] = []
    labels, weights = [], []
    for item in scene.items:
        item_labels = _labels_of(item, scene)
        boxes.append(item.box)
        labels.append(item_labels)
        weights.append(1.0)
        if item.type == "sign":
            for box, glyph_labels in _glyphs_of(item, scene.look, item_labels):
                boxes.append(box)
                labels.append(glyph_labels)
                weights.append(GLYPH_WEIGHT)
    side = scene.size / grid
    edges = np.arange(grid + 1) * side
    left, top, right, bottom = np.array(boxes, np.float32).T
    across = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    down = np.minimum(bottom, edges[1:, None]) - np.maximum(top, edges[:-1, None])
    area = np.clip(down, 0, None)[:, None] * np.clip(across, 0, None)[None] * np.array(weights, np.float32)
    area = area.reshape(grid * grid, -1)
    best = area.argmax(1)
    covered = area[np.arange(grid * grid), best] > LEAST_SHARE * side**2
    ground = np.zeros(len(HEADS), np.int64)
    ground[list(HEADS).index("color")] = _COLOR_OF[scene.ground]
    patches = np.where(covered[:, None], np.array(labels)[best], ground)
    for item in scene.items:
        column, row = (int(coordinate / side) for coordinate in item.center)
        if covered[row * grid + column]:
            patches[row * grid + column, _PART] = CENTER
    return patches.astype(np.int64)
