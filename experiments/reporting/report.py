"""HTML report of an evaluation: predictors, question types and a gallery of samples on one page."""

import base64
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.config import Provenance
from experiments.evaluation.fronts import Floats, find_smallest_right
from experiments.evaluation.metrics import smallest_right, too_coarse, too_fine
from experiments.evaluation.needs import (
    LEAST_SAMPLES,
    NeedMap,
    describe_left_out,
    find_needed_column,
    map_attributes,
    pick_frequent,
    split_by_type,
)
from experiments.reporting.calibration_display import list_dots
from experiments.reporting.draw import draw_page
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.findings import Findings, describe_record, write_sentences
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.gallery import CATEGORIES, build_cards, pick_samples
from experiments.reporting.guarantees import write_guarantee
from experiments.reporting.numbers import format_tokens
from experiments.reporting.page import write_page
from experiments.tasks.sizes import is_too_few
from m3_backbone.outcomes.table import OutcomeTable


@dataclass(frozen=True)
class TypeRow:
    """A question type: scores per scale, and choices of the first predictor at its default price.

    `needed` is the column of the smallest scale within a point of the best (`experiments.evaluation.needs`).
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


def write_report(
    path: Path,
    findings: Findings,
    test: OutcomeTable,
    estimates: Floats,
    *,
    title: str,
    picture: bytes,
    read_image: Callable[[str], Image.Image],
    provenance: Provenance,
    per_category: int = 8,
    seed: int = 0,
) -> None:
    """Write the report of the findings.

    `estimates` `[num_samples, num_scales]` are the first predictor's on the test samples. `picture` is the
    front as a PNG, for paper and for browsers without scripts. `read_image` returns the image of an id; if it
    raises OSError, the message is shown instead. The gallery has up to `per_category` samples of each
    category, selected with `seed`.
    """
    comparison, others = findings.comparison, findings.others
    first = comparison.policies[0]
    choice = first.default.choice
    types, num_types = tabulate_types(test, choice), len(split_by_type(test))
    rows = pick_samples(test, choice, per_category=per_category, seed=seed)
    cards = build_cards(test, rows, choice=choice, estimates=estimates, read_image=read_image)
    write_page(
        path,
        "report.html.j2",
        title=title,
        sentences=write_sentences(findings),
        comparison=comparison,
        name=first.name,
        charts=[draw_page(plot_comparison(in_measure)) for in_measure in (comparison, *others)],
        cost_measures=[in_measure.measure for in_measure in (comparison, *others)],
        picture=base64.b64encode(picture).decode("ascii"),
        tables={table.name: table for table in list_tables(findings)},
        is_too_few=is_too_few(comparison.num_images),
        banners=findings.banners,
        shares={
            metric.name: float(share.value)
            for metric in (smallest_right, too_coarse, too_fine)
            if (share := first.find(metric)) is not None
        },
        confusion=_tabulate_confusion(first.default.confusion, comparison.scales),
        reliability=[
            {"scale": scale, "dots": list_dots(first.reliability, column)}
            for column, scale in enumerate(comparison.scales)
            if first.reliability is not None
        ],
        guarantee=write_guarantee(findings.guarantees, comparison.measure.noun)
        if findings.guarantees
        else "",
        record=findings.record,
        record_sentence=describe_record(findings.record) if findings.record else "",
        types=types,
        left_out=describe_left_out(num_types, "metrics.json holds the scores of all"),
        maps=[
            shorten_map(need_map, {row.question_type for row in types}) for need_map in map_attributes(test)
        ],
        least_samples=LEAST_SAMPLES,
        cards=cards,
        counts={key: sum(key in card.categories for card in cards) for key in CATEGORIES},
        categories=CATEGORIES,
        provenance=provenance,
        fingerprints=dict(test.fingerprints),
    )


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


def _tabulate_confusion(counts: np.ndarray, scales: tuple[int, ...]) -> list[ConfusionRow]:
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

    def tabulate(question_type: str, rows: np.ndarray) -> TypeRow:
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
        )

    by_type = split_by_type(test)
    frequent = pick_frequent({question_type: int(rows.sum()) for question_type, rows in by_type.items()})
    types = [tabulate(question_type, by_type[question_type]) for question_type in frequent]
    return [tabulate("all questions", np.ones(len(test), dtype=bool)), *types]


def shorten_map(needs: NeedMap, shown: Collection[str]) -> NeedMap:
    """Return the map with only the question types in `shown`."""
    return replace(
        needs,
        needs={
            question_type: cells for question_type, cells in needs.needs.items() if question_type in shown
        },
    )
