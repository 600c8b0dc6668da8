"""Questions about a scene, one function per question type.

Each function `ask_*(scene, rng)` returns a question that asks for what the first line of its docstring names,
or None if the scene has no question of this type.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

from experiments.tasks.scenes.scene import (
    COLORS,
    HALVES,
    PLACES,
    SHAPES,
    STEPS,
    Item,
    Question,
    Scene,
    smallest,
    unique,
)

PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
MAX_COUNT = 6  # larger counts would test arithmetic rather than vision


def ask_dominant(scene: Scene, rng: random.Random) -> Question | None:
    """Color of most objects, or of most characters; None unless it leads by a factor of 1.5."""
    for type, noun in (("object", "objects"), ("character", "characters")):
        items = scene.of_type(type)
        ranking = Counter(item.color for item in items).most_common(2)
        if len(items) >= 3 and ranking[0][1] >= 1.5 * (ranking[1][1] if len(ranking) > 1 else 0):
            return Question("dominant", scene.say("dominant", noun=noun), ranking[0][0], smallest(items))
    return None


def ask_existence(scene: Scene, rng: random.Random) -> Question | None:
    """Whether the scene has an object of a color and shape."""
    objects = scene.of_type("object")
    if not objects:
        return None
    present = {(item.color, item.shape) for item in objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(present))
        answer = "yes"
    else:
        # If possible, a color and a shape that are both in the scene, but not on the same object.
        near_misses = set(product({color for color, _ in present}, {shape for _, shape in present})) - present
        color, shape = rng.choice(sorted(near_misses or set(product(COLORS, SHAPES)) - present))
        answer = "no"
    text = scene.say("existence", thing=_with_article(color, shape))
    return Question("existence", text, answer, smallest(objects))


def ask_existence_half(scene: Scene, rng: random.Random) -> Question | None:
    """Whether an object of the image is in one half of it; for "no", the object is in the other half."""
    objects = scene.of_type("object")
    half = rng.choice(list(HALVES))
    if (inside := _in_half(objects, half, scene.size)) is None:
        return None
    present = {(item.color, item.shape) for item in inside}
    absent = {(item.color, item.shape) for item in objects} - present
    candidates, answer = (present, "yes") if rng.random() < 0.5 else (absent, "no")
    if not candidates:
        return None
    color, shape = rng.choice(sorted(candidates))
    text = scene.say("existence_half", thing=_with_article(color, shape), half=half)
    return Question("existence_half", text, answer, smallest(objects))


def _in_half(items: list[Item], half: str, size: int) -> list[Item] | None:
    """Return the items with their center in a half; None if a center is too close to the middle."""
    axis, far = HALVES[half]
    sides = [item.center[axis] / size - 0.5 for item in items]
    if not items or min(map(abs, sides)) < 0.01:
        return None
    return [item for item, side in zip(items, sides, strict=True) if (side > 0) == far]


def _describe(objects: list[Item], rng: random.Random) -> tuple[str, Callable[[Item], bool]]:
    """Return a random description, color, shape or both, as a noun and as a predicate on items."""
    item, form = rng.choice(objects), rng.randrange(3)
    noun = (f"{item.color} objects", PLURALS[item.shape], f"{item.color} {PLURALS[item.shape]}")[form]

    def fits(other: Item) -> bool:
        return (form == 1 or other.color == item.color) and (form == 0 or other.shape == item.shape)

    return noun, fits


def ask_count(scene: Scene, rng: random.Random) -> Question | None:
    """Number of objects that fit a description."""
    objects = scene.of_type("object")
    if not objects:
        return None
    noun, fits = _describe(objects, rng)
    count = sum(map(fits, objects))
    if count > MAX_COUNT:
        return None
    return Question("count", scene.say("count", noun=noun), str(count), smallest(objects))


def ask_count_half(scene: Scene, rng: random.Random) -> Question | None:
    """Number of objects in one half that fit a description; pooling keeps counts but loses positions."""
    objects = scene.of_type("object")
    half = rng.choice(list(HALVES))
    if len(objects) < 2 or (inside := _in_half(objects, half, scene.size)) is None:
        return None
    noun, fits = _describe(objects, rng)
    count = sum(map(fits, inside))
    if count > MAX_COUNT:
        return None
    text = scene.say("count_half", noun=noun, half=half)
    return Question("count_half", text, str(count), smallest(objects))


def ask_total(scene: Scene, rng: random.Random) -> Question | None:
    """Number of objects, signs or handwritten digits."""
    for type, noun in (("object", "objects"), ("sign", "signs"), ("digit", "handwritten digits")):
        items = scene.of_type(type)
        if items and rng.random() < 0.6:
            return Question("total", scene.say("count", noun=noun), str(len(items)), smallest(items))
    return None


def ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    """Shape of the only object of a color."""
    candidates = unique(scene.of_type("object"), lambda item: item.color)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("shape", scene.say("shape", color=item.color), item.shape, item.height)


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    """Color of the only object of a shape."""
    candidates = unique(scene.of_type("object"), lambda item: item.shape)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("color", scene.say("color", shape=item.shape), item.color, item.height)


def ask_neighbor(scene: Scene, rng: random.Random) -> Question | None:
    """Color or shape of the object next to the only object of a color and shape."""
    pairs = [
        (item, relation, other)
        for item in unique(scene.of_type("object"), lambda item: (item.color, item.shape))
        for relation in STEPS
        if (other := scene.beside(item, relation)) and other.type == "object"
    ]
    if not pairs:
        return None
    item, relation, other = rng.choice(pairs)
    what, answer = ("color", other.color) if rng.random() < 0.5 else ("shape", other.shape)
    text = scene.say(f"neighbor_{what}", relation=relation, name=f"{item.color} {item.shape}")
    return Question("neighbor", text, answer, min(item.height, other.height))


def _with_article(color: str, shape: str) -> str:
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}"


# Most cells are named by their position near an edge: "row 9" would reveal the size of the table.
NEAR, SHARE_NEAR = 3, 0.75


def ask_cell(scene: Scene, rng: random.Random) -> Question | None:
    """Character in a cell of a table."""
    characters = scene.of_type("character")
    if not characters:
        return None
    if rng.random() < SHARE_NEAR:
        row, row_name = _near_edge(scene.num_rows, "row", "bottom", rng)
        column, column_name = _near_edge(scene.num_columns, "column", "right", rng)
        item = next(item for item in characters if (item.row, item.column) == (row, column))
    else:
        item = rng.choice(characters)
        row_name, column_name = f"row {item.row}", f"column {item.column}"
    text = scene.say("cell", row=row_name, column=column_name)
    return Question("cell", text, item.text, item.height)


def _near_edge(count: int, noun: str, end: str, rng: random.Random) -> tuple[int, str]:
    """Return the number of a row or column near an edge, and its name in a question."""
    number = rng.randint(1, min(NEAR, count))
    if rng.random() < 0.5:
        return number, f"{noun} {number}"
    return count + 1 - number, f"{noun} {number} from the {end}"


def ask_table_size(scene: Scene, rng: random.Random) -> Question | None:
    """Number of rows or columns of a table."""
    if scene.layout != "table":
        return None
    what, count = rng.choice((("rows", scene.num_rows), ("columns", scene.num_columns)))
    return Question("table_size", scene.say("count", noun=what), str(count), scene.items[0].height)


def ask_sign(scene: Scene, rng: random.Random) -> Question | None:
    """Word or number on the sign of a given color."""
    signs = scene.of_type("sign")
    if not signs:
        return None
    item = rng.choice(signs)
    what = "number" if item.text.isdigit() else "word"
    return Question(f"sign_{what}", scene.say("sign", what=what, color=item.color), item.text, item.height)


def ask_sign_color(scene: Scene, rng: random.Random) -> Question | None:
    """Color of the sign with a given text."""
    candidates = unique(scene.of_type("sign"), lambda item: item.text)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("sign_color", scene.say("sign_color", text=item.text), item.color, item.height)


def ask_digit(scene: Scene, rng: random.Random) -> Question | None:
    """Value of the only handwritten digit, or of the only one of a given color."""
    digits = scene.of_type("digit")
    if len(digits) == 1:
        return Question("digit", scene.say("digit"), digits[0].text, digits[0].height)
    candidates = unique(digits, lambda item: item.color)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("digit", scene.say("digit_color", color=item.color), item.text, item.height)


def ask_background(scene: Scene, rng: random.Random) -> Question:
    """Color of the background."""
    return Question("background", scene.say("background"), scene.ground)


def ask_position(scene: Scene, rng: random.Random) -> Question | None:
    """Ninth of the image with the center of an object or sign."""
    named = [
        (f"{item.color} {item.shape}", item)
        for item in unique(scene.of_type("object"), lambda item: (item.color, item.shape))
    ]
    named += [(f"{item.color} sign", item) for item in scene.of_type("sign")]
    candidates = []
    for name, item in named:
        column, row = (3 * coordinate / scene.size for coordinate in item.center)
        # Centers close to the border between two thirds are left out as ambiguous.
        if min(abs(value - line) for value in (column, row) for line in (1, 2)) > 0.12:
            candidates.append((name, item, PLACES[int(row)][int(column)]))
    if not candidates:
        return None
    name, item, place = rng.choice(candidates)
    return Question("position", scene.say("position", name=name), place, item.height)


ASKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "background": ask_background,
    "dominant": ask_dominant,
    "existence": ask_existence,
    "existence_half": ask_existence_half,
    "count": ask_count,
    "count_half": ask_count_half,
    "total": ask_total,
    "shape": ask_shape,
    "color": ask_color,
    "position": ask_position,
    "neighbor": ask_neighbor,
    "cell": ask_cell,
    "table_size": ask_table_size,
    "sign": ask_sign,
    "sign_color": ask_sign_color,
    "digit": ask_digit,
}
# Relative frequency at which question types are tried; high for reading, the only type for many images.
KINDS: dict[str, float] = {
    "background": 1,
    "dominant": 1,
    "existence": 2,
    "existence_half": 2,
    "count": 2,
    "count_half": 6,
    "total": 1,
    "shape": 2,
    "color": 2,
    "position": 2,
    "neighbor": 4,
    "cell": 10,
    "table_size": 1,
    "sign": 6,
    "sign_color": 3,
    "digit": 5,
}


def ask(scene: Scene, rng: random.Random, count: int, kinds: Mapping[str, float] = KINDS) -> list[Question]:
    """Return 1 to `count` different questions on a scene; `kinds` has the relative frequencies of types."""
    names, weights = list(kinds), list(kinds.values())
    questions: dict[str, Question] = {}
    for _ in range(12 * count):
        question = ASKERS[rng.choices(names, weights)[0]](scene, rng)
        if question and question.text not in questions:
            questions[question.text] = question
            if len(questions) == count:
                break
    # Some images, of a few handwritten digits in one color, have hardly any questions.
    return list(questions.values()) or [ask_background(scene, rng)]
