"""What an evaluation found, in tables and sentences: the same in the console and in the report."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.evaluation.figures import Comparison, Point
from experiments.evaluation.fronts import score_of_mix
from experiments.evaluation.oracles import RULES
from experiments.evaluation.statistics import Estimate
from experiments.held_out import HeldOutRead
from experiments.reporting.calibration_display import tabulate_calibration
from experiments.reporting.findings import Findings
from experiments.reporting.merit_tables import build_merit_tables
from experiments.reporting.numbers import (
    MINUS,
    format_difference,
    format_percent,
    format_score,
    format_share,
    format_small,
    format_tokens,
    write_number,
)
from experiments.reporting.published_table import tabulate_published
from experiments.reporting.risk_table import tabulate_promises, write_promise
from experiments.reporting.tables import Table

NUM_SHOWN_BUDGETS = 5


def list_tables(findings: Findings) -> list[Table]:
    """All tables of a report."""
    tables = build_tables(findings.comparison, findings.others)
    for other in findings.others:
        if parts := (findings.cost_parts or {}).get(other.account.key):
            tables.append(tabulate_parts(other, parts))
    if any(figures.reliability is not None for figures in findings.comparison.predictors):
        tables.append(tabulate_calibration(findings.comparison))
    if findings.promises:
        tables.append(tabulate_promises(findings.promises, findings.units or {}))
    if findings.published is not None:
        tables.append(tabulate_published(findings.comparison, findings.published))
    return tables


def write_sentences(findings: Findings) -> list[str]:
    """The headline first, then what it is about and what else has to be said."""
    comparison = findings.comparison
    sentences = [write_headline(comparison), write_scope(comparison), write_default(comparison)]
    sentences += [write_promise(promise) for promise in findings.promises[:1]]
    if findings.test_read is not None:
        sentences.append(write_read(findings.test_read))
    return sentences


def write_read(read: HeldOutRead) -> str:
    """How often the test split has been read."""
    times = "once" if read.number == 1 else f"{read.number:,} times"
    looks = "these predictors alone" if read.look == 1 else f"look number {read.look:,} at new predictors"
    record = "" if read.is_recorded else "; this read could not be recorded beside the labels"
    return f"The test split has been read {times} with this evaluation, {looks}{record}."


def build_tables(comparison: Comparison, others: Sequence[Comparison] = ()) -> list[Table]:
    """Points; scores within budgets; differences to the mix; figures of merit; other costs.

    `others` are the same comparison in other accounts.
    """
    tables = [_tabulate_points(comparison), _tabulate_budgets(comparison), _tabulate_differences(comparison)]
    tables += build_merit_tables(comparison)
    return tables + ([_tabulate_accounts(others)] if others else [])


def write_headline(comparison: Comparison) -> str:
    """The result of the first predictor in one sentence: mean differences at matched mean visual tokens."""
    figures = comparison.predictors[0]
    difference = describe_difference(figures.mean_to_mix, "mixing fixed scales", comparison.confidence)
    sentence = f"At the same mean number of visual tokens, {figures.name} scores {difference}"
    if figures.mean_to_reference is not None:
        against = str(comparison.reference)
        sentence += f" and {describe_difference(figures.mean_to_reference, against, comparison.confidence)}"
    return f"{sentence}."


def write_scope(comparison: Comparison) -> str:
    """What the headline is about."""
    first, last = (format_tokens(budget) for budget in comparison.budgets[[0, -1]])
    return (
        f"Averaged over log budgets from {first} to {last} tokens, on {comparison.num_samples:,} test "
        f"questions about {comparison.num_images:,} images."
    )


def write_default(comparison: Comparison) -> str:
    """What the first predictor does at its default price, in one sentence."""
    default, best = comparison.predictors[0].default, comparison.best_fixed
    difference = default.to_best_fixed
    low, high = (
        write_number(100 * bound, "+.1f").replace("-", MINUS) for bound in (difference.low, difference.high)
    )
    own, fixed = default.point, Point(comparison.fixed.cost[best], comparison.fixed.score[best])
    return (
        f"At its default price it spends {format_tokens(own.cost.value)} visual tokens a question and scores "
        f"{format_percent(own.score.value)}%; always using scale {comparison.scales[best]}, the best on "
        f"calibration, spends {format_tokens(fixed.cost.value)} and scores "
        f"{format_percent(fixed.score.value)}% (interval of the difference: {low} to {high} points)."
    )


def describe_difference(estimate: Estimate, against: str, confidence: float) -> str:
    """\"1.9 points more than the mix (95% interval 1.2 to 2.6)\", or whatever else is true."""
    points, more = f"{100 * abs(float(estimate.value)):.1f}", "more" if estimate.value >= 0 else "less"
    low, high = (format_percent(bound).replace("-", MINUS) for bound in (estimate.low, estimate.high))
    doubt = "" if estimate.low > 0 or estimate.high < 0 else ": no difference is shown"
    return f"{points} points {more} than {against} ({confidence:.0%} interval {low} to {high}{doubt})"


def _tabulate_points(comparison: Comparison) -> Table:
    def row(name: str, point: Point) -> tuple[str, ...]:
        return name, format_tokens(point.cost.value), format_score(point.score)

    fixed = comparison.fixed
    rows = [
        row(f"scale {scale}", Point(fixed.cost[column], fixed.score[column]))
        for column, scale in enumerate(comparison.scales)
    ]
    rows += [
        row(f"{figures.name}, default price", figures.default.point) for figures in comparison.predictors
    ]
    rows += [row(label, comparison.oracles[rule]) for rule, label in RULES.items()]
    caption = (
        f"Mean score in percent with {comparison.confidence:.0%} intervals, "
        f"{comparison.num_samples:,} questions on {comparison.num_images:,} images"
    )
    return Table(caption, ("policy", "visual tokens", "score"), tuple(rows), name="scores")


def _tabulate_budgets(comparison: Comparison) -> Table:
    shown = comparison.list_positions(NUM_SHOWN_BUDGETS)
    budgets = comparison.budgets[shown]
    compared = (f"to {comparison.reference}",) if comparison.reference else ()
    mix = score_of_mix(comparison.fixed.cost.value, comparison.fixed.score.value, budgets)
    oracle = np.interp(budgets, comparison.oracle.cost, comparison.oracle.score)
    blank = ("-",) * (2 + len(compared))
    rows = [("mix of fixed scales", *map(format_percent, mix), *blank)]
    for figures in comparison.predictors:
        differences = [format_difference(figures.mean_to_mix)]
        differences += [format_difference(figures.mean_to_reference)] if compared else []
        scores = map(format_percent, figures.score.value[shown])
        rows.append((figures.name, *scores, *differences, format_share(figures.mean_gap_share)))
    rows.append(("budgeted oracle", *map(format_percent, oracle), *blank))
    caption = (
        "Score within budgets of mean visual tokens; at matched tokens, averaged over log budget: difference "
        "in points, share of the gap from mix to budgeted oracle"
    )
    return Table(
        caption, ("policy", *_head(budgets), "to mix", *compared, "share of gap"), tuple(rows), name="budgets"
    )


def _tabulate_differences(comparison: Comparison) -> Table:
    shown = comparison.list_positions(NUM_SHOWN_BUDGETS)
    rows = [
        (figures.name, *(format_difference(figures.to_mix[k]) for k in shown))
        for figures in comparison.predictors
    ]
    caption = "Difference to the mix in points at matched mean visual tokens"
    return Table(caption, ("policy", *_head(comparison.budgets[shown])), tuple(rows), name="differences")


def _tabulate_accounts(comparisons: Sequence[Comparison]) -> Table:
    header, rows = ["predictor"], [[figures.name] for figures in comparisons[0].predictors]
    for comparison in comparisons:
        unit, finest = comparison.account.unit, float(comparison.fixed.cost.value[-1])
        header += [f"own {unit}", "of an answer at the finest scale", f"to mix, matched {unit}"]
        for row, figures in zip(rows, comparison.predictors, strict=True):
            own = comparison.account.own_of(figures.name)
            row += [
                format_small(own),
                f"{format_small(100 * own / finest)}%",
                format_difference(figures.mean_to_mix),
            ]
    caption = (
        "What choosing costs, and the difference to the mix in points when cost is counted in "
        f"{' or in '.join(comparison.account.unit for comparison in comparisons)}, the choosing included; "
        "averaged over log budget"
    )
    return Table(caption, tuple(header), tuple(map(tuple, rows)), name="costs")


def tabulate_parts(comparison: Comparison, parts: Mapping[str, np.ndarray]) -> Table:
    """What an answer costs at each scale, by part `[num_scales]`; last what each predictor adds to it."""
    account, whole = comparison.account, comparison.fixed.cost.value
    blank = ("",) * len(parts)
    rows = []
    for column, scale in enumerate(comparison.scales):
        numbers = [format_small(float(part[column])) for part in parts.values()]
        rows.append((f"scale {scale}", *numbers, "", format_small(float(whole[column]))))
    rows += [
        (f"{figures.name}, its overhead", *blank, format_small(account.own_of(figures.name)), "")
        for figures in comparison.predictors
    ]
    caption = f"Parts of the cost of an answer in {account.unit}: {account.label}"
    return Table(caption, ("", *parts, "predictor", "answer"), tuple(rows), name=f"parts_{account.key}")


def _head(budgets: np.ndarray) -> tuple[str, ...]:
    return tuple(f"\N{LESS-THAN OR EQUAL TO} {format_tokens(budget)}" for budget in budgets)
