"""Reliability diagrams of estimates, as a figure and as data for a page, and the table of calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.evaluation.calibration import Reliability
from experiments.evaluation.comparison import Comparison
from experiments.reporting.front_plot import NEUTRAL, PALETTE
from experiments.reporting.numbers import format_score, format_small, write_estimate
from experiments.reporting.page import LONGEST_TITLE, PLAIN_TEXT, cut_name
from experiments.reporting.tables import Table


@dataclass(frozen=True)
class Dot:
    """One bin: mean estimate and mean score in [0, 1], number of samples, and share of all samples."""

    estimate: float
    score: float
    count: int
    share: float

    @property
    def radius(self) -> float:
        """Radius in a diagram of 100 units per side; the area grows with the number of samples."""
        return 1.2 + 6.5 * self.share**0.5


def list_dots(reliability: Reliability, column: int) -> list[Dot]:
    """Return the bins of one scale that contain samples."""
    counts = np.asarray(reliability.count[column])
    return [
        Dot(
            float(reliability.estimate[column, index]),
            float(reliability.score[column, index]),
            int(counts[index]),
            float(counts[index] / counts.sum()),
        )
        for index in np.flatnonzero(counts)
    ]


def tabulate_calibration(comparison: Comparison) -> Table:
    """Tabulate Brier score and calibration error of every policy with estimates, per scale."""
    rows = []
    for result in comparison.policies:
        reliability = result.reliability
        if reliability is None:
            continue
        for column, scale in enumerate(comparison.scales):
            brier = reliability.brier[column]
            rows.append(
                (
                    f"{result.name}, scale {scale}",
                    write_estimate(brier, lambda value: f"{float(value):.3f}"),
                    format_score(reliability.error[column]),
                    format_small(float(100 * np.nansum(_bias(reliability, column)))),
                )
            )
    caption = (
        "Calibration of the estimates: Brier score (0 is best), expected calibration error in points, and "
        "mean estimate minus mean score in points"
    )
    header = ("predictor, scale", "Brier score", "calibration error", "bias")
    return Table(caption, header, tuple(rows), name="calibration")


def _bias(reliability: Reliability, column: int) -> np.ndarray:
    """Return the contribution of each bin to mean estimate minus mean score, `[num_bins]`."""
    counts = np.asarray(reliability.count[column])
    gap = reliability.estimate[column] - reliability.score[column]
    bias: np.ndarray = gap * counts / counts.sum()
    return bias


@mpl.rc_context(PLAIN_TEXT)
def draw_reliability(reliability: Reliability, scales: Sequence[int], title: str) -> Figure:
    """Draw one diagram per scale: mean score over mean estimate of each bin; dot areas grow with counts."""
    figure = Figure(figsize=(2.4 * len(scales) + 0.4, 2.9), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
    for column, (ax, scale) in enumerate(zip(panels, scales, strict=True)):
        dots = list_dots(reliability, column)
        ax.plot([0, 1], [0, 1], "--", color=NEUTRAL, lw=1)
        x, y = [dot.estimate for dot in dots], [dot.score for dot in dots]
        ax.plot(x, y, color=PALETTE[0], lw=1.2)
        ax.scatter(x, y, s=[1.6 * dot.radius**2 for dot in dots], color=PALETTE[0], zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="estimate", title=f"scale {scale}", aspect="equal")
        ax.title.set_fontsize("small")
    panels[0].set_ylabel("mean score")
    figure.suptitle(cut_name(title, LONGEST_TITLE), fontsize="medium")
    return figure
