"""Guarantees on the score and their checks, as a table and as sentences."""

from collections.abc import Mapping, Sequence

from experiments.evaluation.costs import TOKENS
from experiments.evaluation.guarantee import (
    CheckedGuarantee,
    Guarantee,
    RealizedLoss,
    ResplitCheck,
    join_checks,
)
from experiments.reporting.numbers import (
    MINUS,
    count_noun,
    format_difference,
    format_tokens,
    has_interval,
    write_estimate,
    write_number,
)
from experiments.reporting.tables import Table


def tabulate_guarantees(
    guarantees: Sequence[CheckedGuarantee], units: Mapping[str, float], cost_unit: str = TOKENS.unit
) -> Table:
    """Tabulate the certified price of every predictor; prices are per `units` of `cost_unit`, by name."""
    rows = []
    for checked in guarantees:
        guarantee, realized = checked.guarantee, checked.realized
        price = guarantee.price_per(units[checked.name])
        rows.append(
            (
                checked.name,
                "infeasible" if price is None else f"{price:.4g}",
                f"{guarantee.num_images:,}",
                _format_needed(guarantee),
                "-" if guarantee.cost is None or price is None else format_tokens(guarantee.cost),
                "-" if guarantee.drop is None else write_number(100 * guarantee.drop, ".1f"),
                write_estimate(realized.cost, format_tokens),
                format_difference(realized.drop),
                _format_failed(checked.check),
            )
        )
    header = (
        "predictor", "price", "images", "images needed", f"{cost_unit}, calibration", "drop, calibration",
        f"{cost_unit}, test", "drop, test", "failed",
    )  # fmt: skip
    return Table(_write_caption(guarantees), header, tuple(rows), name="guarantee")


def _write_caption(guarantees: Sequence[CheckedGuarantee]) -> str:
    guarantee, realized = guarantees[0].guarantee, guarantees[0].realized
    parts = [
        f"Guarantee: with probability {1 - guarantee.delta:g} over calibration images, the mean score is at "
        f"most {_write_points(guarantee.alpha)} below the finest scale's",
        *_list_multiplicity(guarantees),
        "Drops in points; without a certified price, the calibration drop is that at the safest price, and "
        "the test results are those of the finest scale",
        *_list_large(guarantee, realized),
    ]
    checks = [checked.check for checked in guarantees if checked.check is not None]
    if checks:
        parts.append(
            f"Failed: share of {checks[0].num_resplits:,} simulations in which the certified price loses "
            f"more than {_write_points(guarantee.alpha)} over all test images, with its "
            f"{checks[0].confidence:.0%} Clopper-Pearson interval; each simulation certifies a price on as "
            "many images as the guarantee used, sampled with replacement from the "
            f"{checks[0].num_population:,} test images. The guarantee states at most "
            f"{100 * guarantee.level:.3g}%"
        )
    joint = join_checks(checks) if len(checks) == len(guarantees) > 1 else None
    if joint is not None:
        parts.append(f"At least one of the {len(guarantees)} failed in {_write_failed(joint)}")
    return ". ".join(parts)


def _list_multiplicity(guarantees: Sequence[CheckedGuarantee]) -> list[str]:
    """Return a sentence on the joint probability of several guarantees; empty for one guarantee."""
    guarantee, number = guarantees[0].guarantee, len(guarantees)
    if number == 1:
        return []
    if guarantee.num_joint >= number:
        return [
            f"All {number} guarantees hold together with that probability, as each is certified at level "
            f"{guarantee.delta:g} / {guarantee.num_joint}"
        ]
    together = 1 - number * guarantee.delta
    known = f"with at least {together:.3g}" if together > 1e-9 else "with no stated probability"
    return [
        f"Each of {number} guarantees holds with that probability on its own; all together {known} "
        "(guarantee.joint=true certifies them together)"
    ]


def _list_large(guarantee: Guarantee, realized: RealizedLoss) -> list[str]:
    """Return a sentence on how images with many questions count; empty if there are none."""
    if not realized.num_large:
        return []
    plural = "s have" if realized.num_large > 1 else " has"
    return [
        f"{realized.num_large:,} test image{plural} more than {guarantee.most_questions:,} questions and "
        "count as that many here"
    ]


def _format_needed(guarantee: Guarantee) -> str:
    if guarantee.is_feasible:
        return "-"
    return "unknown" if guarantee.num_needed is None else f"{guarantee.num_needed:,}"


def _format_failed(check: ResplitCheck | None) -> str:
    if check is None:
        return "-"
    if not check.num_certified:
        return "infeasible"
    low, high = check.interval
    return f"{100 * check.failed:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _write_failed(check: ResplitCheck) -> str:
    low, high = check.interval
    return (
        f"{check.num_failed:,} of {check.num_resplits:,} ({check.confidence:.0%} interval {100 * low:.1f}% "
        f"to {100 * high:.1f}%)"
    )


def _write_points(alpha: float) -> str:
    return f"{100 * alpha:g} point{'' if alpha == 0.01 else 's'}"


def write_guarantee(guarantees: Sequence[CheckedGuarantee], noun: str = TOKENS.noun) -> str:
    """Return sentences on the guarantee of the first predictor and on its result on the test split."""
    checked, guarantee = guarantees[0], guarantees[0].guarantee
    bound = f"at most {_write_points(guarantee.alpha)} below the finest scale"
    if not guarantee.is_feasible:
        return (
            f"No guarantee: with probability {1 - guarantee.delta:g}, a score of {bound} is infeasible for "
            f"{checked.name}: {explain_infeasible(guarantee)}."
        )
    sentences = [
        f"Guarantee: with probability {1 - guarantee.delta:g}, {checked.name} scores {bound}, certified on "
        f"{guarantee.num_images:,} calibration images",
        *_list_multiplicity(guarantees),
        _write_realized(checked.name, guarantee.alpha, checked.realized, noun),
        *_list_large(guarantee, checked.realized),
    ]
    if checked.check is not None:
        sentences.append(
            f"Re-certified on {checked.check.num_images:,} images resampled from the test split, the "
            f"guarantee failed in {_write_failed(checked.check)}"
        )
    return f"{'. '.join(sentences)}."


def _write_realized(name: str, alpha: float, realized: RealizedLoss, noun: str) -> str:
    drop = realized.drop
    points = [write_number(100 * bound, ".1f") for bound in (drop.value, drop.low, drop.high)]
    used = f"On the test split {name} uses {format_tokens(realized.cost.value)} {noun} and"
    if not has_interval(drop):
        change = "gains" if drop.value < 0 else "loses"
        points_changed = write_number(100 * abs(drop.value), ".1f")
        return f"{used} {change} {points_changed} points: too few images to say whether the guarantee holds"
    if set(points) == {"0.0"}:
        loss = "scores like the finest scale"
    elif drop.value < 0:
        value, low, high = (write_number(-100 * bound, ".1f") for bound in (drop.value, drop.high, drop.low))
        loss = f"gains {value} points ({realized.confidence:.0%} interval {low} to {high})"
    else:
        loss = f"loses {points[0]} points ({realized.confidence:.0%} interval {points[1]} to {points[2]})"
    if drop.high <= alpha:
        verdict = "which is within the bound"
    elif drop.low > alpha:
        verdict = "which is above the bound: the guarantee failed"
    else:
        verdict = (
            "an interval that contains the bound: the test split does not settle whether the guarantee holds"
        )
    return f"{used} {loss.replace('-', MINUS)}, {verdict}"


def explain_infeasible(guarantee: Guarantee) -> str:
    """Return the reason why no price is certified, as a clause."""
    number = count_noun(guarantee.num_images, "calibration image")
    if guarantee.drop is None:
        return "its calibrator was fitted on every calibration image"
    if guarantee.num_needed is None and guarantee.drop < guarantee.alpha:
        return f"this would need more than 64 times the {number}"
    if guarantee.num_needed is None:
        return (
            f"on the {number} it loses {write_number(100 * guarantee.drop, '.1f')} points even at its safest "
            "price, so that no sufficient number of images is known"
        )
    if guarantee.num_needed <= guarantee.num_images:
        return (
            f"the {number} narrowly fail; the same number of similar images would suffice with an estimated "
            "probability of 80%"
        )
    are = "is" if guarantee.num_images == 1 else "are"
    return (
        f"this would need about {guarantee.num_needed:,} calibration images, and there {are} "
        f"{guarantee.num_images:,}"
    )
