"""P-values as text: what is shown is never more than the resamples can tell."""

import pytest

from experiments.reporting.numbers import describe_floor, find_floor, format_floor, format_p_value


@pytest.mark.parametrize(
    ("num_resamples", "num_tests", "floor", "text"),
    [
        (10_000, 1, 2 / 10_001, "0.0002"),
        (10_000, 17, 34 / 10_001, "0.0034"),
        (1000, 17, 34 / 1001, "0.034"),
        (999, 1, 0.002, "0.002"),  # a floor of two digits is not rounded up
        (9, 1, 0.2, "0.2"),
        (10, 17, 1.0, "1"),
    ],
)
def test_the_floor_is_rounded_up_to_two_digits(num_resamples, num_tests, floor, text):
    assert find_floor(num_resamples, num_tests) == pytest.approx(floor)
    assert format_floor(floor) == text and float(text) >= floor - 1e-12


@pytest.mark.parametrize(
    ("p_value", "floor", "text"),
    [
        (2 / 10_001, 2 / 10_001, "< 0.0002"),
        (4 / 10_001, 2 / 10_001, "0.0004"),
        (0.0336, 0.0034, "0.034"),
        (0.00361, 0.0034, "0.0036"),
        (0.5, 0.0034, "0.500"),
        (1.0, 1.0, "1.000"),  # nothing is known, and nothing is claimed
        (0.0001, 0.0002, "< 0.0002"),
    ],
)
def test_a_p_value_at_the_floor_is_only_below_it(p_value, floor, text):
    assert format_p_value(p_value, floor) == text


def test_captions_say_what_the_resamples_resolve():
    assert describe_floor(10_000, 17) == (
        "10,000 resamples resolve no p-value below 0.0002, and after Holm's correction for 17 tests none "
        "below 0.0034"
    )
