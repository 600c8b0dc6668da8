"""Tables of the figures of merit: of fronts, of savings, and of differences with their p-values."""

from experiments.evaluation.figures import FINEST, RECOVERED, Comparison
from experiments.evaluation.keys import Bound
from experiments.evaluation.oracles import LUCK_FREE
from experiments.evaluation.statistics import Estimate
from experiments.reporting.numbers import (
    describe_floor,
    find_floor,
    format_difference,
    format_p_value,
    format_score,
    format_share,
    format_tokens,
    write_estimate,
)
from experiments.reporting.tables import Table
from experiments.tasks.sizes import is_too_few


def build_merit_tables(comparison: Comparison) -> list[Table]:
    """Merits of every front; not inferior for least; oracles without luck, if any; tested differences."""
    tables = [_tabulate_merits(comparison), _tabulate_non_inferiority(comparison)]
    tables += [_tabulate_luck(comparison)] if comparison.luck_free else []
    return [*tables, _tabulate_tests(comparison)]


def _tabulate_merits(comparison: Comparison) -> Table:
    merits = [(figures.name, figures.merits) for figures in comparison.predictors]
    merits += [(bound.label, comparison.bounds[bound]) for bound in (Bound.MIX, Bound.BUDGETED)]
    rows = [
        (
            name,
            format_score(its.average_quality),
            format_share(its.average_gap_recovered),
            *(format_share(its.call_shares[recovered]) for recovered in RECOVERED),
            format_score(its.hypervolume),
        )
        for name, its in merits
    ]
    caption = (
        "Figures of merit over linear cost, as routing papers give them: AIQ (RouterBench), APGR and CPT "
        "(RouteLLM) from the coarsest to the finest scale, hypervolume; in percent"
    )
    shares = (f"CPT({recovered:.0%})" for recovered in RECOVERED)
    return Table(caption, ("policy", "AIQ", "APGR", *shares, "hypervolume"), tuple(rows), name="merits")


def _tabulate_non_inferiority(comparison: Comparison) -> Table:
    few = is_too_few(comparison.num_images)
    rows = [
        (
            figures.name,
            f"{found.baseline} ({comparison.scales[found.column]})",
            f"{100 * found.margin:g}",
            "-" if found.cost is None else format_tokens(found.cost.value),
            _format_factor(found.saving),
            format_difference(found.difference),
            # With so few images no verdict is given, whatever the interval.
            {None: "-", True: "yes", False: "no"}[None if few else found.is_shown],
            _format_factor(found.front_saving),
        )
        for figures in comparison.predictors[:1]
        for found in figures.non_inferiority
        # Where the best fixed scale is the finest, its rows would be the same.
        if found.baseline == FINEST or found.column != len(comparison.scales) - 1
    ]
    caption = (
        "Least cost at which the first policy is as good as a fixed scale but for a margin in points: "
        "the price chosen on calibration, and whether the test samples show it; last, what the best price on "
        "the test samples would save"
    )
    header = ("policy", "not inferior to", "margin", "cost", "saving", "difference", "shown", "on the front")
    return Table(caption, header, tuple(rows), name="savings")


def _tabulate_tests(comparison: Comparison) -> Table:
    num_resamples, num_tests = comparison.num_resamples, len(comparison.differences)
    floor, adjusted_floor = find_floor(num_resamples), find_floor(num_resamples, num_tests)
    rows = [
        (
            difference.label,
            format_difference(difference.mean),
            format_p_value(difference.p_value, floor),
            format_p_value(difference.adjusted, adjusted_floor),
        )
        for difference in comparison.differences
    ]
    caption = (
        "Differences in points at matched cost, averaged over log-spaced budgets, with two-sided p-values of "
        f"the paired bootstrap; {describe_floor(num_resamples, num_tests)}"
    )
    return Table(caption, ("difference", "mean", "p", "p (Holm)"), tuple(rows), name="tests")


def _format_factor(estimate: Estimate | None) -> str:
    """A factor with its interval; a dash for none."""
    return write_estimate(estimate, lambda value: format(float(value), ".3g"))


def _tabulate_luck(comparison: Comparison) -> Table:
    answered = ("budgeted oracle", "as answered", f"{comparison.num_samples:,}")
    rows = [
        (
            *answered,
            *map(format_score, _ends(comparison.fixed.score)),
            format_difference(comparison.oracle_gap),
        )
    ]
    for name, found in comparison.luck_free.items():
        scores = map(format_score, _ends(found.fixed_score))
        drawn = f"of {found.num_runs} answers" if found.num_runs > 1 else "expected"
        labels = (LUCK_FREE[name], drawn, f"{found.num_samples:,}")
        rows.append((*labels, *scores, format_difference(found.gap)))
    caption = (
        "What there is to gain: distance in points from the mix to an oracle in one budget, averaged over "
        "log budget, with luck and without; scores of the coarsest and the finest scale as it counts them"
    )
    return Table(
        caption, ("oracle", "scores", "samples", "coarsest", "finest", "gap"), tuple(rows), name="luck"
    )


def _ends(scores: Estimate) -> tuple[Estimate, Estimate]:
    return scores[0], scores[-1]
