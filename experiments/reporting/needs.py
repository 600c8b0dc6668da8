"""Needed scales of a task: tables, heat maps, and models that predict the needed scale."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.known_facts import (
    LEVEL,
    PARTS,
    Equivalence,
    ScaleClassifiers,
    ScoreRegressions,
    UnusableSamples,
    compare_known,
    find_equivalences,
)
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.needs import Need, NeedMap, describe_left_out, pick_frequent
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.numbers import (
    describe_floor,
    find_floor,
    format_difference,
    format_p_value,
    format_percent,
    format_share,
)
from experiments.reporting.page import LONGEST_TITLE, PLAIN_TEXT, cut_name
from experiments.reporting.tables import Table
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)


def tabulate_needs(needs: Sequence[Need], scales: tuple[int, ...], margin: float, title: str) -> Table:
    """Tabulate mean scores per scale and the smallest sufficient scale."""
    rows = [
        (need.name, f"{need.num_samples:,}", *map(format_percent, need.scores), str(scales[need.column]))
        for need in needs
    ]
    caption = (
        f"{title}: score in percent at each scale, and the smallest scale within {100 * margin:g} of the best"
    )
    header = ("question type", "questions", *map(str, scales), "needed")
    return Table(caption, header, tuple(rows), name="needs")


def tabulate_classifiers(accuracy: Mapping[str, float]) -> Table:
    """Tabulate the accuracies of `ScaleClassifiers.measure`."""
    rows = tuple((name, format_percent(value)) for name, value in accuracy.items())
    caption = "Prediction of the smallest sufficient scale, if there is one: accuracy in percent"
    return Table(caption, ("features", "accuracy"), rows, name="classifiers")


def tabulate_policies(comparison: Comparison) -> Table:
    """Tabulate the comparison of `compare_known`: gain of each policy by its features."""
    rows = tuple(
        (result.name, format_difference(result[mean_to_mix]), format_share(result.find(mean_gap_share)))
        for result in comparison.policies
    )
    caption = (
        "Policies by their features, at matched mean visual tokens, averaged over log-spaced budgets: points "
        "above the mix and share of the gap from mix to budgeted oracle. Boosted regressions of the score at "
        f"each scale, trained once; prices chosen on calibration; {comparison.confidence:.0%} intervals over "
        f"{comparison.num_images:,} test images"
    )
    return Table(caption, ("features", "to mix", "share of gap"), rows, name="policies")


def tabulate_equivalences(equivalences: Sequence[Equivalence], num_resamples: int) -> Table:
    """Tabulate the result of `find_equivalences`: whether facts change the gain of a policy."""
    floor = find_floor(num_resamples, len(equivalences))
    rows = tuple(
        (
            f"{equivalence.first} - {equivalence.second}",
            format_difference(equivalence.difference),
            format_share(equivalence.share),
            format_p_value(equivalence.p_value, floor),
            equivalence.verdict,
        )
        for equivalence in equivalences
    )
    caption = (
        "Policies with facts minus the policy without, on the same resamples of the images: "
        f"points and share of the gap with {1 - 2 * LEVEL:.0%} intervals. Equivalent: the interval lies "
        f"within {100 * equivalences[0].margin:g} points of zero (two one-sided tests at {LEVEL:g}); "
        f"differs: not equivalent, and p below {LEVEL:g}. "
        f"{describe_floor(num_resamples, len(equivalences))}"
    )
    return Table(
        caption, ("difference", "points", "share of gap", "p (Holm)", "verdict"), rows, name="equivalence"
    )


@mpl.rc_context(PLAIN_TEXT)
def draw_needs(needs: Sequence[Need], maps: Sequence[NeedMap], scales: Sequence[int], title: str) -> Figure:
    """Draw heat maps: score per question type and scale (needed scale framed), needed scale by attribute.

    The first of `needs` is that of all questions. If there are many types, only the most frequent are drawn
    and the title says so.
    """
    counts = {need.name: need.num_samples for need in needs[1:]}
    shown = {needs[0].name, *pick_frequent(counts)}
    title = "\n".join(filter(None, (cut_name(title, LONGEST_TITLE), describe_left_out(len(counts)))))
    needs = [need for need in needs if need.name in shown]
    widths = [1 + 0.6 * len(scales), *(1 + 0.6 * len(need_map.bins) for need_map in maps)]
    size = (2.2 + sum(widths), 1.6 + 0.3 * len(needs))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(1, 1 + len(maps), width_ratios=widths, squeeze=False)[0]
    _draw_scores(panels[0], needs, scales)
    for ax, need_map in zip(panels[1:], maps, strict=True):
        _draw_map(ax, need_map, [need.name for need in needs], scales)
        ax.set_yticklabels([])
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_scores(ax: Axes, needs: Sequence[Need], scales: Sequence[int]) -> None:
    scores = np.array([need.scores for need in needs])
    ax.imshow(scores, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for row, need in enumerate(needs):
        for column, score in enumerate(need.scores):
            ink = "white" if score > 0.8 else "black"
            ax.text(column, row, f"{100 * score:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
        # Smaller than the cell: otherwise frames of neighbours would seem to surround the cell between them.
        frame = plt.Rectangle((need.column - 0.46, row - 0.42), 0.92, 0.84, fill=False, ec="#D55E00", lw=2)
        ax.add_patch(frame)
    ax.set_xticks(range(len(scales)), [str(scale) for scale in scales])
    ax.set_yticks(range(len(needs)), [f"{cut_name(need.name)} ({need.num_samples:,})" for need in needs])
    ax.set(xlabel="scale", title="score in % (framed: needed scale)")
    ax.title.set_fontsize("small")
    ax.tick_params(length=0)


def _draw_map(ax: Axes, needs: NeedMap, types: Sequence[str], scales: Sequence[int]) -> None:
    columns = np.full((len(types), len(needs.bins)), np.nan)
    for row, question_type in enumerate(types):
        for index, cell in enumerate(needs.needs.get(question_type, ())):
            if cell is not None:
                columns[row, index] = cell.column
                ink = "white" if cell.column > 0.6 * (len(scales) - 1) else "black"
                text = str(scales[cell.column])
                ax.text(index, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    ax.imshow(columns, cmap="YlGnBu", vmin=-0.5, vmax=len(scales) - 0.5, aspect="auto")
    ax.set_xticks(
        range(len(needs.bins)),
        [cut_name(name, 20) for name in needs.bins],
        rotation=40,
        ha="right",
        fontsize="x-small",
    )
    ax.set_yticks(range(len(types)))
    ax.set(xlabel=cut_name(needs.attribute.replace("_", " "), 30), title="needed scale")
    ax.title.set_fontsize("small")
    ax.tick_params(length=0)


def count_models(labels: Labels) -> int:
    """Return the largest number of models that `fit_models` fits: 1 + num_scales per set of features."""
    return len(PARTS) * (1 + len(labels.outcomes.scales))


def fit_models(
    labels: Path, seed: int, progress: "tqdm[Any] | None" = None
) -> tuple[ScaleClassifiers, ScoreRegressions] | None:
    """Return models of the needed scale, fitted on the training split; None if that is impossible.

    Labels of a test split alone suffice for the table of needs, but not for models. Logs a warning with the
    reason if it returns None. `progress` counts the models.
    """
    counts = read_manifest(labels)["counts"]
    if missing := [split for split in ("train", "calibration") if not counts.get(split)]:
        log.warning("models of the needed scale are left out: the labels have no %s", " and ".join(missing))
        return None
    train = read_labels(labels, "train")
    try:
        on_fit = None if progress is None else progress.update
        return ScaleClassifiers.fit(train, seed, on_fit), ScoreRegressions.fit(train, seed, on_fit)
    except UnusableSamples as error:
        log.warning("models of the needed scale are left out: %s", error)
        return None


def judge_models(
    classifiers: ScaleClassifiers,
    regressions: ScoreRegressions,
    calibration: Labels,
    test: Labels,
    bootstrap: Bootstrap,
    equivalence_margin: float,
) -> list[Table]:
    """Return tables of accuracies, policies and equivalence; impossible ones are omitted with a warning."""
    tables = []
    try:
        tables.append(tabulate_classifiers(classifiers.measure(test)))
    except UnusableSamples as error:
        log.warning("accuracies of the needed scale are left out: %s", error)
    try:
        comparison = compare_known(regressions, calibration, test, bootstrap)
    except UnusableSamples as error:
        log.warning("policies by their features are left out: %s", error)
        return tables
    tables.append(tabulate_policies(comparison))
    equivalences = find_equivalences(comparison, equivalence_margin)
    if equivalences:
        tables.append(tabulate_equivalences(equivalences, bootstrap.num_resamples))
    return tables
