"""Comparison of backbone variants as figure, sentences, table, CSV and JSON."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.fronts import ORACLES
from experiments.evaluation.variants import NESTED, PER_SCALE, SAMPLINGS, UNTRAINED, Row, VariantComparison
from experiments.reporting.draw import mark_scales
from experiments.reporting.front_plot import NEUTRAL, PALETTE
from experiments.reporting.numbers import (
    describe_floor,
    find_floor,
    format_difference,
    format_p_value,
    format_score,
    format_tokens,
    to_plain,
)
from experiments.reporting.page import style_axes
from experiments.reporting.tables import Table


def draw_variants(comparison: VariantComparison) -> Figure:
    """Draw accuracy over visual tokens (log): line and band per series, a dot per seed, and the oracles."""
    figure = Figure(figsize=(7, 4.6), layout="constrained", facecolor="white")
    ax: Axes = figure.subplots()
    for color, series in zip(PALETTE, (NESTED, PER_SCALE, UNTRAINED, *SAMPLINGS), strict=False):
        _draw_series(ax, comparison.of(series), series, color)
    for marker, label in zip("^v", ORACLES.values(), strict=True):
        (row,) = comparison.of(label)
        ax.plot(row.visual_tokens, 100 * row.accuracy.value, marker, color=NEUTRAL, ms=8, label=label)
    mark_scales(ax, np.array([row.visual_tokens for row in comparison.of(NESTED)]))
    ax.set(xlabel="visual tokens", ylabel="accuracy (%)")
    style_axes(ax)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def _draw_series(ax: Axes, rows: Sequence[Row], label: str, color: str) -> None:
    cost = [row.visual_tokens for row in rows]
    main = label == NESTED
    ax.plot(
        cost,
        [100 * row.accuracy.value for row in rows],
        "o-" if label != PER_SCALE else "s--",
        color=color,
        lw=2.4 if main else 1.5,
        ms=5,
        zorder=6 if main else 5,
        label=label,
    )
    low, high = ([100 * getattr(row.accuracy, end) for row in rows] for end in ("low", "high"))
    ax.fill_between(cost, low, high, color=color, alpha=0.15, lw=0)
    for row in rows:
        dots = 100 * np.array(row.per_seed)
        ax.plot([row.visual_tokens] * len(dots), dots, ".", color=color, ms=4, alpha=0.5)


def write_findings(comparison: VariantComparison) -> list[str]:
    """Return a sentence for each claim of the paper, with the measured numbers."""
    compared = [
        ("One nested model against one model per scale", "the nested model", comparison.of(PER_SCALE)),
        # At the finest scale nothing is pooled.
        ("Pooling with training for it against without", "training", comparison.of(UNTRAINED)[:-1]),
    ]
    compared += [
        (f"Average pooling against {name} sampling", "averaging", comparison.of(name)[:-1])
        for name in SAMPLINGS
    ]
    findings = [
        f"{what}, in points: {_list(rows)}. {_judge(rows, subject, comparison)}"
        for what, subject, rows in compared
        if rows
    ]
    return [*findings, _describe_oracle(comparison)]


def _list(rows: Sequence[Row]) -> str:
    return ", ".join(f"{format_difference(row.to_nested)} at {row.scale}" for row in rows)


def _judge(rows: Sequence[Row], subject: str, comparison: VariantComparison) -> str:
    """Return a sentence on the scales with a significant difference (Holm) and its direction."""
    level = 1 - comparison.bootstrap.confidence
    if find_floor(comparison.bootstrap.num_resamples, comparison.num_tests) >= level:
        number = f"{comparison.bootstrap.num_resamples:,}"
        return f"{number} resamples are too few to show a difference at any of them."
    better, worse, undecided = f"{subject} is better", f"{subject} is worse", "no difference is shown"
    scales_by_verdict: dict[str, list[str]] = {better: [], worse: [], undecided: []}
    for row in rows:
        assert row.to_nested is not None and row.p_value is not None
        verdict = better if row.to_nested.value > 0 else worse
        scales_by_verdict[verdict if row.p_value < level else undecided].append(str(row.scale))
    if len(scales_by_verdict[undecided]) == len(rows):
        return "No difference is shown at any of them."
    parts = [
        f"{verdict} at {'each of them' if len(scales) == len(rows) else ', '.join(scales)}"
        for verdict, scales in scales_by_verdict.items()
        if scales
    ]
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _describe_oracle(comparison: VariantComparison) -> str:
    finest = comparison.of(NESTED)[-1]
    authors, honest = (comparison.of(label)[0] for label in ORACLES.values())
    return (
        f"The oracle of the nested model scores {format_score(honest.accuracy)}% with "
        f"{format_tokens(authors.visual_tokens)} visual tokens in the authors' convention and "
        f"{format_tokens(honest.visual_tokens)} in the honest one; the finest scale "
        f"{format_score(finest.accuracy)}% with {format_tokens(finest.visual_tokens)}."
    )


def tabulate_variants(comparison: VariantComparison) -> Table:
    """Tabulate every model at every scale at which it is compared."""
    several, num_tests = len(comparison.seeds) > 1, comparison.num_tests
    adjusted_floor = find_floor(comparison.bootstrap.num_resamples, num_tests)
    caption = (
        f"Accuracy in percent with {comparison.bootstrap.confidence:.0%} intervals over images"
        f"{' and trainings' * several}: {len(comparison.seeds)} seed{'s' * several}, "
        f"{comparison.num_questions:,} test questions on {comparison.num_images:,} images; "
        f"{describe_floor(comparison.bootstrap.num_resamples, num_tests)}"
    )
    rows = [
        (
            row.series,
            format_tokens(row.visual_tokens),
            format_score(row.accuracy),
            f"{100 * row.spread:.1f}" if several else "-",
            format_difference(row.to_nested),
            "-" if row.p_value is None else format_p_value(row.p_value, adjusted_floor),
        )
        for row in comparison.rows
    ]
    header = (
        "model",
        "visual tokens",
        "accuracy",
        "SD over seeds",
        "nested minus this, same scale",
        "p (Holm)",
    )
    return Table(caption, header, tuple(rows))


def to_markdown(comparison: VariantComparison) -> str:
    """Return table and findings as Markdown."""
    findings = "\n".join(f"- {finding}" for finding in write_findings(comparison))
    return f"{tabulate_variants(comparison).to_markdown()}\n\n{findings}\n"


def to_csv(comparison: VariantComparison) -> str:
    """Return the rows as CSV with full precision; accuracies are shares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("series", "scale", "visual_tokens", "accuracy", "low", "high", "sd_over_seeds")
    writer.writerow([*columns, *(f"seed_{seed}" for seed in comparison.seeds)])
    for row in comparison.rows:
        accuracy = row.accuracy
        numbers = (row.visual_tokens, accuracy.value, accuracy.low, accuracy.high, row.spread, *row.per_seed)
        writer.writerow([row.series, row.scale or "", *numbers])
    return text.getvalue()


def to_json(comparison: VariantComparison) -> dict[str, Any]:
    """Return a comparison and its findings as JSON-compatible data."""
    return {**to_plain(asdict(comparison)), "findings": write_findings(comparison)}
