"""Questions on a scene, one function per kind. Each returns a question that the scene answers, or None."""

import random
from collections.abc import Callable, Mapping

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
    "sign": ask_sign,  # its word or its number
    "sign_color": ask_sign_color,
    "digit": ask_digit,
}
# How often a kind is tried, relative to the others: reading kinds often, as their pictures offer little else.
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
    """One to `count` different questions on a scene, of mixed kinds, each tried as often as `kinds` says."""
    names, weights = list(kinds), list(kinds.values())
    asked: dict[str, Question] = {}
    for _ in range(12 * count):
        question = ASKERS[rng.choices(names, weights)[0]](scene, rng)
        if question and question.text not in asked:
            asked[question.text] = question
            if len(asked) == count:
                break
    # Some pictures, of a few handwritten digits in one color, offer next to nothing.
    return list(asked.values()) or [ask_background(scene, rng)]
