"""Tables of an evaluation: views of its metric tables for terminal, report and files.

A new metric of a family (`evaluation.metrics`) becomes a column of its table without further code. A new
table needs a function here and a line in `list_tables`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.costs import PREFILL_FOR_PREDICTOR, VISION_FOR_PREDICTOR, CostMeasure
from experiments.evaluation.fronts import RULES
from experiments.evaluation.metric_table import Bound, Family, Key, MetricTable, PolicyKey
from experiments.evaluation.metrics import (
    default_cost,
    default_score,
    front_saving,
    list_metrics,
    mean_gap_share,
    mean_to_mix,
    mean_to_reference,
    reachable_gap_share,
    reached_cost,
    reached_difference,
    reached_saving,
    score_at_budgets,
    to_mix,
)
from experiments.evaluation.noise_free import NOISE_FREE
from experiments.evaluation.policy_table import FINEST
from experiments.evaluation.statistics import Estimate
from experiments.evaluation.tariff import Savings
from experiments.reporting.calibration_display import tabulate_calibration
from experiments.reporting.findings import Findings
from experiments.reporting.guarantees import tabulate_guarantees
from experiments.reporting.numbers import (
    MISSING,
    count_noun,
    describe_floor,
    format_difference,
    format_metric,
    format_milliseconds,
    format_p_values,
    format_percent,
    format_score,
    format_share,
    format_small,
    format_tokens,
)
from experiments.reporting.published_table import tabulate_published
from experiments.reporting.sensitive import tabulate_sensitive
from experiments.reporting.tables import Table
from experiments.tasks.sizes import is_too_few

NUM_SHOWN_BUDGETS = 5
# Tables that not every evaluation has.
OPTIONAL_TABLES = (
    *("coinciding", "luck", "sensitive", "ladders", "costs", "output_lengths", "calibration", "guarantee"),
    *("published", *(f"parts_{key}" for key in ("flops", "milliseconds", "tariff"))),
)


def list_tables(findings: Findings) -> list[Table]:
    """Return all tables of a report."""
    comparison, others = findings.comparison, findings.others
    tables = [
        tabulate_scores(comparison),
        tabulate_budgets(comparison),
        tabulate_differences(comparison),
        tabulate_merits(comparison),
        tabulate_non_inferiority(comparison),
    ]
    if comparison.coinciding.any():
        tables.append(tabulate_coinciding(comparison))
    if comparison.noise_free:
        tables.append(tabulate_noise_free(comparison))
    if findings.sensitive is not None:
        tables.append(tabulate_sensitive(findings.sensitive, comparison))
    if comparison.ladders:
        tables.append(tabulate_ladders([comparison, *others]))
    tables.append(tabulate_tests(comparison))
    if others:
        tables.append(tabulate_costs(others))
    for other in others:
        if parts := findings.cost_parts.get(other.measure.key):
            tables.append(tabulate_parts(other, parts))
    if findings.savings is not None:
        tables.append(tabulate_savings(findings.savings))
    if any(result.reliability is not None for result in comparison.policies):
        tables.append(tabulate_calibration(comparison))
    if findings.guarantees:
        tables.append(tabulate_guarantees(findings.guarantees, findings.units, comparison.measure.unit))
    if findings.published is not None:
        tables.append(tabulate_published(comparison, findings.published))
    return tables


def tabulate_scores(comparison: Comparison) -> Table:
    """Tabulate mean cost and score of fixed scales, of policies at their default price, and of oracles."""
    points = [
        (f"scale {scale}", comparison.fixed_cost[column], comparison.fixed_score[column])
        for column, scale in enumerate(comparison.scales)
    ]
    points += [
        (f"{result.name}, default price", result[default_cost], result[default_score])
        for result in comparison.policies
    ]
    points += [
        (f"{ladder.name}, scale {scale}", ladder.cost[column], ladder.score[column])
        for ladder in comparison.ladders
        for column, scale in enumerate(ladder.scales)
    ]
    points += [(label, *comparison.rule(rule)) for rule, label in RULES.items()]
    caption = (
        f"Mean score in percent with {comparison.confidence:.0%} intervals, "
        f"{comparison.num_samples:,} questions on {comparison.num_images:,} images"
    )
    rows = tuple((name, format_tokens(cost.value), format_score(score)) for name, cost, score in points)
    return Table(caption, ("policy", comparison.measure.noun, "score"), rows, name="scores")


def tabulate_coinciding(comparison: Comparison) -> Table:
    """Tabulate the share of the samples on which each scale coincides with the next coarser one."""
    rows = tuple(
        (f"scale {scale}", f"scale {coarser}", f"{share:.1%}")
        for (coarser, scale), share in zip(
            pairwise(comparison.scales), comparison.coinciding[1:], strict=True
        )
    )
    caption = (
        "Share of the test questions on which a scale gives the image as many visual tokens as the next "
        "coarser scale: the two have one answer, which is counted and paid once"
    )
    return Table(caption, ("scale", "coincides with", "share"), rows, name="coinciding")


def tabulate_budgets(comparison: Comparison) -> Table:
    """Tabulate scores within budgets, and means over all budgets."""
    shown = comparison.list_positions(NUM_SHOWN_BUDGETS)
    budgets = comparison.budgets[shown]
    compared = (f"to {comparison.reference}",) if comparison.reference else ()
    mix = comparison.bound_scores(Bound.MIX).value[shown]
    oracle = np.interp(budgets, comparison.oracle.cost, comparison.oracle.score)
    blank = ("-",) * (2 + len(compared))
    rows = [("mix of fixed scales", *map(format_percent, mix), *blank)]
    for result in comparison.policies:
        differences = [format_difference(result.find(mean_to_mix))]
        differences += [format_difference(result.find(mean_to_reference))] if compared else []
        scores = map(format_percent, result[score_at_budgets].value[shown])
        rows.append((result.name, *scores, *differences, format_share(result.find(mean_gap_share))))
    rows.append(("budgeted oracle", *map(format_percent, oracle), *blank))
    caption = (
        f"Score within budgets of mean {comparison.measure.noun}; at matched {comparison.measure.unit}, "
        "averaged over log-spaced budgets: "
        "difference in points, share of the gap from mix to budgeted oracle"
    )
    header = ("policy", *_head_budgets(budgets), "to mix", *compared, "share of gap")
    return Table(caption, header, tuple(rows), name="budgets")


def tabulate_differences(comparison: Comparison) -> Table:
    """Tabulate differences to the mix at some budgets."""
    shown = comparison.list_positions(NUM_SHOWN_BUDGETS)
    rows = [
        (result.name, *(format_difference(result[to_mix][k]) for k in shown))
        for result in comparison.policies
    ]
    caption = f"Difference to the mix in points at matched mean {comparison.measure.noun}"
    header = ("policy", *_head_budgets(comparison.budgets[shown]))
    return Table(caption, header, tuple(rows), name="differences")


def tabulate_merits(comparison: Comparison) -> Table:
    """Tabulate the metrics of single fronts for every policy, the mix and the budgeted oracle."""
    policies: list[tuple[str, MetricTable, PolicyKey]] = [
        (result.name, result.metrics, result.key) for result in comparison.policies
    ]
    policies += [(bound.label, comparison.metrics, bound) for bound in (Bound.MIX, Bound.BUDGETED)]
    first = comparison.policies[0]
    columns = [
        Key(first.key, metric, key.at)
        for metric in list_metrics(Family.FRONT)
        for key in first.metrics
        if key[:2] == (first.key, metric)
    ]
    rows = [
        (
            name,
            *(
                format_metric(column.metric, metrics.find(policy, column.metric, column.at))
                for column in columns
            ),
        )
        for name, metrics, policy in policies
    ]
    caption = (
        "Metrics of whole fronts over linear cost, as used in papers on routing: AIQ (RouterBench), APGR and "
        "CPT (RouteLLM) from the coarsest to the finest scale, hypervolume; in percent"
    )
    header = (
        column.metric.label if column.at is None else f"{column.metric.label}({column.at:.0%})"
        for column in columns
    )
    return Table(caption, ("policy", *header), tuple(rows), name="merits")


def tabulate_non_inferiority(comparison: Comparison) -> Table:
    """Tabulate the cheapest non-inferior operating points of the first policy, by fixed scale and margin."""
    is_few, result = is_too_few(comparison.num_images), comparison.policies[0]
    rows = []
    for verdict in result.verdicts:
        (baseline, margin), column = verdict.baseline, verdict.column
        # If the best fixed scale is the finest, or coincides with it, its rows would be duplicates.
        if baseline != FINEST and (comparison.coinciding[column + 1 :] == 1).all():
            continue
        cost = result.find(reached_cost, verdict.baseline)
        rows.append(
            (
                result.name,
                f"{baseline} ({comparison.scales[column]})",
                f"{100 * margin:g}",
                "-" if cost is None else format_tokens(cost.value),
                *(
                    format_metric(metric, result.find(metric, verdict.baseline))
                    for metric in (reached_saving, reached_difference)
                ),
                # With too few images no verdict is given, whatever the interval.
                {None: "-", True: "yes", False: "no"}[None if is_few else verdict.is_shown],
                format_metric(front_saving, result.find(front_saving, verdict.baseline)),
            )
        )
    caption = (
        "Cheapest operating point of the first policy that is not inferior to a fixed scale (margin in "
        "points): chosen on calibration, checked on test; last column: saving of the best possible point on "
        "test"
    )
    header = ("policy", "not inferior to", "margin", "cost", "saving", "difference", "shown", "on the front")
    return Table(caption, header, tuple(rows), name="savings")


def tabulate_noise_free(comparison: Comparison) -> Table:
    """Tabulate the distance from the mix to oracles, with and without outcome noise."""

    def show_ends(scores: Estimate) -> Iterable[str]:
        return map(format_score, (scores[0], scores[-1]))

    first = comparison.policies[0]
    rows = [
        (
            "budgeted oracle",
            "of greedy answers",
            f"{comparison.num_samples:,}",
            *show_ends(comparison.fixed_score),
            format_difference(comparison.oracle_gap),
            format_share(first.find(mean_gap_share)),
        )
    ]
    for name, oracle in comparison.noise_free.items():
        scores = f"of {oracle.num_runs} answers" if oracle.num_runs > 1 else "expected"
        labels = (NOISE_FREE[name], scores, f"{oracle.num_samples:,}")
        share = format_share(first.find(reachable_gap_share, name))
        rows.append((*labels, *show_ends(oracle.fixed_score), format_difference(oracle.gap), share))
    caption = (
        "Headroom: budgeted oracle minus mix in points, averaged over log-spaced budgets, with and without "
        "outcome noise; scores of the coarsest and the finest scale in the same terms; last column: the "
        f"share that {first.name} recovers at its own mean costs, in the same terms, if all samples have them"
    )
    header = ("oracle", "scores", "samples", "coarsest", "finest", "gap", "recovered")
    return Table(caption, header, tuple(rows), name="luck")


def tabulate_ladders(comparisons: Sequence[Comparison]) -> Table:
    """Tabulate the first policy minus the mix of each other backbone, in the cost measures that have some."""
    shown = [comparison for comparison in comparisons if comparison.ladders]
    first, num_resamples = shown[0], shown[0].bootstrap.num_resamples
    num_tests = len(first.differences)
    rows = []
    for position, ladder in enumerate(first.ladders):
        cells: list[str] = []
        for comparison in shown:
            other = comparison.ladders[position]
            if other.lowest_cost is None:
                cells += [MISSING] * 3
                continue
            tests = format_p_values(
                other.difference.p_value, other.difference.adjusted, num_resamples, num_tests
            )
            cells += [format_difference(other.difference.mean), format_small(other.lowest_cost), tests[-1]]
        rows.append((ladder.label, *cells))
    header = [
        text for comparison in shown for text in (f"equal {comparison.measure.unit}", "from", "p (Holm)")
    ]
    caption = (
        f"{first.policies[0].name} minus the mix of fixed scales of other backbones, in points at matched "
        "cost, averaged over log-spaced budgets from the cheapest one that the other backbone can meet; "
        f"{describe_floor(num_resamples, num_tests)}"
    )
    return Table(caption, ("minus", *header), tuple(rows), name="ladders")


def tabulate_tests(comparison: Comparison) -> Table:
    """Tabulate the tested differences with their p-values."""
    num_resamples, num_tests = comparison.bootstrap.num_resamples, len(comparison.differences)
    rows = [
        (
            difference.label,
            format_difference(difference.mean),
            *format_p_values(difference.p_value, difference.adjusted, num_resamples, num_tests),
        )
        for difference in comparison.differences
    ]
    caption = (
        "Differences in points at matched cost, averaged over log-spaced budgets, with two-sided p-values of "
        f"the paired bootstrap; {describe_floor(num_resamples, num_tests)}"
    )
    return Table(caption, ("difference", "mean", "p", "p (Holm)"), tuple(rows), name="tests")


def tabulate_costs(comparisons: Sequence[Comparison]) -> Table:
    """Tabulate the overhead of every policy, and its difference to the mix, in other cost measures."""
    header, rows = ["predictor"], [[result.name] for result in comparisons[0].policies]
    for comparison in comparisons:
        measure, finest = comparison.measure, float(comparison.fixed_cost.value[-1])
        header += [
            f"overhead, {measure.unit}",
            "of an answer at the finest scale",
            f"to mix, matched {measure.unit}",
        ]
        for row, result in zip(rows, comparison.policies, strict=True):
            overhead = measure.overhead_of(result.name)
            row += [
                format_small(overhead),
                f"{format_small(100 * overhead / finest)}%",
                format_difference(result.find(mean_to_mix)),
            ]
    caption = (
        "Overhead of the predictor, and difference to the mix in points at matched cost in "
        f"{' or in '.join(comparison.measure.unit for comparison in comparisons)}, overhead included, "
        "averaged over log-spaced budgets"
    )
    notes = [describe_timings(comparison.measure) for comparison in comparisons]
    caption = "; ".join([caption, *filter(None, notes)])
    return Table(caption, tuple(header), tuple(map(tuple, rows)), name="costs")


def tabulate_savings(savings: Savings) -> Table:
    """Tabulate costs by a tariff and what they save of the finest scale's, by length of the answers."""
    lengths = savings.tariff.output_tokens
    rows = [("finest scale", *(cell for cost in savings.finest.value for cell in (format_small(cost), "-")))]
    for name, cost in savings.cost.items():
        cells = [
            (format_small(cost.value[position]), format_share(savings.saved[name][position]))
            for position in range(len(lengths))
        ]
        rows.append((f"{name}, default price", *chain.from_iterable(cells)))
    header = [text for number in lengths for text in (f"{number:,} output: cost", "saved")]
    caption = (
        f"Mean {savings.tariff.unit} per question by the tariff {savings.tariff.name}, and the share of the "
        "finest scale's that is saved, by number of output tokens of every answer"
    )
    return Table(caption, ("policy", *header), tuple(rows), name="output_lengths")


def tabulate_parts(comparison: Comparison, parts: Mapping[str, np.ndarray]) -> Table:
    """Tabulate the cost of an answer at each scale by part, and the overhead of each predictor.

    `parts` are costs `[num_scales]` by name. Measured costs have intervals over the timed images.
    """
    measure, answer_cost = comparison.measure, comparison.fixed_cost.value
    answers = [format_small(float(cost)) for cost in answer_cost]
    overhead = {result.name: format_small(measure.overhead_of(result.name)) for result in comparison.policies}
    if measure.timings is not None:
        resamples = comparison.bootstrap
        low, high = measure.timings.bound(resamples.num_resamples, resamples.seed, resamples.confidence)
        answers = [
            format_milliseconds(*bounds)
            for bounds in zip(answer_cost, low.cost[0], high.cost[0], strict=True)
        ]
        overhead |= {
            name: format_milliseconds(
                measure.overhead_of(name), low.overhead[name][0], high.overhead[name][0]
            )
            for name in overhead.keys() & low.overhead
        }
    blank = ("",) * len(parts)
    rows = []
    for column, scale in enumerate(comparison.scales):
        numbers = [format_small(float(part[column])) for part in parts.values()]
        rows.append((f"scale {scale}", *numbers, "", answers[column]))
    rows += [(f"overhead of {name}", *blank, cost, "") for name, cost in overhead.items()]
    caption = f"Parts of the cost of an answer in {measure.unit}: {measure.label}"
    if VISION_FOR_PREDICTOR in parts:
        caption += (
            f"; {VISION_FOR_PREDICTOR} is the vision pass of the coarsest scale, which is added to the "
            f"answers of {', '.join(measure.vision_readers)}"
        )
    if PREFILL_FOR_PREDICTOR in parts:
        caption += (
            f"; {PREFILL_FOR_PREDICTOR} is the prefill of the coarsest scale, which is added to the "
            f"answers of {', '.join(measure.state_readers)}"
        )
    if note := describe_timings(measure):
        caption += f"; {note}"
    return Table(caption, ("", *parts, "predictor", "answer"), tuple(rows), name=f"parts_{measure.key}")


def describe_timings(measure: CostMeasure) -> str:
    """Return a clause on the timed images and what the intervals cover; empty without timings."""
    timings = measure.timings
    if timings is None:
        return ""
    pictures, rounds = count_noun(timings.num_pictures, "image"), count_noun(timings.num_rounds, "round")
    machine = timings.machine and f" ({timings.machine})"
    return (
        f"milliseconds are means over {pictures} timed in {rounds}{machine}; their intervals cover the noise "
        "of these timings, but not drift between runs"
    )


def _head_budgets(budgets: np.ndarray) -> tuple[str, ...]:
    return tuple(f"\N{LESS-THAN OR EQUAL TO} {format_tokens(budget)}" for budget in budgets)
