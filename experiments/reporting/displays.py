"""Draws a comparison with matplotlib: what was computed is in `Comparison`, here it only gets its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.evaluation.figures import Comparison
from experiments.evaluation.fronts import Floats
from experiments.evaluation.oracles import RULES
from experiments.reporting.numbers import format_tokens
from experiments.reporting.page import LONGEST_TITLE, PLAIN_TEXT, cut_name

# Okabe and Ito's colours, told apart with colour-blind eyes too, on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6D31")
NEUTRAL = "#7a7a7a"


def pick_colors(names: Sequence[str]) -> dict[str, str]:
    """One colour per predictor, by position: the same in every drawing of a report."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def refine_line(cost: Floats, score: Floats, num_points: int = 160) -> tuple[Floats, Floats]:
    """A line through points, `[at least num_points]`, to be drawn over the logarithm of the cost.

    Between two points one draws at random, so the score is linear in the cost: on a logarithmic axis that is
    a curve, and the straight line a plot would draw there is not reachable.
    """
    dense = np.union1d(np.geomspace(cost[0], cost[-1], num_points).clip(cost[0], cost[-1]), cost)
    return dense, np.interp(dense, cost, score)


@dataclass
class FrontDisplay:
    """Mean score over mean cost (log): predictors' fronts, fixed scales, mix and oracles.

    The band of the first predictor is the bootstrap interval of its score at that cost; a diamond is the
    default price. `ax_` and `figure_` are there after `plot`.
    """

    comparison: Comparison

    @classmethod
    def from_comparison(cls, comparison: Comparison) -> Self:
        return cls(comparison)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        self.ax_ = ax = ax or plt.subplots(figsize=(8, 5), layout="constrained")[1]
        self.figure_ = ax.figure
        self._plot_predictors(ax)
        self._plot_references(ax)
        ax.plot([], [], "D", color=NEUTRAL, mec="white", ms=8, label="default price")
        mark_scales(ax, self.comparison.fixed.cost.value)
        ax.set(xlabel=self.comparison.account.label, ylabel="mean score (%)")
        ax.legend(loc="lower right", fontsize="small", framealpha=0.9)
        return self

    def _plot_predictors(self, ax: Axes) -> None:
        colors = pick_colors([figures.name for figures in self.comparison.predictors])
        for order, figures in enumerate(self.comparison.predictors):
            color, first = colors[figures.name], order == 0
            cost, score = refine_line(figures.front.cost, figures.front.score)
            ax.plot(
                cost,
                100 * score,
                color=color,
                lw=_width(order),
                zorder=6 - order / 10,
                label=cut_name(figures.name),
            )
            if first:
                low, high = 100 * figures.score.low, 100 * figures.score.high
                ax.fill_between(figures.cost, low, high, color=color, alpha=0.16, lw=0)
            point, size = figures.default.point, 8 if first else 6
            ax.plot(
                point.cost.value, 100 * point.score.value, "D", color=color, mec="white", ms=size, zorder=7
            )

    def _plot_references(self, ax: Axes) -> None:
        fixed, oracle = self.comparison.fixed, self.comparison.oracle
        costs, scores = fixed.cost.value, 100 * fixed.score.value
        # With few resamples, or by rounding, the value may lie outside its interval.
        bars = np.maximum(0.0, [scores - 100 * fixed.score.low, 100 * fixed.score.high - scores])
        mix = refine_line(costs[self.comparison.mix], scores[self.comparison.mix])
        ax.errorbar(
            costs,
            scores,
            bars,
            fmt="o",
            color="black",
            ms=6,
            lw=1,
            capsize=2.5,
            label="fixed scales",
            zorder=4,
        )
        ax.plot(*mix, "--", color="black", lw=1.2, label="mix of fixed scales", zorder=5.95)
        cost, score = refine_line(oracle.cost, oracle.score)
        ax.plot(cost, 100 * score, ":", color=NEUTRAL, lw=1.5, label="budgeted oracle")
        for (rule, label), marker in zip(RULES.items(), "^v*", strict=True):
            point = self.comparison.oracles[rule]
            ax.plot(
                point.cost.value,
                100 * point.score.value,
                marker,
                color=NEUTRAL,
                ms=7,
                label=label,
            )


@dataclass
class DifferenceDisplay:
    """Difference of each predictor to the mix at matched mean cost, in points, with its interval."""

    comparison: Comparison

    @classmethod
    def from_comparison(cls, comparison: Comparison) -> Self:
        return cls(comparison)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        self.ax_ = ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
        self.figure_ = ax.figure
        colors = pick_colors([figures.name for figures in self.comparison.predictors])
        ax.axhline(0, ls="--", color="black", lw=1.2, zorder=5.95)
        for order, figures in enumerate(self.comparison.predictors):
            color, difference = colors[figures.name], figures.to_mix
            ax.plot(
                figures.cost, 100 * difference.value, color=color, lw=_width(order), zorder=6 - order / 10
            )
            low, high = 100 * difference.low, 100 * difference.high
            ax.fill_between(figures.cost, low, high, color=color, alpha=0.16, lw=0)
        mark_scales(ax, self.comparison.fixed.cost.value)
        ax.set(xlabel=self.comparison.account.label, ylabel="points above the mix")
        return self


@mpl.rc_context(PLAIN_TEXT)
def draw_front(comparison: Comparison, title: str) -> Figure:
    """The picture of a comparison: the fronts, and below them the differences to the mix."""
    with plt.style.context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 7), layout="constrained", facecolor="white")
        upper, lower = figure.subplots(2, height_ratios=(2.4, 1), sharex=True)
        FrontDisplay.from_comparison(comparison).plot(upper)
        DifferenceDisplay.from_comparison(comparison).plot(lower)
        upper.set(xlabel="", title=cut_name(title, LONGEST_TITLE))
        upper.get_legend().remove()
        frame_panels(figure, upper, lower, num_columns=4)
    return figure


def frame_panels(figure: Figure, upper: Axes, lower: Axes, *, num_columns: int) -> None:
    """The legend of the upper panel below both, and a grid behind them."""
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=num_columns, fontsize="small", frameon=False
    )
    for axes in (upper, lower):
        axes.grid(color="#e6e6e6", lw=0.7)
        axes.set_axisbelow(True)


def _width(order: int) -> float:
    return 1.5 if order else 2.4


def mark_scales(ax: Axes, costs: np.ndarray) -> None:
    """Make the cost axis logarithmic, with a tick at each fixed scale and nowhere else."""
    ax.set_xscale("log")
    ax.set_xticks(costs, [format_tokens(cost) for cost in costs])
    ax.xaxis.set_minor_locator(NullLocator())
