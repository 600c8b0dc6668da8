"""Picks test samples worth looking at and prepares them for a page: M3's Figure 4, with a predictor."""

import base64
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from experiments.evaluation.fronts import Columns, Floats, find_smallest_right
from experiments.evaluation.needs import split_by_type
from m3_backbone.images import to_rgb
from m3_backbone.outcomes.table import OutcomeTable

_LONGEST_SIDE = 320

# What a sample can show, with the words that the report says it in; the order in which places are given.
CATEGORIES = {
    "fine": "right only when fine",
    "well": "chosen well",
    "coarse": "chosen too coarse",
    "costly": "chosen too fine",
    "never": "wrong at every scale",
}


@dataclass(frozen=True)
class ScaleAnswer:
    """What the backbone said at one scale, how it was scored, and what the predictor had expected."""

    scale: int
    visual_tokens: int
    answer: str
    score: float
    estimate: float
    is_chosen: bool


@dataclass(frozen=True)
class Card:
    """One sample of the gallery. `picture` is a data URI, or None with the `problem` that the image has."""

    sample_id: str
    kind: str
    question: str
    references: tuple[str, ...]
    categories: tuple[str, ...]
    answers: tuple[ScaleAnswer, ...]
    picture: str | None
    width: int
    height: int
    problem: str


def find_categories(score: Floats, choice: Columns) -> dict[str, np.ndarray]:
    """Which samples show what, as masks `[num_samples]`, under the keys of `CATEGORIES`.

    `well`: the smallest sufficient scale, and not simply the coarsest one. `fine`: only from the finer half
    of the ladder on. A choice is too coarse or too fine against the smallest sufficient scale.
    """
    smallest = find_smallest_right(score)
    answerable = smallest >= 0
    return {
        "fine": smallest >= score.shape[1] / 2,
        "well": answerable & (choice == smallest) & (choice > 0),
        "coarse": answerable & (choice < smallest),
        "costly": answerable & (choice > smallest),
        "never": ~answerable,
    }


def pick_samples(test: OutcomeTable, choice: Columns, *, per_category: int, seed: int) -> list[int]:
    """Rows to show: of each category up to `per_category` that no earlier one has taken, in random order.

    Kinds of question take turns, and no image comes twice while there are others. The same table, choice and
    seed give the same rows.
    """
    rng = np.random.default_rng(seed)
    kinds = list(split_by_type(test).values())
    picked: list[int] = []
    seen_images: set[str] = set()
    for rows in find_categories(test.score, choice).values():
        turns = list(_take_turns([rng.permutation(np.flatnonzero(rows & kind)).tolist() for kind in kinds]))
        num_picked = 0
        for fresh_only in (True, False):
            for row in turns:
                if num_picked == per_category:
                    break
                if row in picked or (fresh_only and test.image_id[row] in seen_images):
                    continue
                picked.append(row)
                seen_images.add(test.image_id[row])
                num_picked += 1
    return picked


def build_cards(
    test: OutcomeTable,
    rows: list[int],
    *,
    choice: Columns,
    estimates: Floats,
    read_image: Callable[[str], Image.Image],
) -> list[Card]:
    """Cards of the given rows. An image that cannot be read (OSError) leaves its reason in its place."""
    categories = find_categories(test.score, choice)
    cards = []
    for row in rows:
        try:
            picture, (width, height), problem = *embed_image(read_image(test.image_id[row])), ""
        except OSError as error:
            picture, (width, height), problem = None, (0, 0), str(error)
        answers = [
            ScaleAnswer(
                scale=scale,
                visual_tokens=int(test.visual_tokens[row, column]),
                answer=test.answer[row][column],
                score=float(test.score[row, column]),
                estimate=float(estimates[row, column]),
                is_chosen=bool(column == choice[row]),
            )
            for column, scale in enumerate(test.scales)
        ]
        cards.append(
            Card(
                sample_id=test.sample_id[row],
                kind=test.kind[row] or test.task[row],
                question=test.question[row],
                references=tuple(dict.fromkeys(test.references[row])),
                categories=tuple(name for name, shown in categories.items() if shown[row]),
                answers=tuple(answers),
                picture=picture,
                width=width,
                height=height,
                problem=problem,
            )
        )
    return cards


def embed_image(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """An image as a data URI of at most 320 pixels a side, and its size in pixels."""
    small = to_rgb(image).copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), small.size


def _take_turns(queues: list[list[int]]) -> Iterator[int]:
    for turn in itertools.zip_longest(*queues):
        yield from (row for row in turn if row is not None)
