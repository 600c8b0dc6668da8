"""Question types in the report: scores, needed scales, choices and errors of the first predictor."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.evaluation.fronts import find_smallest_right
from experiments.evaluation.needs import (
    LEAST_SAMPLES,
    NeedMap,
    find_needed_column,
    pick_frequent,
    split_by_type,
)
from experiments.reporting.numbers import MISSING, format_percent, format_tokens
from experiments.reporting.page import cut_name
from experiments.reporting.tables import Table
from m3_backbone.outcomes.table import OutcomeTable

# Characters of an example question.
LONGEST_EXAMPLE = 90


@dataclass(frozen=True)
class TypeRow:
    """A question type: scores per scale, and choices of the first predictor at its default price.

    `needed` is the column of the smallest scale within a point of the best (`experiments.evaluation.needs`).
    `example` is a question of this type, empty for all questions.
    """

    question_type: str
    num_samples: int
    scores: tuple[float, ...]
    needed: int
    chosen: tuple[float, ...]
    tokens: str
    score: float
    smallest_right: float
    too_coarse: float
    too_fine: float
    wrong: float
    example: str = ""

    @property
    def is_few(self) -> bool:
        """Whether the questions are too few for a mean (`needs.LEAST_SAMPLES`)."""
        return self.num_samples < LEAST_SAMPLES


@dataclass(frozen=True)
class ConfusionRow:
    """Questions that need one scale (or that no scale answers) by chosen scale.

    `right` is the column of the needed scale; None if no scale answers them.
    """

    label: str
    counts: tuple[int, ...]
    right: int | None

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def is_few(self) -> bool:
        """Whether the questions are too few for shares; a row without questions has no shares."""
        return 0 < self.total < LEAST_SAMPLES


def count_confusion_rows(counts: np.ndarray, scales: tuple[int, ...]) -> list[ConfusionRow]:
    labels = [*(f"scale {scale}" for scale in scales), "no scale is correct"]
    return [
        ConfusionRow(label, tuple(map(int, row)), index if index < len(scales) else None)
        for index, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]


def tabulate_types(test: OutcomeTable, choice: np.ndarray) -> list[TypeRow]:
    """Return a row for all questions, then one per question type; at most the most frequent types."""
    smallest = find_smallest_right(test.score)
    num_scales = len(test.scales)
    everything = np.arange(len(test))
    chosen_score, chosen_cost = test.score[everything, choice], test.cost[everything, choice]

    def tabulate(question_type: str, rows: np.ndarray, *, is_total: bool = False) -> TypeRow:
        known = rows & (smallest >= 0)
        scores = test.score[rows].mean(axis=0, dtype=np.float64)
        return TypeRow(
            question_type=question_type,
            num_samples=int(rows.sum()),
            scores=tuple(scores.tolist()),
            needed=find_needed_column(scores),
            chosen=tuple((np.bincount(choice[rows], minlength=num_scales) / rows.sum()).tolist()),
            tokens=format_tokens(chosen_cost[rows].mean()),
            score=float(chosen_score[rows].mean(dtype=np.float64)),
            smallest_right=float((known & (choice == smallest)).sum() / rows.sum()),
            too_coarse=float((known & (choice < smallest)).sum() / rows.sum()),
            too_fine=float((known & (choice > smallest)).sum() / rows.sum()),
            wrong=float((rows & (smallest < 0)).sum() / rows.sum()),
            example="" if is_total else cut_name(str(test.question[int(np.argmax(rows))]), LONGEST_EXAMPLE),
        )

    by_type = split_by_type(test)
    frequent = pick_frequent({question_type: int(rows.sum()) for question_type, rows in by_type.items()})
    types = [tabulate(question_type, by_type[question_type]) for question_type in frequent]
    return [tabulate("all questions", np.ones(len(test), dtype=bool), is_total=True), *types]


def shorten_map(needs: NeedMap, shown: Collection[str]) -> NeedMap:
    """Return the map with only the question types in `shown`."""
    return replace(
        needs,
        needs={
            question_type: cells for question_type, cells in needs.needs.items() if question_type in shown
        },
    )


def list_type_tables(
    types: Sequence[TypeRow],
    maps: Sequence[NeedMap],
    confusion: Sequence[ConfusionRow],
    scales: Sequence[int],
    *,
    name: str,
    unit: str,
) -> list[Table]:
    """Return the tables of the sections on question types and errors, for downloads.

    `name` is the predictor whose choices are shown, `unit` that of costs.
    """
    columns = tuple(f"scale {scale}" for scale in scales)
    tables = [
        Table(
            "Mean score in percent at every scale, and the smallest scale within a point of the best",
            ("question type", "questions", *columns, "needed", "example"),
            tuple(
                (
                    row.question_type,
                    str(row.num_samples),
                    *map(format_percent, row.scores),
                    str(scales[row.needed]),
                    row.example,
                )
                for row in types
            ),
            name="question_types",
        )
    ]
    tables += [_tabulate_map(need_map, scales) for need_map in maps]
    tables.append(
        Table(
            f"Choices of {name} at its default price, shares in percent of the questions of each type",
            (
                *("question type", "questions", *(f"chose {scale}" for scale in scales), unit),
                *("score", "smallest sufficient", "too fine", "too coarse", "no scale is correct"),
            ),
            tuple(
                (
                    row.question_type,
                    str(row.num_samples),
                    *map(format_percent, row.chosen),
                    row.tokens,
                    *map(
                        format_percent,
                        (row.score, row.smallest_right, row.too_fine, row.too_coarse, row.wrong),
                    ),
                )
                for row in types
            ),
            name="choices",
        )
    )
    tables.append(
        Table(
            f"Questions by needed scale and by the scale that {name} chooses at its default price",
            ("needed", "questions", *(f"chose {scale}" for scale in scales)),
            tuple((row.label, str(row.total), *map(str, row.counts)) for row in confusion),
            name="confusion",
        )
    )
    return tables


def _tabulate_map(need_map: NeedMap, scales: Sequence[int]) -> Table:
    rows = tuple(
        (
            name,
            *(
                MISSING if cell is None else f"{scales[cell.column]} (n = {cell.num_samples})"
                for cell in cells
            ),
        )
        for name, cells in need_map.needs.items()
    )
    return Table(
        f"Needed scale by {need_map.attribute.replace('_', ' ')}, with the number of questions",
        ("question type", *need_map.bins),
        rows,
        name=f"needed_by_{quote_name(need_map.attribute)}",
    )


def quote_name(text: str) -> str:
    """Return text with only letters, digits, hyphens and underscores of ASCII, for names of files."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60]
