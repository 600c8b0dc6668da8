"""The interactive front: a Plotly figure as plain data, which the report's script draws with its colours."""

import html
import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.evaluation.figures import Comparison, PredictorFigures
from experiments.evaluation.fronts import Floats
from experiments.evaluation.oracles import LUCK_FREE, RULES
from experiments.evaluation.statistics import Estimate
from experiments.reporting.displays import NEUTRAL, pick_colors, refine_line
from experiments.reporting.numbers import (
    format_difference,
    format_percent,
    format_score,
    format_share,
    format_tokens,
)
from experiments.reporting.page import cut_name

# The script replaces this by the page's text colour, light or dark.
INK = "#010203"
SYMBOLS = {"coarsest": "triangle-up", "finest": "triangle-down", "stable": "star"}
DASHES = {"likelihood": "longdash", "resampled": "longdashdot"}


def build_chart(comparison: Comparison) -> dict[str, Any]:
    """Data and layout of the interactive front, with the differences to the mix below it."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    colors = pick_colors([figures.name for figures in comparison.predictors])
    for order, figures in enumerate(comparison.predictors):
        _add_predictor(figure, figures, comparison, colors[figures.name], main=order == 0)
    _add_references(figure, comparison)
    return finish_chart(figure, comparison.fixed.cost.value, comparison.account.label)


def finish_chart(figure: go.Figure, costs: Floats, label: str) -> dict[str, Any]:
    """Axes and layout of fronts above their differences to the mix; the chart as plain data."""
    axis = {"type": "log", "tickvals": costs.tolist(), "ticktext": [format_tokens(cost) for cost in costs]}
    figure.update_xaxes(**axis, zeroline=False)
    figure.update_xaxes(title=escape(label), row=2)
    figure.update_yaxes(title="mean score (%)", row=1, zeroline=False)
    figure.update_yaxes(title="points above the mix", row=2, zeroline=False)
    figure.update_layout(
        template="none",
        margin={"l": 56, "r": 12, "t": 12, "b": 72},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    content: dict[str, Any] = json.loads(figure.to_json())
    return content


def escape(text: str) -> str:
    """Text as Plotly shows it: its labels take a little HTML, and entities for the rest."""
    return html.escape(text, quote=False)


def _add_predictor(
    figure: go.Figure, figures: PredictorFigures, comparison: Comparison, color: str, *, main: bool
) -> None:
    name, group = escape(cut_name(figures.name)), figures.name
    width = 3 if main else 2
    trace = figures.trace
    figure.add_scatter(
        x=trace.cost,
        y=100 * trace.score,
        mode="markers",
        marker={"size": 4, "color": color, "opacity": 0.45},
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    if main:
        add_band(figure, figures.cost, figures.score, color, group, row=1)
    cost, score = refine_line(figures.front.cost, figures.front.score)
    # What estimates nothing pays for several scales: a cascade.
    dash = "solid" if figures.reliability is not None else "dashdot"
    figure.add_scatter(
        x=cost, y=100 * score, mode="lines", line={"color": color, "width": width, "dash": dash},
        hoverinfo="skip", name=name, legendgroup=group, row=1, col=1,
    )  # fmt: skip
    budgets = [_describe_budget(figures, comparison, k) for k in range(len(figures.budgets))]
    for row, values in ((1, figures.score.value), (2, figures.to_mix.value)):
        if row == 2:
            add_band(figure, figures.cost, figures.to_mix, color, group, row=2)
        figure.add_scatter(
            x=figures.cost,
            y=100 * values,
            mode="lines" if row == 2 else "markers",
            line={"color": color, "width": width},
            marker={"size": 12, "color": color, "opacity": 0},
            legendgroup=group,
            showlegend=False,
            text=budgets,
            hovertemplate="%{text}<extra></extra>",
            row=row,
            col=1,
        )
    default = figures.default
    text = (
        f"<b>{name}</b><br>default price {default.price:.4g}<br>"
        f"{format_tokens(default.point.cost.value)} {comparison.account.unit}, "
        f"{format_score(default.point.score)}<br>"
        f"to the best fixed scale {format_difference(default.to_best_fixed)}"
    )
    figure.add_scatter(
        x=[default.point.cost.value],
        y=[100 * default.point.score.value],
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 13 if main else 10,
            "color": color,
            "line": {"color": INK, "width": 1},
        },
        legendgroup=group,
        showlegend=False,
        text=[text],
        hovertemplate="%{text}<extra></extra>",
        row=1,
        col=1,
    )


def _describe_budget(figures: PredictorFigures, comparison: Comparison, k: int) -> str:
    lines = [
        f"<b>{escape(figures.name)}</b>",
        f"budget {format_tokens(figures.budgets[k])}, spends {format_tokens(figures.cost[k])} "
        f"{comparison.account.unit}",
        f"score {format_score(figures.score[k])}",
        f"to the mix {format_difference(figures.to_mix[k])}",
    ]
    if figures.to_reference is not None:
        lines.append(f"to {escape(str(comparison.reference))} {format_difference(figures.to_reference[k])}")
    lines.append(f"share of the gap {format_share(figures.gap_share[k])}")
    prices = figures.policy.price[figures.plan[k] > 0]
    lines.append("price " + " or ".join(f"{price:.3g}" for price in prices))
    chosen = zip(comparison.scales, figures.chosen[k], strict=True)
    lines.append(", ".join(f"{share:.0%} at scale {scale}" for scale, share in chosen if share >= 0.005))
    return "<br>".join(lines)


def add_band(
    figure: go.Figure, cost: Floats, estimate: Estimate, color: str, group: str, *, row: int
) -> None:
    """The interval of a line over the cost, shown and hidden with the group of that line."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=np.concatenate([cost, cost[::-1]]),
        y=100 * np.concatenate([estimate.high, estimate.low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
        row=row,
        col=1,
    )


def _add_references(figure: go.Figure, comparison: Comparison) -> None:
    fixed, oracle = comparison.fixed, comparison.oracle
    costs, scores = fixed.cost.value, 100 * fixed.score.value
    mix_cost, mix_score = refine_line(costs[comparison.mix], scores[comparison.mix])
    line: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "row": 1, "col": 1}
    figure.add_scatter(
        x=mix_cost,
        y=mix_score,
        line={"color": INK, "dash": "dash", "width": 1.5},
        name="mix of fixed scales",
        **line,
    )
    oracle_cost, oracle_score = refine_line(oracle.cost, oracle.score)
    figure.add_scatter(
        x=oracle_cost,
        y=100 * oracle_score,
        line={"color": NEUTRAL, "dash": "dot", "width": 2},
        name="budgeted oracle",
        **line,
    )
    point: dict[str, Any] = {"mode": "markers", "row": 1, "col": 1}
    figure.add_scatter(
        x=costs,
        y=scores,
        error_y={
            "array": 100 * fixed.score.high - scores,
            "arrayminus": scores - 100 * fixed.score.low,
            "color": INK,
            "thickness": 1,
            "width": 3,
        },
        marker={"size": 9, "color": INK},
        name="fixed scales",
        text=[f"scale {scale}" for scale in comparison.scales],
        hovertemplate=f"<b>%{{text}}</b><br>%{{x:.3g}} {comparison.account.unit}, %{{y:.1f}}%<extra></extra>",
        **point,
    )
    for rule, label in RULES.items():
        found = comparison.oracles[rule]
        figure.add_scatter(
            x=[found.cost.value],
            y=[100 * found.score.value],
            marker={"size": 11, "color": NEUTRAL, "symbol": SYMBOLS[rule]},
            name=label,
            hovertemplate=(
                f"<b>{label}</b><br>{format_tokens(found.cost.value)} {comparison.account.unit}, "
                f"{format_percent(found.score.value)}%<extra></extra>"
            ),
            **point,
        )
    for name, luck_free in comparison.luck_free.items():
        luckless = refine_line(luck_free.cost.value, luck_free.score.value)
        figure.add_scatter(
            x=luckless[0],
            y=100 * luckless[1],
            line={"color": NEUTRAL, "dash": DASHES[name], "width": 1.5},
            name=LUCK_FREE[name],
            visible="legendonly",
            **line,
        )
    zero = {"color": INK, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=mix_cost[[0, -1]], y=[0, 0], line=zero, showlegend=False, **(line | {"row": 2}))
