"""What an evaluation found, in tables and sentences: the same in the console and in the report."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.evaluation.costs import Account
from experiments.evaluation.figures import Comparison, Point
from experiments.evaluation.oracles import RULES
from experiments.evaluation.statistics import Estimate
from experiments.labels.held_out import EvaluationRecord
from experiments.reporting.calibration_display import tabulate_calibration
from experiments.reporting.findings import Findings
from experiments.reporting.guarantees import tabulate_guarantees, write_guarantee
from experiments.reporting.merit_tables import build_merit_tables
from experiments.reporting.numbers import (
    MINUS,
    format_difference,
    format_milliseconds,
    format_percent,
    format_score,
    format_share,
    format_small,
    format_tokens,
    has_interval,
    is_known,
    write_number,
)
from experiments.reporting.published_table import tabulate_published
from experiments.reporting.tables import Table
from experiments.tasks.sizes import is_too_few

NUM_SHOWN_BUDGETS = 5


def list_tables(findings: Findings) -> list[Table]:
    """All tables of a report."""
    tables = build_tables(findings.comparison, findings.others)
    for other in findings.others:
        if parts := (findings.cost_parts or {}).get(other.account.key):
            tables.append(tabulate_parts(other, parts))
    if any(figures.reliability is not None for figures in findings.comparison.predictors):
        tables.append(tabulate_calibration(findings.comparison))
    if findings.guarantees:
        tables.append(tabulate_guarantees(findings.guarantees, findings.units or {}))
    if findings.published is not None:
        tables.append(tabulate_published(findings.comparison, findings.published))
    return tables


def write_sentences(findings: Findings) -> list[str]:
    """The headline first, then what it is about and what else has to be said."""
    comparison = findings.comparison
    sentences = [write_headline(comparison), write_scope(comparison), write_default(comparison)]
    if findings.guarantees:
        sentences.append(write_guarantee(findings.guarantees))
    if findings.record is not None:
        sentences.append(describe_record(findings.record))
    return sentences


def describe_record(record: EvaluationRecord) -> str:
    """Sentences on the number of this evaluation on its test split, and on images evaluated before."""
    if record.evaluation == 0:
        text = "No evaluation of predictors is recorded on this test split."
    elif not record.is_new:
        number = f"{record.evaluation:,} evaluation{'s' if record.evaluation > 1 else ''} of new predictors"
        text = f"These predictors were evaluated on this test split before; {number} are recorded."
    elif record.evaluation == 1:
        text = "This is the first recorded evaluation on this test split."
    else:
        text = f"This is evaluation number {record.evaluation:,} of new predictors on this test split."
    if record.num_evaluated_before:
        text += (
            f" {record.num_evaluated_before:,} of its images were evaluated before, under another division "
            "of the data."
        )
    if record.num_once_test:
        text += (
            f" {record.num_once_test:,} of the train and calibration images were test images of an earlier "
            "evaluation."
        )
    if record.num_unread:
        text += f" Images of {record.num_unread:,} earlier evaluations could not be read and are not counted."
    return text if record.is_recorded else f"{text} This evaluation could not be recorded."


def build_tables(comparison: Comparison, others: Sequence[Comparison] = ()) -> list[Table]:
    """Points; scores within budgets; differences to the mix; figures of merit; other costs.

    `others` are the same comparison in other accounts.
    """
    tables = [_tabulate_points(comparison), _tabulate_budgets(comparison), _tabulate_differences(comparison)]
    tables += build_merit_tables(comparison)
    return tables + ([_tabulate_accounts(others)] if others else [])


def write_headline(comparison: Comparison) -> str:
    """Return the result of the first predictor in one sentence.

    Mean differences at matched mean visual tokens, or why there is no finding: too few test images
    (`tasks.sizes`), or nothing to gain.
    """
    figures = comparison.predictors[0]
    if is_too_few(comparison.num_images):
        images = (
            "1 test image is" if comparison.num_images == 1 else f"{comparison.num_images} test images are"
        )
        return f"No finding: {images} too few to compare {figures.name} with mixing fixed scales."
    if comparison.nothing_to_gain:
        return write_no_headroom(comparison)
    difference = describe_difference(figures.mean_to_mix, "mixing fixed scales", comparison.confidence)
    sentence = f"At the same mean number of visual tokens, {figures.name} scores {difference}"
    if figures.mean_to_reference is not None:
        against = str(comparison.reference)
        sentence += f" and {describe_difference(figures.mean_to_reference, against, comparison.confidence)}"
    return f"{sentence}."


def write_no_headroom(comparison: Comparison) -> str:
    """Return the sentence for outcomes on which no choice of scales gains anything."""
    cost, score = comparison.fixed.cost.value, comparison.fixed.score.value
    if len(comparison.scales) == 1:
        return f"These labels have scale {comparison.scales[0]} only: there is nothing to choose."
    if _cost_the_same(comparison):
        return "On this task all scales cost the same: there is nothing to save."
    if score[0] >= score.max() - 1e-12 and cost[0] <= cost.min() * (1 + 1e-9):
        return "On this task finer scales do not help: there is nothing to gain."
    return "On this task no choice of scales beats mixing fixed scales: there is nothing to gain."


def _cost_the_same(comparison: Comparison) -> bool:
    cost = comparison.fixed.cost.value
    return bool(cost.max() - cost.min() <= 1e-9 * cost.max())


def write_scope(comparison: Comparison) -> str:
    """What the headline is about."""
    first, last = (format_tokens(budget) for budget in comparison.budgets[[0, -1]])
    questions = (
        "1 test question" if comparison.num_samples == 1 else f"{comparison.num_samples:,} test questions"
    )
    images = "1 image" if comparison.num_images == 1 else f"{comparison.num_images:,} images"
    budgets = f"log budgets from {first} to {last} tokens"
    if first == last:
        budgets = f"a budget of {write_tokens(last)}"
    return f"Averaged over {budgets}, on {questions} about {images}."


def write_default(comparison: Comparison) -> str:
    """What the first predictor does at its default price, in one sentence."""
    figures, best = comparison.predictors[0], comparison.best_fixed
    default, scale = figures.default, comparison.scales[best]
    own, fixed = default.point, Point(comparison.fixed.cost[best], comparison.fixed.score[best])
    spent, scored = format_tokens(own.cost.value), format_percent(own.score.value)
    if (default.choice == best).all() and own.cost.value == fixed.cost.value:
        return (
            f"At its default price {figures.name} always uses scale {scale}, the best on calibration, which "
            f"spends {write_tokens(spent)} a question and scores {scored}%."
        )
    sentence = (
        f"At its default price {figures.name} spends {write_tokens(spent)} a question and scores {scored}%; "
        f"always using scale {scale}, the best on calibration, spends {format_tokens(fixed.cost.value)} and "
        f"scores {format_percent(fixed.score.value)}%"
    )
    difference = default.to_best_fixed
    if is_too_few(comparison.num_images) or not np.isfinite([difference.low, difference.high]).all():
        return f"{sentence}."
    low, high = (
        write_number(100 * bound, "+.1f").replace("-", MINUS) for bound in (difference.low, difference.high)
    )
    return f"{sentence} ({comparison.confidence:.0%} interval of the difference: {low} to {high} points)."


def write_tokens(number: str) -> str:
    """A formatted number with its unit, visual tokens."""
    return f"{number} visual token{'' if number == '1' else 's'}"


def describe_difference(estimate: Estimate, against: str, confidence: float) -> str:
    """Return \"1.9 points more than the mix (95% interval 1.2 to 2.6)\", or another true statement.

    A difference that rounds to 0.0 points is not a finding, whatever its interval.
    """
    points, more = f"{100 * abs(float(estimate.value)):.1f}", "more" if estimate.value >= 0 else "less"
    if is_known(estimate) and not has_interval(estimate):
        return f"{points} points {more} than {against} (no interval: too few images)"
    if not is_known(estimate):
        return f"at no cost that can be compared with {against}"
    low, high = (format_percent(bound).replace("-", MINUS) for bound in (estimate.low, estimate.high))
    interval = f"{confidence:.0%} interval {low} to {high}"
    if points == "0.0":
        return f"about as much as {against} ({interval}: no difference is shown)"
    doubt = "" if estimate.low > 0 or estimate.high < 0 else ": no difference is shown"
    return f"{points} points {more} than {against} ({interval}{doubt})"


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
    mix = comparison.mix_scores.value[shown]
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
    notes = [describe_timings(comparison.account) for comparison in comparisons]
    caption = "; ".join([caption, *filter(None, notes)])
    return Table(caption, tuple(header), tuple(map(tuple, rows)), name="costs")


def tabulate_parts(comparison: Comparison, parts: Mapping[str, np.ndarray]) -> Table:
    """Cost of an answer at each scale, by part `[num_scales]`, and the overhead of each predictor.

    Measured costs have intervals over the timed pictures.
    """
    account, whole = comparison.account, comparison.fixed.cost.value
    answers = [format_small(float(cost)) for cost in whole]
    overhead = {figures.name: format_small(account.own_of(figures.name)) for figures in comparison.predictors}
    if account.timings is not None:
        low, high = account.timings.bound(
            comparison.num_resamples, comparison.bootstrap_seed, comparison.confidence
        )
        answers = [format_milliseconds(*each) for each in zip(whole, low.cost[0], high.cost[0], strict=True)]
        overhead |= {
            name: format_milliseconds(account.own_of(name), low.overhead[name][0], high.overhead[name][0])
            for name in overhead.keys() & low.overhead
        }
    blank = ("",) * len(parts)
    rows = []
    for column, scale in enumerate(comparison.scales):
        numbers = [format_small(float(part[column])) for part in parts.values()]
        rows.append((f"scale {scale}", *numbers, "", answers[column]))
    rows += [(f"{name}, its overhead", *blank, cost, "") for name, cost in overhead.items()]
    caption = f"Parts of the cost of an answer in {account.unit}: {account.label}"
    if note := describe_timings(account):
        caption += f"; {note}"
    return Table(caption, ("", *parts, "predictor", "answer"), tuple(rows), name=f"parts_{account.key}")


def describe_timings(account: Account) -> str:
    """Number of timed pictures and what the intervals cover; empty if the account has no timings."""
    timings = account.timings
    if timings is None:
        return ""
    pictures, rounds = (
        f"{number:,} {noun}{'' if number == 1 else 's'}"
        for number, noun in ((timings.num_pictures, "picture"), (timings.num_rounds, "round"))
    )
    machine = timings.machine and f" ({timings.machine})"
    return (
        f"milliseconds are means over {pictures} timed in {rounds}{machine}; their intervals cover the noise "
        "of these timings, but not drift between runs"
    )


def _head(budgets: np.ndarray) -> tuple[str, ...]:
    return tuple(f"\N{LESS-THAN OR EQUAL TO} {format_tokens(budget)}" for budget in budgets)
