"""Fronts of several runs in one drawing, interactive and for paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from experiments.evaluation.costs import TOKENS
from experiments.evaluation.fronts import Floats
from experiments.evaluation.merits import Curve
from experiments.evaluation.oracles import RULES
from experiments.reporting.charts import INK, SYMBOLS, add_band, escape, finish_chart
from experiments.reporting.displays import (
    NEUTRAL,
    PALETTE,
    frame_panels,
    mark_scales,
    refine_line,
)
from experiments.reporting.numbers import format_difference, format_score, format_tokens
from experiments.reporting.page import LONGEST_TITLE, PLAIN_TEXT, cut_name
from experiments.results.entries import Entry

# Names in `metrics.json` of the rules by which oracles choose.
_RULES = {"authors": "coarsest", "honest": "finest", "stable": "stable"}

_DASHES = (("solid", "-"), ("longdash", (0, (7, 3))), ("dashdot", "-."))
# Largest number of policies in a plot: combinations of colour and dash.
MOST_DRAWN = len(PALETTE) * len(_DASHES)


def _pick_style(order: int) -> tuple[str, tuple[str, Any]]:
    """Colour, and dash for Plotly and for Matplotlib; a repeated colour has another dash."""
    return PALETTE[order % len(PALETTE)], _DASHES[order // len(PALETTE)]


def build_overlay(entries: Sequence[Entry]) -> dict[str, Any]:
    """Data and layout of the interactive chart: fronts above, differences to the mix below.

    The first `MOST_DRAWN` policies are drawn.
    """
    metrics = entries[0].runs[0].metrics
    costs, scores = read_fixed(metrics)
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    for order, entry in enumerate(entries[:MOST_DRAWN]):
        cost, score, above = entry.find_costs(), entry.at_budgets("score"), entry.at_budgets("to_mix")
        name = escape(entry.label)
        color, (dash, _) = _pick_style(order)
        line = {"color": color, "width": 2 if order else 3, "dash": dash}
        group = f"policy {order}"
        found = entry.find("mean_to_mix")
        mean = (
            ""
            if found is None
            else f"<br>to the mix {format_difference(found.estimate)} averaged over log budget"
        )
        for row, estimate in ((1, score), (2, above)):
            # Bands of all scores would lie on top of each other.
            if row == 2 or order == 0:
                add_band(figure, cost, estimate, color, group, row=row)
            figure.add_scatter(
                x=cost, y=100 * estimate.value, mode="lines", line=line,
                name=escape(cut_name(entry.label)), legendgroup=group, showlegend=row == 1, row=row, col=1,
                text=[
                    f"<b>{name}</b><br>spends {format_tokens(c)} tokens<br>score {format_score(score[k])}"
                    f"<br>to the mix {format_difference(above[k])}{mean}"
                    for k, c in enumerate(cost)
                ],
                hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    _add_bounds(figure, metrics, costs, scores)
    return finish_chart(figure, costs, TOKENS.label)


def _add_bounds(figure: go.Figure, metrics: Mapping[str, Any], costs: Floats, scores: Floats) -> None:
    dense, _ = refine_line(np.sort(costs), np.sort(scores))
    line: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "col": 1}
    dashed = {"color": INK, "dash": "dash", "width": 1.5}
    mix = 100 * find_mix(costs, scores, dense)
    figure.add_scatter(x=dense, y=mix, line=dashed, name="mix of fixed scales", row=1, **line)
    figure.add_scatter(x=dense[[0, -1]], y=[0, 0], line=dashed, showlegend=False, row=2, **line)
    oracle = _read_oracle(metrics)
    dotted = {"color": NEUTRAL, "dash": "dot", "width": 2}
    figure.add_scatter(x=oracle[0], y=100 * oracle[1], line=dotted, name="budgeted oracle", row=1, **line)
    figure.add_scatter(
        x=costs, y=100 * scores, mode="markers", marker={"size": 9, "color": INK}, name="fixed scales",
        hovertemplate="%{x:.3g} tokens, %{y:.1f}%<extra></extra>", row=1, col=1,
    )  # fmt: skip
    for key, rule in _RULES.items():
        label = RULES[rule]
        point = metrics["oracles"].get(key)
        if point is not None:
            figure.add_scatter(
                x=[point["cost"]["value"]], y=[100 * point["score"]["value"]], mode="markers", name=label,
                marker={"size": 11, "color": NEUTRAL, "symbol": SYMBOLS[rule]},
                hovertemplate=f"<b>{label}</b><br>%{{x:.3g}} tokens, %{{y:.1f}}%<extra></extra>",
                row=1, col=1,
            )  # fmt: skip


@mpl.rc_context(PLAIN_TEXT)
def draw_overlay(entries: Sequence[Entry], title: str) -> Figure:
    """The same for paper."""
    metrics = entries[0].runs[0].metrics
    costs, scores = read_fixed(metrics)
    dense, _ = refine_line(np.sort(costs), np.sort(scores))
    style = {"axes.spines.top": False, "axes.spines.right": False}
    with plt.style.context(style):
        figure = Figure(figsize=(8, 7), layout="constrained", facecolor="white")
        upper, lower = figure.subplots(2, height_ratios=(2.4, 1), sharex=True)
        for order, entry in enumerate(entries[:MOST_DRAWN]):
            cost, (color, (_, dash)) = entry.find_costs(), _pick_style(order)
            for axes, figure_name in ((upper, "score"), (lower, "to_mix")):
                estimate = entry.at_budgets(figure_name)
                axes.plot(cost, 100 * estimate.value, ls=dash, color=color, label=cut_name(entry.label))
                if axes is lower or entry is entries[0]:
                    low, high = 100 * estimate.low, 100 * estimate.high
                    axes.fill_between(cost, low, high, color=color, alpha=0.16, lw=0)
        upper.plot(
            dense, 100 * find_mix(costs, scores, dense), "--", color="black", lw=1.2,
            label="mix of fixed scales",
        )  # fmt: skip
        upper.plot(costs, 100 * scores, "o", color="black", label="fixed scales")
        oracle = _read_oracle(metrics)
        upper.plot(oracle[0], 100 * oracle[1], ":", color=NEUTRAL, label="budgeted oracle")
        lower.axhline(0, ls="--", color="black", lw=1.2)
        mark_scales(lower, costs)
        upper.set(ylabel="mean score (%)", title=cut_name(title, LONGEST_TITLE))
        lower.set(xlabel=TOKENS.label, ylabel="points above the mix")
        frame_panels(figure, upper, lower, num_columns=2)
    return figure


def read_fixed(metrics: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Mean costs and scores of the fixed scales, `[num_scales]` each."""
    return (
        np.array([each["cost"]["value"] for each in metrics["fixed"]], dtype=np.float64),
        np.array([each["score"]["value"] for each in metrics["fixed"]], dtype=np.float64),
    )


def find_mix(fixed_cost: Floats, fixed_score: Floats, cost: Floats) -> Floats:
    """Score of the mix of fixed scales `[num_scales]` at mean costs `[num_costs]`."""
    return Curve.of(fixed_cost[None], fixed_score[None]).hull().at(cost[None])[0]


def _read_oracle(metrics: Mapping[str, Any]) -> tuple[Floats, Floats]:
    bound = metrics["budgeted_oracle"]
    return refine_line(np.array(bound["cost"]), np.array(bound["score"]))
