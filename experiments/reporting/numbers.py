"""Numbers as text, the same in every table, chart and sentence."""

import numpy as np

from experiments.evaluation.statistics import Estimate

MINUS = "\N{MINUS SIGN}"


def format_score(estimate: Estimate | None) -> str:
    """A score in percent with its interval; a dash for none."""
    if estimate is None:
        return "-"
    low, high = map(format_percent, (estimate.low, estimate.high))
    return f"{format_percent(estimate.value)} [{low}, {high}]"


def format_difference(estimate: Estimate | None) -> str:
    """A difference in points with its sign and interval; a dash for none."""
    if estimate is None:
        return "-"
    value, low, high = (
        write_number(100 * each, "+.1f") for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def format_share(estimate: Estimate | None) -> str:
    """A share in percent with its interval; a dash where it does not exist."""
    if estimate is None or np.isnan(estimate.value):
        return "-"
    value, low, high = (
        write_number(100 * each, ".0f") for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}% [{low}, {high}]"


def format_tokens(cost: float | np.ndarray) -> str:
    """A mean number of visual tokens, to three digits or the unit."""
    return f"{float(cost):.3g}" if cost < 100 else f"{float(cost):.0f}"


def format_percent(score: float | np.ndarray) -> str:
    """A score in percent to one decimal."""
    return write_number(100 * score, ".1f")


def write_number(value: float | np.ndarray, form: str) -> str:
    """A number in a format, zero without a sign."""
    text = format(float(value), form)
    return text if text.strip("+-0.") else text.lstrip("+-")


def format_small(value: float) -> str:
    """Two digits, or the unit; what is below a thousandth only as that."""
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
