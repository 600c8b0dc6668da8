"""Backends of front plots: Plotly for HTML pages, Matplotlib for paper."""

import html
import json
from typing import Any, assert_never

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from plotly.subplots import make_subplots

from experiments.reporting.front_plot import INK, Band, Element, FrontPlot, Line, Marks
from experiments.reporting.numbers import format_tokens
from experiments.reporting.page import LONGEST_TITLE, PLAIN_TEXT, cut_name, style_axes
from experiments.reporting.tables import CONTROLS

# Placeholder that the script of the page replaces by the page's text colour, light or dark.
PAGE_INK = "#010203"
UPPER_LABEL = "mean score (%)"
_MPL_DASHES: dict[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (7, 3)),
    "longdashdot": (0, (7, 3, 1, 3)),
}  # fmt: skip
_MPL_MARKERS = {"circle": "o", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "star": "*"}
# Sizes are in points in Matplotlib, in pixels in Plotly.
_POINTS_PER_PIXEL = 0.65


def draw_page(plot: FrontPlot) -> dict[str, Any]:
    """Return the interactive plot as JSON data, which the script of the page draws."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    for row, elements in ((1, plot.upper), (2, plot.lower)):
        for element in elements:
            if element.only != "paper":
                figure.add_trace(_make_trace(element), row=row, col=1)
    costs = plot.fixed_cost
    axis = {"type": "log", "tickvals": costs.tolist(), "ticktext": [format_tokens(cost) for cost in costs]}
    figure.update_xaxes(**axis, zeroline=False)
    figure.update_xaxes(title=_escape(plot.cost_label), row=2)
    figure.update_yaxes(title=UPPER_LABEL, row=1, zeroline=False)
    figure.update_yaxes(title=_escape(plot.lower_label), row=2, zeroline=False)
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


def _make_trace(element: Element) -> go.Scatter:
    common: dict[str, Any] = {"legendgroup": element.group, "hoverinfo": "skip", "showlegend": False}
    if not isinstance(element, Band):
        if element.label is not None:
            common |= {"name": _escape(element.label), "showlegend": True}
        if element.hover:
            texts = [_write_hover(*lines) for lines in element.hover]
            common |= {"text": texts, "hovertemplate": "%{text}<extra></extra>", "hoverinfo": None}
    match element:
        case Line():
            return go.Scatter(
                x=element.cost,
                y=element.value,
                mode="lines",
                line={"color": _page_color(element.color), "dash": element.dash, "width": element.width},
                visible="legendonly" if element.is_optional else True,
                **common,
            )
        case Band():
            red, green, blue = (int(element.color[i : i + 2], 16) for i in (1, 3, 5))
            return go.Scatter(
                x=np.concatenate([element.cost, element.cost[::-1]]),
                y=np.concatenate([element.high, element.low[::-1]]),
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.16)",
                mode="lines",
                line={"width": 0},
                **common,
            )
        case Marks():
            error = None
            if element.low is not None and element.high is not None:
                error = {
                    "array": element.high - element.value,
                    "arrayminus": element.value - element.low,
                    "color": _page_color(element.color),
                    "thickness": 1,
                    "width": 3,
                }
            marker = {"size": element.size, "color": _page_color(element.color), "symbol": element.symbol}
            marker["opacity"] = element.opacity
            if element.is_outlined:
                marker["line"] = {"color": PAGE_INK, "width": 1}
            return go.Scatter(
                x=element.cost, y=element.value, mode="markers", marker=marker, error_y=error, **common
            )
        case _:
            assert_never(element)


def _page_color(color: str) -> str:
    return PAGE_INK if color == INK else color


def _escape(text: str) -> str:
    """Return text without control characters, escaped for Plotly, whose labels are a subset of HTML."""
    return html.escape(text.translate(CONTROLS), quote=False)


def _write_hover(title: str, *lines: str) -> str:
    return "<br>".join([f"<b>{_escape(title)}</b>", *map(_escape, lines)])


@mpl.rc_context(PLAIN_TEXT)
def draw_paper(plot: FrontPlot, title: str) -> Figure:
    """Return the plot as a figure for paper: fronts above, differences to the mix below."""
    with plt.style.context({"font.size": 11}):
        figure = Figure(figsize=(8, 7), layout="constrained", facecolor="white")
        upper, lower = figure.subplots(2, height_ratios=(2.4, 1), sharex=True)
        draw_panels(plot, upper, lower)
        upper.set(xlabel="", title=cut_name(title, LONGEST_TITLE))
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=plot.num_legend_columns,
            fontsize="small",
            frameon=False,
        )
        for axes in (upper, lower):
            style_axes(axes)
    return figure


def draw_panels(plot: FrontPlot, upper: Axes, lower: Axes | None = None) -> None:
    """Draw the fronts on `upper` and, if given, the differences to the mix on `lower`."""
    panels = [(upper, plot.upper, UPPER_LABEL)]
    panels += [(lower, plot.lower, plot.lower_label)] if lower is not None else []
    for axes, elements, label in panels:
        for element in elements:
            if element.only != "page":
                _draw_element(element, axes)
        mark_scales(axes, plot.fixed_cost)
        axes.set(xlabel=plot.cost_label, ylabel=label)


def mark_scales(axes: Axes, costs: np.ndarray) -> None:
    """Make the cost axis logarithmic, with ticks only at the fixed scales."""
    axes.set_xscale("log")
    axes.set_xticks(costs, [format_tokens(cost) for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_element(element: Element, axes: Axes) -> None:
    color = "black" if element.color == INK else element.color
    match element:
        case Line():
            axes.plot(
                element.cost,
                element.value,
                color=color,
                ls=_MPL_DASHES[element.dash],
                lw=0.8 * element.width,
                label=element.label,
                zorder=_find_order(element),
            )
        case Band():
            axes.fill_between(element.cost, element.low, element.high, color=color, alpha=0.16, lw=0)
        case Marks():
            if element.low is not None and element.high is not None:
                # With few resamples, or by rounding, the value may lie outside its interval.
                bars = np.maximum(0.0, [element.value - element.low, element.high - element.value])
                axes.errorbar(element.cost, element.value, bars, fmt="none", color=color, lw=1, capsize=2.5)
            axes.plot(
                element.cost,
                element.value,
                _MPL_MARKERS[element.symbol],
                color=color,
                mec="white" if element.symbol == "diamond" else color,
                ms=_POINTS_PER_PIXEL * element.size,
                label=element.label,
                zorder=7 if element.symbol == "diamond" else 4,
            )
        case _:
            assert_never(element)


def _find_order(line: Line) -> float:
    """Return the z-order of a line: oracles below policies, the mix above all policies but the first."""
    if line.group is None:
        return 5.95 if line.color == INK else 2.0
    return 6.0 if line.width >= 3 else 5.0
