"""Power laws of label curves, and intervals over seeds, against values worked out by hand."""

import numpy as np
import pytest

from experiments.evaluation.label_curve import (
    PowerLaw,
    estimate_over_seeds,
    fit_curve,
    fit_power_law,
    interpolate_share,
)

SIZES = [50, 150, 400, 800, 1200]


def test_a_power_law_is_found_again():
    law = PowerLaw(limit=0.5, loss=2.0, exponent=0.6)
    assert law.at(100) == pytest.approx(0.5 - 2 / 100**0.6)
    found = fit_power_law(SIZES, law.at(SIZES))
    assert (found.limit, found.loss, found.exponent) == pytest.approx((0.5, 2.0, 0.6), rel=1e-3)
    # 0.45 = 0.5 - 2 n^-0.6, so that n = 40^(1 / 0.6).
    assert law.find_size(0.45, 1200) == pytest.approx(40 ** (1 / 0.6))
    assert np.isnan(law.find_size(0.45, 400))


def test_the_interval_over_seeds_is_students():
    """Of 1, 2 and 3 the standard error is 1 / sqrt(3), and t of two degrees of freedom 4.303."""
    estimate = estimate_over_seeds([1.0, 2.0, 3.0], 0.95)
    assert estimate.value == 2 and float(estimate.high) - 2 == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert np.isnan(estimate_over_seeds([1.0], 0.95).low)


def test_a_good_fit_and_poor_ones():
    law = PowerLaw(limit=0.5, loss=2.0, exponent=0.6)
    noise = np.array([[0.002], [0.0], [-0.002]])
    good = fit_curve(SIZES, law.at(SIZES) + noise, 0.95)
    assert good is not None and good.problems == () and abs(good.residual) < 1e-6
    assert good.curve.value == pytest.approx(law.at(SIZES), abs=1e-4)
    # Linear in the logarithm, a curve has no limit.
    growing = fit_curve(SIZES, 0.1 * np.log(SIZES) - 0.3 + noise, 0.95)
    assert growing is not None and "limit" in growing.problems[0]
    # A dip is no power law.
    dip = law.at(SIZES) - np.array([0, 0, 0.1, 0, 0])
    poor = fit_curve(SIZES, dip + noise, 0.95)
    assert poor is not None and any("at 400 images" in problem for problem in poor.problems)
    # A larger difference of a mean with a larger error does not hide it.
    loud = np.zeros((3, 5))
    loud[:, 0] = [1.5, -0.9, -0.9]
    hidden = fit_curve(SIZES, dip + noise + loud, 0.95)
    assert hidden is not None and any("off by" in problem for problem in hidden.problems)
    assert fit_curve(SIZES[:3], law.at(SIZES[:3]) + noise, 0.95) is None


def test_shares_between_numbers_of_answers():
    assert interpolate_share([100, 400], [0.2, 0.4], 200) == pytest.approx(0.3)
    assert interpolate_share([400, 100], [0.4, 0.2], 200) == pytest.approx(0.3)
    assert np.isnan(interpolate_share([100, 400], [0.2, 0.4], 401))
