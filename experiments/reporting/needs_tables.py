"""Tables of the scales that questions need, and of the gain of policies by what they know."""

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
    """The accuracies of `ScaleClassifiers.measure`."""
    rows = tuple((name, format_percent(value)) for name, value in accuracy.items())
    caption = "Prediction of the smallest sufficient scale, where there is one: accuracy in percent"
    return Table(caption, ("known", "accuracy"), rows, name="classifiers")


def tabulate_policies(comparison: Comparison) -> Table:
    """The comparison of `compare_known`: gain of each policy by what it knows."""
    rows = tuple(
        (figures.name, format_difference(figures.mean_to_mix), format_share(figures.mean_gap_share))
        for figures in comparison.predictors
    )
    caption = (
        "Policies by what they know, at matched mean visual tokens, averaged over log-spaced budgets: points "
        "above the mix and share of the gap from mix to budgeted oracle. Boosted regressions of the score at "
        f"each scale, trained once; prices chosen on calibration; {comparison.confidence:.0%} intervals over "
        f"{comparison.num_images:,} test images"
    )
    return Table(caption, ("known", "to mix", "share of gap"), rows, name="policies")


def tabulate_equivalences(equivalences: Sequence[Equivalence], num_resamples: int) -> Table:
    """The result of `find_equivalences`: whether facts change the gain of a policy."""
    floor = find_floor(num_resamples, len(equivalences))
    rows = tuple(
        (
            f"{equivalence.first} - {equivalence.second}",
            format_difference(equivalence.difference),
            format_share(equivalence.share),
            format_p_value(equivalence.p_value, floor),
            equivalence.verdict,
        )
        for equivalence in equivalences
    )
    caption = (
        "Policies that know facts minus the policy that does not, on the same resamples of the images: "
        f"points and share of the gap with {1 - 2 * LEVEL:.0%} intervals. Equivalent: the interval lies "
        f"within {100 * equivalences[0].margin:g} points of zero (two one-sided tests at {LEVEL:g}); "
        f"differs: not equivalent, and p below {LEVEL:g}. "
        f"{describe_floor(num_resamples, len(equivalences))}"
    )
    return Table(
        caption, ("difference", "points", "share of gap", "p (Holm)", "verdict"), rows, name="equivalence"
    )
