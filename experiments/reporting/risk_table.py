"""Promises about the score and what became of them, in a table and a sentence."""

from collections.abc import Mapping, Sequence

from experiments.evaluation.risk import Guarantee, Promise, Resplits
from experiments.reporting.numbers import format_difference, format_tokens, write_number
from experiments.reporting.tables import Table


def tabulate_promises(promises: Sequence[Promise], units: Mapping[str, float]) -> Table:
    """Every predictor's promised price; `units` are the visual tokens that its price is charged for."""
    rows = []
    for promise in promises:
        guarantee, realised = promise.guarantee, promise.realised
        price = guarantee.price_per(units[promise.name])
        rows.append(
            (
                promise.name,
                "infeasible" if price is None else f"{price:.4g}",
                _name_needed(guarantee),
                format_tokens(guarantee.cost) if guarantee.is_feasible else "-",
                write_number(100 * guarantee.drop, ".1f"),
                f"{format_tokens(realised.cost.value)} [{format_tokens(realised.cost.low)}, "
                f"{format_tokens(realised.cost.high)}]",
                format_difference(realised.drop),
                _format_broken(promise.resplits),
            )
        )
    first = promises[0].guarantee
    caption = (
        f"Promise: with probability {1 - first.delta:g}, the mean score is at most {100 * first.alpha:g} "
        f"points below the finest scale's. Certified on the {first.num_images:,} calibration images; drops "
        "in points; where infeasible, the drop is that at the safest price, and the finest scale is used. "
        "Broken: of random halves of the test images, those on which a promise was made that does not hold "
        "over all of them"
    )
    header = (
        "predictor", "price", "images needed", "tokens, calibration", "drop, calibration", "tokens, test",
        "drop, test", "broken",
    )  # fmt: skip
    return Table(caption, header, tuple(rows), name="promise")


def _format_broken(resplits: Resplits | None) -> str:
    if resplits is None:
        return "-"
    number = round(resplits.broken * resplits.num_splits)
    return f"{number} of {resplits.num_splits:,}" if resplits.feasible else "infeasible"


def _name_needed(guarantee: Guarantee) -> str:
    if guarantee.is_feasible:
        return "-"
    return "out of reach" if guarantee.num_needed is None else f"{guarantee.num_needed:,}"


def write_promise(promise: Promise) -> str:
    """What is promised of a predictor, at which price, and what became of it."""
    guarantee, realised = promise.guarantee, promise.realised
    points = f"{100 * guarantee.alpha:g} point{'' if guarantee.alpha == 0.01 else 's'}"
    what = f"to score at most {points} below the finest scale with probability {1 - guarantee.delta:g} is "
    if not guarantee.is_feasible:
        if guarantee.num_needed is None and guarantee.drop < guarantee.alpha:
            reason = f"would need more than 64 times its {guarantee.num_images:,} calibration images"
        elif guarantee.num_needed is None:
            reason = (
                f"loses {write_number(100 * guarantee.drop, '.1f')} points on the {guarantee.num_images:,} "
                "calibration images even at its safest price, so that no number of them would do"
            )
        else:
            reason = (
                f"would need about {guarantee.num_needed:,} calibration images, and has "
                f"{guarantee.num_images:,}"
            )
        return f"A promise {what}infeasible for {promise.name}: it {reason}."
    kept = "kept" if realised.drop.value <= guarantee.alpha else "broken"
    return (
        f"A promise {what}certified for {promise.name}; on test it was {kept}, at "
        f"{format_tokens(realised.cost.value)} tokens, for a drop of {format_difference(realised.drop)}."
    )
