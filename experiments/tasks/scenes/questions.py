"""Questions on a scene, one function per kind. Each returns a question that the scene answers, or None."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from experiments.tasks.scenes.scene import STEPS, Item, Scene
from experiments.tasks.scenes.vocabulary import COLORS, PLACES, SHAPES

PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
MAX_COUNT = 12


@dataclass(frozen=True, slots=True)
class Question:
    """`detail_size`: height in pixels of what has to be made out; 0 when that is the picture as a whole."""

    kind: str
    text: str
    answer: str
    detail_size: int = 0


def _unique(items: list[Item], key: Callable[[Item], object]) -> list[Item]:
    counts = Counter(key(item) for item in items)
    return [item for item in items if counts[key(item)] == 1]


def _smallest(items: list[Item]) -> int:
    return min((item.height for item in items), default=0)


def _with_article(color: str, shape: str) -> str:
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}"


def ask_background(scene: Scene, rng: random.Random) -> Question:
    return Question("background", scene.look.say("background"), scene.ground)


def ask_dominant(scene: Scene, rng: random.Random) -> Question | None:
    """The color of most things of the most frequent type; asked only where the lead is clear."""
    for type, noun in (("object", "objects"), ("character", "characters")):
        items = scene.of_type(type)
        ranking = Counter(item.color for item in items).most_common(2)
        if len(items) >= 3 and ranking[0][1] >= 1.5 * (ranking[1][1] if len(ranking) > 1 else 0):
            return Question(
                "dominant", scene.look.say("dominant", noun=noun), ranking[0][0], _smallest(items)
            )
    return None


def ask_existence(scene: Scene, rng: random.Random) -> Question | None:
    objects = scene.of_type("object")
    if not objects:
        return None
    there = {(item.color, item.shape) for item in objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(there))
        return Question(
            "existence",
            scene.look.say("existence", thing=_with_article(color, shape)),
            "yes",
            _smallest(objects),
        )
    # A color that is there with a shape that is there, but not together, wherever the scene has one.
    near = set(product({color for color, _ in there}, {shape for _, shape in there})) - there
    color, shape = rng.choice(sorted(near or set(product(COLORS, SHAPES)) - there))
    return Question(
        "existence", scene.look.say("existence", thing=_with_article(color, shape)), "no", _smallest(objects)
    )


def ask_count(scene: Scene, rng: random.Random) -> Question | None:
    """How many things fit a description: a color, a shape, or both."""
    objects = scene.of_type("object")
    if not objects:
        return None
    item, form = rng.choice(objects), rng.randrange(3)
    wanted = [
        other
        for other in objects
        if (form == 1 or other.color == item.color) and (form == 0 or other.shape == item.shape)
    ]
    if len(wanted) > MAX_COUNT:
        return None
    noun = (f"{item.color} objects", PLURALS[item.shape], f"{item.color} {PLURALS[item.shape]}")[form]
    return Question("count", scene.look.say("count", noun=noun), str(len(wanted)), _smallest(objects))


def ask_total(scene: Scene, rng: random.Random) -> Question | None:
    for type, noun in (("object", "objects"), ("sign", "signs"), ("digit", "handwritten digits")):
        items = scene.of_type(type)
        if items and rng.random() < 0.6:
            return Question("total", scene.look.say("count", noun=noun), str(len(items)), _smallest(items))
    return None


def ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    candidates = _unique(scene.of_type("object"), lambda item: item.color)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("shape", scene.look.say("shape", color=item.color), item.shape, item.height)


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    candidates = _unique(scene.of_type("object"), lambda item: item.shape)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("color", scene.look.say("color", shape=item.shape), item.color, item.height)


def ask_position(scene: Scene, rng: random.Random) -> Question | None:
    named = [
        (f"{item.color} {item.shape}", item)
        for item in _unique(scene.of_type("object"), lambda item: (item.color, item.shape))
    ]
    named += [(f"{item.color} sign", item) for item in scene.of_type("sign")]
    settled = []
    for name, item in named:
        column, row = (3 * coordinate / scene.size for coordinate in item.center)
        # Centers near the border between two thirds have no fair answer.
        if min(abs(value - line) for value in (column, row) for line in (1, 2)) > 0.12:
            settled.append((name, item, PLACES[int(row)][int(column)]))
    if not settled:
        return None
    name, item, place = rng.choice(settled)
    return Question("position", scene.look.say("position", name=name), place, item.height)


def ask_neighbor(scene: Scene, rng: random.Random) -> Question | None:
    """The color or shape of what stands beside the one object of a color and shape."""
    pairs = [
        (item, relation, other)
        for item in _unique(scene.of_type("object"), lambda item: (item.color, item.shape))
        for relation in STEPS
        if (other := scene.beside(item, relation)) and other.type == "object"
    ]
    if not pairs:
        return None
    item, relation, other = rng.choice(pairs)
    what, answer = ("color", other.color) if rng.random() < 0.5 else ("shape", other.shape)
    text = scene.look.say(f"neighbor_{what}", relation=relation, name=f"{item.color} {item.shape}")
    return Question("neighbor", text, answer, min(item.height, other.height))


def ask_cell(scene: Scene, rng: random.Random) -> Question | None:
    characters = scene.of_type("character")
    if not characters:
        return None
    item = rng.choice(characters)
    text = scene.look.say("cell", row=item.row, column=item.column)
    return Question("cell", text, item.text, item.height)


def ask_table_size(scene: Scene, rng: random.Random) -> Question | None:
    if scene.layout != "table":
        return None
    what, count = rng.choice((("rows", scene.num_rows), ("columns", scene.num_columns)))
    return Question("table_size", scene.look.say("count", noun=what), str(count), scene.items[0].height)


def ask_sign(scene: Scene, rng: random.Random) -> Question | None:
    signs = scene.of_type("sign")
    if not signs:
        return None
    item = rng.choice(signs)
    what = "number" if item.text.isdigit() else "word"
    return Question(
        f"sign_{what}", scene.look.say("sign", what=what, color=item.color), item.text, item.height
    )


def ask_sign_color(scene: Scene, rng: random.Random) -> Question | None:
    candidates = _unique(scene.of_type("sign"), lambda item: item.text)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("sign_color", scene.look.say("sign_color", text=item.text), item.color, item.height)


def ask_digit(scene: Scene, rng: random.Random) -> Question | None:
    digits = scene.of_type("digit")
    if len(digits) == 1:
        return Question("digit", scene.look.say("digit"), digits[0].text, digits[0].height)
    candidates = _unique(digits, lambda item: item.color)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("digit", scene.look.say("digit_color", color=item.color), item.text, item.height)


# How often a kind is tried, relative to the others: reading kinds often, as their pictures offer little else.
KINDS: dict[Callable[[Scene, random.Random], Question | None], int] = {
    ask_background: 1,
    ask_dominant: 1,
    ask_existence: 2,
    ask_count: 3,
    ask_total: 1,
    ask_shape: 2,
    ask_color: 2,
    ask_position: 2,
    ask_neighbor: 3,
    ask_cell: 10,
    ask_table_size: 1,
    ask_sign: 6,
    ask_sign_color: 3,
    ask_digit: 5,
}


def ask(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """One to `count` different questions on a scene, of mixed kinds."""
    functions, weights = list(KINDS), list(KINDS.values())
    asked: dict[str, Question] = {}
    for _ in range(12 * count):
        question = rng.choices(functions, weights)[0](scene, rng)
        if question and question.text not in asked:
            asked[question.text] = question
            if len(asked) == count:
                break
    # Some pictures, of a few handwritten digits in one color, offer next to nothing.
    return list(asked.values()) or [ask_background(scene, rng)]
