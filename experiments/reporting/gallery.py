"""Gallery of test samples for the report, in the style of M3's Figure 4 and with a predictor."""

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

# Categories of samples and their labels in the report, in the order in which samples are selected.
CATEGORIES = {
    "fine": "correct at fine scales only",
    "well": "well chosen",
    "coarse": "too coarse",
    "costly": "too fine",
    "never": "wrong at every scale",
}


@dataclass(frozen=True)
class ScaleAnswer:
    """Answer of the backbone at one scale, its score, and the predictor's estimate."""

    scale: int
    visual_tokens: int | str  # name of the option in imported outcomes
    answer: str
    score: float
    estimate: float
    is_chosen: bool


@dataclass(frozen=True)
class Card:
    """A sample of the gallery; `picture` is a data URI, or None if the image has a `problem`."""

    sample_id: str
    question_type: str
    question: str
    references: tuple[str, ...]
    categories: tuple[str, ...]
    answers: tuple[ScaleAnswer, ...]
    picture: str | None
    width: int
    height: int
    problem: str


def find_categories(score: Floats, choice: Columns) -> dict[str, np.ndarray]:
    """Return the masks `[num_samples]` of the samples in each of `CATEGORIES`.

    `fine`: no scale in the coarser half of the ladder is sufficient. `well`: the choice is the smallest
    sufficient scale, but not the coarsest one. `coarse` and `costly`: the choice is coarser or finer than the
    smallest sufficient scale.
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
    """Return indices of up to `per_category` samples of each category, without duplicates, in random order.

    Samples are balanced over question types, and no image is repeated while others are available. Equal
    tables, choices and seeds give equal results.
    """
    rng = np.random.default_rng(seed)
    types = list(split_by_type(test).values())
    picked: list[int] = []
    seen_images: set[str] = set()
    for rows in find_categories(test.score, choice).values():
        candidates = list(
            _interleave([rng.permutation(np.flatnonzero(rows & of_type)).tolist() for of_type in types])
        )
        num_picked = 0
        for fresh_only in (True, False):
            for row in candidates:
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
    """Return the cards of samples; an image that cannot be read (OSError) is replaced by the message."""
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
                visual_tokens=int(test.visual_tokens[row, column]) if test.options is None else str(scale),
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
                question_type=test.kind[row] or test.task[row],
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
    """Return an image as a data URI of at most 320 pixels per side, and its size in pixels."""
    small = to_rgb(image).copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), small.size


def _interleave(queues: list[list[int]]) -> Iterator[int]:
    for heads in itertools.zip_longest(*queues):
        yield from (row for row in heads if row is not None)
