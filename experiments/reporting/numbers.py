"""Formatting of numbers in tables, plots and sentences."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.evaluation.metric_table import Form, Metric
from experiments.evaluation.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
MISSING = "-"
# Smaller numbers are rounding errors of sums.
_NOISE = 1e-12


def format_score(estimate: Estimate | None) -> str:
    """Return a score in percent with its interval; a dash for none."""
    return _format(estimate, ".1f")


def format_difference(estimate: Estimate | None) -> str:
    """Return a difference in points with its sign and interval; a dash for none."""
    return _format(estimate, "+.1f")


def format_share(estimate: Estimate | None) -> str:
    """Return a share in percent with its interval; a dash if it does not exist."""
    return _format(estimate, ".0f", "%")


def format_factor(estimate: Estimate | None) -> str:
    """Return a factor with its interval; a dash for none."""
    return write_estimate(estimate, lambda value: format(float(value), ".3g"))


def format_metric(metric: Metric, estimate: Estimate | None) -> str:
    """Return a metric with its interval, in its number format; a dash if it does not exist."""
    return _FORMATS[metric.form](estimate)


def is_known(estimate: Estimate | None) -> bool:
    """Return whether a metric exists; a share of a gap of zero, for example, does not."""
    return estimate is not None and bool(np.isfinite(estimate.value).all())


def _format(estimate: Estimate | None, form: str, unit: str = "") -> str:
    """Return 100 times a metric with its interval, if any; a dash for a metric that does not exist."""
    return write_estimate(estimate, lambda value: write_number(100 * value, form), unit)


def write_estimate(
    estimate: Estimate | None, write: Callable[[float | np.ndarray], str], unit: str = ""
) -> str:
    """Return a metric with its interval, if any, formatted by `write`; a dash if it does not exist."""
    if estimate is None or not is_known(estimate):
        return MISSING
    value, low, high = map(write, (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit} [{low}, {high}]" if has_interval(estimate) else f"{value}{unit}"


def has_interval(estimate: Estimate) -> bool:
    """Return whether a metric has an interval; with too few images none has."""
    return bool(np.isfinite([estimate.low, estimate.high]).all())


def format_tokens(cost: float | np.ndarray) -> str:
    """Return a mean number of visual tokens with three digits or as an integer; a dash for nan."""
    if not np.isfinite(cost):
        return MISSING
    return f"{float(cost):.3g}" if cost < 100 else f"{float(cost):.0f}"


def format_percent(score: float | np.ndarray) -> str:
    """Return a score in percent with one decimal."""
    return write_number(100 * score, ".1f")


def write_number(value: float | np.ndarray, form: str) -> str:
    """Return a formatted number, zero without a sign; a dash for nan and infinity."""
    if not np.isfinite(value):
        return MISSING
    text = format(float(value), form)
    return text if text.strip("+-0.") else text.lstrip("+-")


def format_small(value: float) -> str:
    """Return a number with two significant digits or as an integer; a dash for nan and infinity."""
    if not np.isfinite(value):
        return MISSING
    if abs(value) < _NOISE:
        return "0"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def format_milliseconds(value: float, low: float, high: float) -> str:
    """Return a mean with its interval, with three digits or as integers."""
    return f"{format_tokens(value)} [{format_tokens(low)}, {format_tokens(high)}]"


def count_noun(number: int, noun: str) -> str:
    """Return a number with a noun, in the plural unless there is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def to_plain(content: Any) -> Any:
    """Return JSON data with arrays and numbers of NumPy as lists and plain numbers."""
    return json.loads(json.dumps(content, default=lambda value: value.tolist()))


def format_duration(seconds: float) -> str:
    """Return a duration in hours and minutes, in minutes and seconds, or in seconds below one minute."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def find_floor(num_resamples: int, num_tests: int = 1) -> float:
    """Return the smallest possible p-value after Holm's correction for `num_tests`.

    It is `2 * num_tests / (num_resamples + 1)`, at most 1, as one resample is added to either side of zero
    (`statistics.Bootstrapped.p_value`).
    """
    return min(1.0, 2 * num_tests / (num_resamples + 1))


def format_p_value(p_value: float, floor: float) -> str:
    """Return a p-value as text; "< floor" for a p-value at the floor of the bootstrap.

    It has three decimals, or two significant digits for small values. The floor is rounded up to two
    significant digits, so that "<" is true of the p-value. With a floor of 1 every p-value is 1.
    """
    if p_value <= floor * (1 + 1e-9) and floor < 1:
        return f"< {format_floor(floor)}"
    return f"{p_value:.3f}" if p_value >= 0.01 else _write_significant(p_value)


def format_p_values(p_value: float, adjusted: float, num_resamples: int, num_tests: int) -> tuple[str, str]:
    """Return a p-value of one of `num_tests` tests as text, before and after Holm's correction."""
    alone, together = (find_floor(num_resamples, count) for count in (1, num_tests))
    return format_p_value(p_value, alone), format_p_value(adjusted, together)


def format_floor(floor: float) -> str:
    """Return a floor, rounded up to two significant digits."""
    step = 10.0 ** (math.floor(math.log10(floor)) - 1)
    # A multiple of the step, up to rounding errors, is not rounded up.
    return _write_significant(math.ceil(floor / step - 1e-9) * step)


def describe_floor(num_resamples: int, num_tests: int) -> str:
    """Return a sentence about the resolution of p-values, for captions of tables with Holm's correction."""
    alone, together = (format_floor(find_floor(num_resamples, count)) for count in (1, num_tests))
    return (
        f"{num_resamples:,} resamples resolve no p-value below {alone}, and after Holm's correction for "
        f"{count_noun(num_tests, 'test')} none below {together}"
    )


def _write_significant(value: float) -> str:
    """Return a number with two significant digits and without an exponent."""
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")


_FORMATS: Mapping[Form, Callable[[Estimate | None], str]] = {
    Form.SCORE: format_score,
    Form.POINTS: format_difference,
    Form.SHARE: format_share,
    Form.FACTOR: format_factor,
    Form.COST: lambda estimate: write_estimate(estimate, format_tokens),
    Form.PLAIN: lambda estimate: write_estimate(estimate, lambda value: f"{float(value):.3f}"),
}
