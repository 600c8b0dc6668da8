"""Tables of the scales that questions need, and of what policies gain by knowing more."""

from collections.abc import Mapping, Sequence

from experiments.evaluation.equivalence import LEVEL, Equivalence
from experiments.evaluation.figures import Comparison
from experiments.evaluation.needs import Need
from experiments.reporting.numbers import (
    describe_floor,
    find_floor,
    format_difference,
    format_p_value,
    format_percent,
    format_share,
)
from experiments.reporting.tables import Table


def tabulate_needs(needs: Sequence[Need], scales: tuple[int, ...], margin: float, title: str) -> Table:
    """Mean score per scale and the smallest sufficient one."""
    rows = [
        (need.name, f"{need.num_samples:,}", *map(format_percent, need.scores), str(scales[need.column]))
        for need in needs
    ]
    caption = (
        f"{title}: score in percent at each scale, and the smallest scale within {100 * margin:g} of the best"
    )
    return Table(caption, ("kind", "questions", *map(str, scales), "needed"), tuple(rows), name="needs")


def tabulate_classifiers(accuracy: Mapping[str, float]) -> Table:
    """Of `ScaleClassifiers.measure`."""
    rows = tuple((name, format_percent(value)) for name, value in accuracy.items())
    caption = "Smallest sufficient scale, where there is one, told from what is known: accuracy in percent"
    return Table(caption, ("known", "accuracy"), rows, name="classifiers")


def tabulate_policies(comparison: Comparison) -> Table:
    """Of `compare_known`: what a policy gains by what it knows."""
    rows = tuple(
        (figures.name, format_difference(figures.mean_to_mix), format_share(figures.mean_gap_share))
        for figures in comparison.predictors
    )
    caption = (
        "Policies by what they know, at matched mean visual tokens, averaged over log budget: points above "
        "the mix, and share of the gap from mix to budgeted oracle. Boosted regressions of the score at each "
        f"scale, trained once; prices chosen on calibration; {comparison.confidence:.0%} intervals over "
        f"{comparison.num_images:,} test images"
    )
    return Table(caption, ("known", "to mix", "share of gap"), rows, name="policies")


def tabulate_equivalences(equivalences: Sequence[Equivalence], num_resamples: int) -> Table:
    """Of `find_equivalences`: whether being told facts changes what a policy gains."""
    floor = find_floor(num_resamples, len(equivalences))
    rows = tuple(
        (
            f"{found.first} - {found.second}",
            format_difference(found.difference),
            format_share(found.share),
            format_p_value(found.p_value, floor),
            found.verdict,
        )
        for found in equivalences
    )
    caption = (
        "Policies that are told facts less the one that is not, on the same resamples of the images: "
        f"points and share of the gap with {1 - 2 * LEVEL:.0%} intervals. Equivalent: the interval lies "
        f"within {100 * equivalences[0].margin:g} points of zero (two one-sided tests at {LEVEL:g}); "
        f"differs: not equivalent, and p below {LEVEL:g}. "
        f"{describe_floor(num_resamples, len(equivalences))}"
    )
    return Table(
        caption, ("difference", "points", "share of gap", "p (Holm)", "verdict"), rows, name="equivalence"
    )
