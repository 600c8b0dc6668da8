"""Questions on a scene, one function per kind. Each returns a question that the scene answers, or None."""

import random
from collections.abc import Callable

from experiments.tasks.scenes.object_questions import (
    ask_color,
    ask_count,
    ask_count_half,
    ask_dominant,
    ask_existence,
    ask_existence_half,
    ask_neighbor,
    ask_shape,
    ask_total,
)
from experiments.tasks.scenes.question import Question, unique
from experiments.tasks.scenes.reading_questions import (
    ask_cell,
    ask_digit,
    ask_sign,
    ask_sign_color,
    ask_table_size,
)
from experiments.tasks.scenes.scene import Scene
from experiments.tasks.scenes.vocabulary import PLACES


def ask_background(scene: Scene, rng: random.Random) -> Question:
    return Question("background", scene.look.say("background"), scene.ground)


def ask_position(scene: Scene, rng: random.Random) -> Question | None:
    named = [
        (f"{item.color} {item.shape}", item)
        for item in unique(scene.of_type("object"), lambda item: (item.color, item.shape))
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


# How often a kind is tried, relative to the others: reading kinds often, as their pictures offer little else.
KINDS: dict[Callable[[Scene, random.Random], Question | None], int] = {
    ask_background: 1,
    ask_dominant: 1,
    ask_existence: 2,
    ask_existence_half: 2,
    ask_count: 2,
    ask_count_half: 4,
    ask_total: 1,
    ask_shape: 2,
    ask_color: 2,
    ask_position: 2,
    ask_neighbor: 4,
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
