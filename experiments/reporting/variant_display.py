"""Draws a comparison of variants as the paper's Figure 2 does."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.fronts import ORACLES
from experiments.evaluation.variants import NESTED, PER_SCALE, SAMPLINGS, UNTRAINED, Row, VariantComparison
from experiments.reporting.displays import NEUTRAL, PALETTE, mark_scales


def draw_variants(comparison: VariantComparison) -> Figure:
    """Accuracy over visual tokens (log): a line with its band per series, a dot per seed, the oracles."""
    figure = Figure(figsize=(7, 4.6), layout="constrained", facecolor="white")
    ax: Axes = figure.subplots()
    for color, series in zip(PALETTE, (NESTED, PER_SCALE, UNTRAINED, *SAMPLINGS), strict=False):
        _draw_series(ax, comparison.of(series), series, color)
    for marker, label in zip("^v", ORACLES.values(), strict=True):
        (row,) = comparison.of(label)
        ax.plot(row.visual_tokens, 100 * row.accuracy.value, marker, color=NEUTRAL, ms=8, label=label)
    mark_scales(ax, np.array([row.visual_tokens for row in comparison.of(NESTED)]))
    ax.set(xlabel="visual tokens", ylabel="accuracy (%)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", lw=0.7)
    ax.set_axisbelow(True)
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
