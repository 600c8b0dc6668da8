"""Numbers as text, the same in every table, chart and sentence."""

import numpy as np

from experiments.evaluation.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
MISSING = "-"


def format_score(estimate: Estimate | None) -> str:
    """A score in percent with its interval; a dash for none."""
    return _format(estimate, ".1f")


def format_difference(estimate: Estimate | None) -> str:
    """A difference in points with its sign and interval; a dash for none."""
    return _format(estimate, "+.1f")


def format_share(estimate: Estimate | None) -> str:
    """A share in percent with its interval; a dash where it does not exist."""
    return _format(estimate, ".0f", "%")


def is_known(estimate: Estimate | None) -> bool:
    """Whether a figure exists: a share of nothing, for one, does not."""
    return estimate is not None and bool(np.isfinite(estimate.value).all())


def _format(estimate: Estimate | None, form: str, unit: str = "") -> str:
    """Hundred times a figure with its interval; without one that does not exist, a dash for no figure."""
    if estimate is None or not is_known(estimate):
        return MISSING
    value, low, high = (
        write_number(100 * bound, form) for bound in (estimate.value, estimate.low, estimate.high)
    )
    has_interval = np.isfinite([estimate.low, estimate.high]).all()
    return f"{value}{unit} [{low}, {high}]" if has_interval else f"{value}{unit}"


def format_tokens(cost: float | np.ndarray) -> str:
    """A mean number of visual tokens, to three digits or the unit; a dash for none."""
    if not np.isfinite(cost):
        return MISSING
    return f"{float(cost):.3g}" if cost < 100 else f"{float(cost):.0f}"


def format_percent(score: float | np.ndarray) -> str:
    """A score in percent to one decimal."""
    return write_number(100 * score, ".1f")


def write_number(value: float | np.ndarray, form: str) -> str:
    """A number in a format, zero without a sign; a dash for what is no number."""
    if not np.isfinite(value):
        return MISSING
    text = format(float(value), form)
    return text if text.strip("+-0.") else text.lstrip("+-")


def format_small(value: float) -> str:
    """Two digits, or the unit; what is below a thousandth only as that; a dash for what is no number."""
    if not np.isfinite(value):
        return MISSING
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
