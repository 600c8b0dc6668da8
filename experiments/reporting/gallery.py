"""Gallery of test samples for the report, in the style of M3's Figure 4 and with a predictor."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from experiments.evaluation.comparison import DefaultPrice
from experiments.evaluation.fronts import Columns, Floats, find_smallest_right
from experiments.evaluation.needs import list_types, split_by_type
from experiments.reporting.views import CardViews, shrink_image
from m3_backbone.ladder import find_repeats
from m3_backbone.outcomes.table import OutcomeTable

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
    """Answer of the backbone at one scale, its score, and the predictor's estimate, if there is a predictor.

    `confidence` is that of the backbone in its answer, None if imported outcomes have none. `views` are JSON
    for the lightbox (`views.View`).
    """

    scale: int
    visual_tokens: int | str  # name of the option in imported outcomes
    answer: str
    score: float
    estimate: float | None
    is_chosen: bool
    confidence: float | None = None
    views: str = "[]"


@dataclass(frozen=True)
class TriedPath:
    """Scales that a cascade tries for a sample at its default price, by visual tokens, and the last score."""

    name: str
    tried: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Card:
    """A sample of the gallery; `picture` is a data URI, or None if the image has a `problem`.

    `pictures` are further data URIs, which `views` of the answers show. `paths` are those of cascades.
    """

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
    pictures: tuple[str, ...] = ()
    paths: tuple[TriedPath, ...] = ()

    @property
    def chosen(self) -> ScaleAnswer:
        """The answer at the scale that the predictor chooses."""
        return next(answer for answer in self.answers if answer.is_chosen)

    @property
    def outcome(self) -> str:
        """Whether the chosen answer is `right`, `partly` right or `wrong`."""
        score = self.chosen.score
        return "right" if score >= 1 else "partly" if score > 0 else "wrong"


@dataclass(frozen=True, eq=False)
class Gallery:
    """Settings of the gallery of a report: up to `per_category` samples per category, drawn with `seed`.

    `read_image` returns the image of an id; if it raises OSError, the message is shown instead. `view`
    returns the views of a row's image for the lightbox.
    """

    read_image: Callable[[str], Image.Image]
    per_category: int = 8
    seed: int = 0
    view: Callable[[int, Image.Image], CardViews] | None = None


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
    estimates: Floats | None,
    read_image: Callable[[str], Image.Image],
    view: Callable[[int, Image.Image], CardViews] | None = None,
    cascades: Mapping[str, DefaultPrice] | None = None,
) -> list[Card]:
    """Return the cards of samples; an image that cannot be read (OSError) is replaced by the message.

    `view` returns the views of a row's image. `cascades` are default prices by name, whose paths are shown.
    """
    categories, types = find_categories(test.score, choice), list_types(test)
    has_confidence = test.options is None or test.options.has_confidence
    cards = []
    for row in rows:
        views = CardViews((), ())
        try:
            image = read_image(test.image_id[row])
            picture, (width, height), problem = *shrink_image(image), ""
            views = view(row, image) if view is not None else views
        except OSError as error:
            picture, (width, height), problem = None, (0, 0), str(error)
        answers = [
            ScaleAnswer(
                scale=scale,
                visual_tokens=int(test.visual_tokens[row, column]) if test.options is None else str(scale),
                answer=test.answer[row][column],
                score=float(test.score[row, column]),
                estimate=None if estimates is None else float(estimates[row, column]),
                is_chosen=bool(column == choice[row]),
                confidence=float(test.confidence[row, column]) if has_confidence else None,
                views=json.dumps([shown.to_json() for shown in views.at_scales[column]])
                if views.at_scales
                else "[]",
            )
            for column, scale in enumerate(test.scales)
        ]
        cards.append(
            Card(
                sample_id=test.sample_id[row],
                question_type=str(types[row]),
                question=test.question[row],
                references=tuple(dict.fromkeys(test.references[row])),
                categories=tuple(name for name, shown in categories.items() if shown[row]),
                answers=tuple(answers),
                picture=picture,
                width=width,
                height=height,
                problem=problem,
                pictures=views.pictures,
                paths=tuple(
                    trace_path(test, row, name, default) for name, default in (cascades or {}).items()
                ),
            )
        )
    return cards


def trace_path(test: OutcomeTable, row: int, name: str, default: DefaultPrice) -> TriedPath:
    """Return the scales that a cascade tries for a sample; coinciding scales are tried once."""
    start, stop = int(default.start[row]), int(default.choice[row])
    repeats = find_repeats(test.visual_tokens[[row]])[0]
    tried = [column for column in range(start, stop + 1) if column == start or not repeats[column]]
    labels = [
        str(test.scales[column] if test.options is not None else test.visual_tokens[row, column])
        for column in tried
    ]
    return TriedPath(name, tuple(labels), float(test.score[row, stop]))


def _interleave(queues: list[list[int]]) -> Iterator[int]:
    for heads in itertools.zip_longest(*queues):
        yield from (row for row in heads if row is not None)
