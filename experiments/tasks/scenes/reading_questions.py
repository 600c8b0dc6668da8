"""Questions that ask to read: cells of tables, signs, handwritten digits."""

import random

from experiments.tasks.scenes.question import Question, unique
from experiments.tasks.scenes.scene import Scene

# Cells are mostly asked for by their place near an edge: a row 9 would give the size of the table away.
NEAR, SHARE_NEAR = 3, 0.75


def ask_cell(scene: Scene, rng: random.Random) -> Question | None:
    characters = scene.of_type("character")
    if not characters:
        return None
    if rng.random() < SHARE_NEAR:
        row, asked_row = _near_edge(scene.num_rows, "row", "bottom", rng)
        column, asked_column = _near_edge(scene.num_columns, "column", "right", rng)
        item = next(each for each in characters if (each.row, each.column) == (row, column))
    else:
        item = rng.choice(characters)
        asked_row, asked_column = f"row {item.row}", f"column {item.column}"
    text = scene.look.say("cell", row=asked_row, column=asked_column)
    return Question("cell", text, item.text, item.height)


def _near_edge(count: int, noun: str, end: str, rng: random.Random) -> tuple[int, str]:
    """A row or column near either edge: its number, and how it is asked for."""
    number = rng.randint(1, min(NEAR, count))
    if rng.random() < 0.5:
        return number, f"{noun} {number}"
    return count + 1 - number, f"{noun} {number} from the {end}"


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
    candidates = unique(scene.of_type("sign"), lambda item: item.text)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("sign_color", scene.look.say("sign_color", text=item.text), item.color, item.height)


def ask_digit(scene: Scene, rng: random.Random) -> Question | None:
    digits = scene.of_type("digit")
    if len(digits) == 1:
        return Question("digit", scene.look.say("digit"), digits[0].text, digits[0].height)
    candidates = unique(digits, lambda item: item.color)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question("digit", scene.look.say("digit_color", color=item.color), item.text, item.height)
