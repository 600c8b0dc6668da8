"""Content of front plots, independent of the plotting library; `draw` has the two backends.

The upper panel shows mean scores in percent over mean cost, the lower panel points above the mix. A plot is a
list of lines, bands and marks. Both backends draw all of them, except elements with `only`, which appear only
on HTML pages or only on paper.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from experiments.evaluation.backbones import BackboneFronts, Chooser, MatchedCosts, NoiseFree, label_of
from experiments.evaluation.comparison import Comparison, LadderResult, PolicyResult
from experiments.evaluation.curves import Curve
from experiments.evaluation.fronts import RULES, Floats
from experiments.evaluation.metric_table import Bound, Predictor
from experiments.evaluation.metrics import (
    default_cost,
    default_score,
    gap_share,
    mean_to_mix,
    score_at_budgets,
    to_best_fixed,
    to_mix,
    to_reference,
)
from experiments.evaluation.noise_free import NOISE_FREE
from experiments.evaluation.statistics import Estimate
from experiments.reporting.numbers import (
    format_difference,
    format_percent,
    format_score,
    format_share,
    format_tokens,
)
from experiments.reporting.page import cut_name
from experiments.results.entries import Entry

# Okabe and Ito's colours, which are distinct for colour-blind readers, on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6D31")
NEUTRAL = "#7a7a7a"
# Text colour of the medium: black on paper, light or dark on a page.
INK = "ink"
Dash = Literal["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
Symbol = Literal["circle", "diamond", "triangle-up", "triangle-down", "star"]
Medium = Literal["page", "paper"]

_RULE_SYMBOLS: dict[str, Symbol] = {"coarsest": "triangle-up", "finest": "triangle-down", "stable": "star"}
_NOISE_FREE_DASHES: dict[str, Dash] = {"likelihood": "longdash", "resampled": "longdashdot"}
# Names in `metrics.json` of the rules by which oracles choose.
_RULES_IN_METRICS = {"authors": "coarsest", "honest": "finest", "stable": "stable"}
_DASHES: tuple[Dash, ...] = ("solid", "longdash", "dashdot")
# Largest number of policies in a plot: the number of combinations of colour and dash.
MOST_DRAWN = len(PALETTE) * len(_DASHES)


@dataclass(frozen=True, eq=False)
class Line:
    """A line through points (`cost`, `value`); `label` is its name in the legend, if any.

    Elements with one `group` belong to one policy and are shown and hidden together on a page. `hover` holds
    for each point the lines of its hover text, the first in bold. With `is_optional` the line is hidden until
    its name in the legend is clicked.
    """

    cost: Floats
    value: Floats
    color: str
    dash: Dash = "solid"
    width: float = 2.0
    label: str | None = None
    group: str | None = None
    hover: Sequence[Sequence[str]] = ()
    is_optional: bool = False
    only: Medium | None = None


@dataclass(frozen=True, eq=False)
class Band:
    """The interval of a line."""

    cost: Floats
    low: Floats
    high: Floats
    color: str
    group: str | None = None
    only: Medium | None = None


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks at points; `low` and `high` are the ends of their error bars, if any."""

    cost: Floats
    value: Floats
    color: str
    symbol: Symbol = "circle"
    size: float = 9.0
    label: str | None = None
    group: str | None = None
    hover: Sequence[Sequence[str]] = ()
    low: Floats | None = None
    high: Floats | None = None
    opacity: float = 1.0
    is_outlined: bool = False
    only: Medium | None = None


Element = Line | Band | Marks


@dataclass(frozen=True, eq=False)
class FrontPlot:
    """Elements of both panels, from bottom to top; the cost axis has a tick at each fixed scale."""

    fixed_cost: Floats
    cost_label: str
    upper: list[Element] = field(default_factory=list)
    lower: list[Element] = field(default_factory=list)
    num_legend_columns: int = 4
    lower_label: str = "points above the mix"


def refine_line(cost: Floats, score: Floats, num_points: int = 160) -> tuple[Floats, Floats]:
    """Return costs and scores of at least `num_points` points on a line, for a logarithmic cost axis.

    Between two operating points a policy chooses one of them at random, so the score is linear in the cost.
    On a logarithmic axis this is a curve; the straight line that a plot would draw cannot be reached.
    """
    dense = np.union1d(np.geomspace(cost[0], cost[-1], num_points).clip(cost[0], cost[-1]), cost)
    return dense, np.interp(dense, cost, score)


# --- One evaluation ----------------------------------------------------------------------------------------


def plot_comparison(comparison: Comparison) -> FrontPlot:
    """Return the plot of one evaluation: policies, fixed scales, their mix, and oracles.

    The band of the first policy is the bootstrap interval of its score; diamonds mark default prices. The
    mixes of other backbones are dashed.
    """
    # The names of other backbones are long.
    num_columns = 3 if comparison.ladders else 4
    plot = FrontPlot(comparison.fixed_cost.value, comparison.measure.label, num_legend_columns=num_columns)
    for order, result in enumerate(comparison.policies):
        color = PALETTE[order % len(PALETTE)]
        budgets = [_describe_budget(result, comparison, k) for k in range(len(result.budgets))]
        plot.upper.extend(_plot_policy(result, comparison.measure.unit, color, budgets, is_first=order == 0))
        difference = result[to_mix]
        plot.lower.append(_band(result.cost, difference, color, result.name))
        plot.lower.append(
            Line(
                result.cost, 100 * difference.value, color,
                width=2 if order else 3, group=result.name, hover=budgets,
            )
        )  # fmt: skip
    plot.upper.append(
        Marks(np.array([]), np.array([]), NEUTRAL, "diamond", 12, "default price", only="paper")
    )
    fixed_cost, fixed_score = comparison.fixed_cost, comparison.fixed_score
    mix = refine_line(fixed_cost.value[comparison.mix], fixed_score.value[comparison.mix])
    oracle = refine_line(comparison.oracle.cost, comparison.oracle.score)
    plot.upper.extend(_plot_bounds(mix, oracle))
    for order, ladder in enumerate(comparison.ladders, start=len(comparison.policies)):
        plot.upper.extend(_plot_ladder(ladder, comparison.measure.unit, PALETTE[order % len(PALETTE)]))
    names = [f"scale {scale}" for scale in comparison.scales]
    plot.upper.append(_mark_fixed(names, fixed_cost.value, fixed_score, comparison.measure.unit))
    for rule in RULES:
        cost, score = (float(estimate.value) for estimate in comparison.rule(rule))
        plot.upper.append(_mark_rule(rule, cost, score, comparison.measure.unit))
    for name, noise_free in comparison.noise_free.items():
        cost_line, score_line = refine_line(noise_free.cost.value, noise_free.score.value)
        plot.upper.append(
            Line(
                cost_line, 100 * score_line, NEUTRAL, _NOISE_FREE_DASHES[name], 1.5, NOISE_FREE[name],
                is_optional=True, only="page",
            )
        )  # fmt: skip
    plot.lower.append(_zero(mix[0]))
    return plot


def _plot_policy(
    result: PolicyResult, unit: str, color: str, budgets: Sequence[Sequence[str]], *, is_first: bool
) -> Iterator[Element]:
    """Yield the elements of a policy in the upper panel; `budgets` are the hover texts at its budgets."""
    name = result.name
    trace, front, score = result.trace, result.front, result[score_at_budgets]
    yield Marks(trace.cost, 100 * trace.score, color, size=4, group=name, opacity=0.45, only="page")
    if is_first:
        yield _band(result.cost, score, color, name)
    cost_line, score_line = refine_line(front.cost, front.score)
    # A policy without estimates is a cascade.
    dash: Dash = "solid" if result.reliability is not None else "dashdot"
    yield Line(cost_line, 100 * score_line, color, dash, 3 if is_first else 2, cut_name(name), name)
    # Invisible marks that carry the hover text of each budget.
    yield Marks(
        result.cost, 100 * score.value, color, size=12, group=name, hover=budgets, opacity=0, only="page"
    )
    cost, default = result[default_cost].value, result[default_score]
    text = (
        name,
        f"default price {result.default.price:.4g}",
        f"{format_tokens(cost)} {unit}, {format_score(default)}",
        f"to the best fixed scale {format_difference(result[to_best_fixed])}",
    )
    yield Marks(
        np.array([cost]), np.array([100 * default.value]), color, "diamond", 13 if is_first else 10,
        group=name, hover=[text], is_outlined=True,
    )  # fmt: skip


def _plot_ladder(ladder: LadderResult, unit: str, color: str) -> Iterator[Element]:
    """Yield the fixed scales of another backbone and their mix."""
    cost, score = ladder.cost.value, ladder.score
    cost_line, score_line = refine_line(cost[ladder.mix], score.value[ladder.mix])
    yield Line(cost_line, 100 * score_line, color, "longdash", 1.5, cut_name(ladder.label), ladder.label)
    names = [f"{ladder.name}, scale {scale}" for scale in ladder.scales]
    marks = _mark_fixed(names, cost, score, unit)
    yield replace(marks, color=color, size=6, label=None, group=ladder.label)


def _describe_budget(result: PolicyResult, comparison: Comparison, k: int) -> list[str]:
    lines = [
        result.name,
        f"budget {format_tokens(result.budgets[k])}, spends {format_tokens(result.cost[k])} "
        f"{comparison.measure.unit}",
        f"score {format_score(result[score_at_budgets][k])}",
        f"to the mix {format_difference(result[to_mix][k])}",
    ]
    reference = result.find(to_reference)
    if reference is not None:
        lines.append(f"to {comparison.reference} {format_difference(reference[k])}")
    lines.append(f"share of the gap {format_share(result[gap_share][k])}")
    prices = result.policy.price[result.plan[k] > 0]
    lines.append("price " + " or ".join(f"{price:.3g}" for price in prices))
    chosen = zip(comparison.scales, result.chosen[k], strict=True)
    lines.append(", ".join(f"{share:.0%} at scale {scale}" for scale, share in chosen if share >= 0.005))
    return lines


# --- Several runs ------------------------------------------------------------------------------------------


def plot_runs(entries: Sequence[Entry]) -> FrontPlot:
    """Return the plot of the policies of several runs, at most the first `MOST_DRAWN`."""
    run = entries[0].runs[0]
    metrics, measure = run.metrics, run.measure
    fixed_cost, fixed_score = (
        np.array([scale[name]["value"] for scale in metrics["fixed"]], dtype=np.float64)
        for name in ("cost", "score")
    )
    plot = FrontPlot(fixed_cost, measure.label, num_legend_columns=2)
    for order, entry in enumerate(entries[:MOST_DRAWN]):
        # Policies with the same colour have different dashes.
        color, dash = PALETTE[order % len(PALETTE)], _DASHES[order // len(PALETTE)]
        cost, score, difference = (
            entry.find_costs(),
            entry.at_budgets(score_at_budgets),
            entry.at_budgets(to_mix),
        )
        group, mean = f"policy {order}", entry.find(mean_to_mix)
        means = []
        if mean is not None:
            means.append(f"to the mix {format_difference(mean.estimate)}, averaged over log-spaced budgets")
        hover = [
            [
                entry.label,
                f"spends {format_tokens(spent)} {measure.unit}",
                f"score {format_score(score[k])}",
                f"to the mix {format_difference(difference[k])}",
                *means,
            ]
            for k, spent in enumerate(cost)
        ]
        width = 2 if order else 3
        if order == 0:  # the bands of further scores would overlap
            plot.upper.append(_band(cost, score, color, group))
        plot.upper.append(
            Line(cost, 100 * score.value, color, dash, width, cut_name(entry.label), group, hover)
        )
        plot.lower.append(_band(cost, difference, color, group))
        plot.lower.append(Line(cost, 100 * difference.value, color, dash, width, group=group, hover=hover))
    dense, _ = refine_line(np.sort(fixed_cost), np.sort(fixed_score))
    mix = Curve.of(fixed_cost[None], fixed_score[None]).hull().at(dense[None])[0]
    oracle = metrics["budgeted_oracle"]
    oracle_cost, oracle_score = (np.array(oracle[name], dtype=np.float64) for name in ("cost", "score"))
    oracle_line = refine_line(oracle_cost, oracle_score)
    plot.upper.extend(_plot_bounds((dense, mix), oracle_line))
    names = ["fixed scale"] * len(fixed_cost)
    score = Estimate(fixed_score, fixed_score, fixed_score)
    marks = _mark_fixed(names, fixed_cost, score, measure.unit)
    plot.upper.append(replace(marks, low=None, high=None))
    for name, rule in _RULES_IN_METRICS.items():
        point = metrics["oracles"].get(name)
        if point is not None:
            place = (point["cost"]["value"], point["score"]["value"])
            plot.upper.append(_mark_rule(rule, *place, measure.unit))
    plot.lower.append(_zero(dense))
    return plot


# --- Several backbones -------------------------------------------------------------------------------------

_CHOOSER_DASHES: Mapping[Bound, Dash] = {Bound.MIX: "dash", Bound.BUDGETED: "dot"}


def plot_backbones(matched: MatchedCosts) -> FrontPlot:
    """Return the plot of several backbones in one cost measure, with differences to the first one below.

    Of the policies only the first is drawn, with a band; noise-free oracles are optional. Without policies,
    the mix has the band, and all oracles are optional.
    """
    first, *others = matched.backbones
    plot = FrontPlot(
        np.sort(np.concatenate([fronts.fixed_cost for fronts in matched.backbones])),
        matched.label,
        num_legend_columns=len(matched.backbones),
        lower_label=f"points above {first.name}",
    )
    for order, fronts in enumerate(matched.backbones):
        color = PALETTE[order % len(PALETTE)]
        plot.upper.extend(_plot_backbone(fronts, matched, color))
    for order, fronts in enumerate(others, start=1):
        color = PALETTE[order % len(PALETTE)]
        for chooser in _list_drawn(fronts):
            if chooser not in first.at_budgets:
                continue
            difference = fronts.at_budgets[chooser].value - first.at_budgets[chooser].value
            plot.lower.append(
                Line(matched.budgets, 100 * difference, color, _dash_of(chooser), _width_of(chooser))
            )
    plot.lower.append(_zero(matched.budgets))
    return plot


def _list_drawn(fronts: BackboneFronts) -> list[Chooser]:
    """Return the mix, the first policy and the budgeted oracle; the mix alone if there is no policy."""
    policies = [chooser for chooser in fronts.lines if isinstance(chooser, Predictor)]
    return [Bound.MIX, policies[0], Bound.BUDGETED] if policies else [Bound.MIX]


def _dash_of(chooser: Chooser) -> Dash:
    if isinstance(chooser, NoiseFree):
        return _NOISE_FREE_DASHES[chooser.name]
    return _CHOOSER_DASHES[chooser] if isinstance(chooser, Bound) else "solid"


def _width_of(chooser: Chooser) -> float:
    return 3 if isinstance(chooser, Predictor) else 1.5


def _plot_backbone(fronts: BackboneFronts, matched: MatchedCosts, color: str) -> Iterator[Element]:
    drawn = _list_drawn(fronts)
    banded = drawn[1] if len(drawn) > 1 else Bound.MIX
    yield _band(matched.budgets, fronts.at_budgets[banded], color, fronts.name)
    oracles = [
        chooser for chooser in fronts.lines if isinstance(chooser, NoiseFree) or chooser == Bound.BUDGETED
    ]
    for chooser in dict.fromkeys((*drawn, *oracles)):
        cost_line, score_line = refine_line(*fronts.lines[chooser])
        is_drawn = chooser in drawn
        yield Line(
            cost_line, 100 * score_line, color, _dash_of(chooser), _width_of(chooser),
            f"{cut_name(fronts.name)}, {cut_name(label_of(chooser))}",
            is_optional=not is_drawn, only=None if is_drawn else "page",
        )  # fmt: skip
    names = [f"{fronts.name}, scale {scale}" for scale in fronts.scales]
    marks = _mark_fixed(names, fronts.fixed_cost, fronts.fixed_score, matched.unit)
    yield replace(marks, color=color, label=f"{cut_name(fronts.name)}, {Bound.FIXED.label}")


# --- Parts -------------------------------------------------------------------------------------------------


def _plot_bounds(mix: tuple[Floats, Floats], oracle: tuple[Floats, Floats]) -> Iterator[Line]:
    """Yield the lines of the mix and the budgeted oracle, each given as (mean costs, mean scores)."""
    yield Line(mix[0], 100 * mix[1], INK, "dash", 1.5, Bound.MIX.label)
    yield Line(oracle[0], 100 * oracle[1], NEUTRAL, "dot", 2, Bound.BUDGETED.label)


def _mark_fixed(names: Sequence[str], cost: Floats, score: Estimate, unit: str) -> Marks:
    """Return the marks of fixed scales with error bars; `names` are the titles of their hover texts."""
    hover = [
        (name, f"{x:.3g} {unit}, {100 * y:.1f}%") for name, x, y in zip(names, cost, score.value, strict=True)
    ]
    value, low, high = (100 * part for part in (score.value, score.low, score.high))
    return Marks(cost, value, INK, label=Bound.FIXED.label, hover=hover, low=low, high=high)


def _mark_rule(rule: str, cost: float, score: float, unit: str) -> Marks:
    text = (RULES[rule], f"{format_tokens(cost)} {unit}, {format_percent(score)}%")
    return Marks(
        np.array([cost]), np.array([100 * score]), NEUTRAL, _RULE_SYMBOLS[rule], 11, RULES[rule],
        hover=[text],
    )  # fmt: skip


def _zero(cost: Floats) -> Line:
    """Return the line of the mix in the lower panel."""
    return Line(cost[[0, -1]], np.zeros(2), INK, "dash", 1.5)


def _band(cost: Floats, estimate: Estimate, color: str, group: str) -> Band:
    return Band(cost, 100 * estimate.low, 100 * estimate.high, color, group)
