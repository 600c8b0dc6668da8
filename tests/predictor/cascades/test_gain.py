"""The regressions behind the hybrid's expected gain."""

import numpy as np
import pytest
from scipy.special import expit

from predictor.cascades.hybrid import ExpectedGain, _fit_logistic


def test_without_information_the_gain_is_the_difference_of_the_means():
    """40 samples, right in 36 of them at one scale and in 39 at the next: an intercept is not shrunk."""
    score = np.ones((40, 2))
    score[:4, 0], score[:1, 1] = 0, 0
    nothing = np.full((40, 2), 0.5)
    gain = ExpectedGain.fit(nothing, score, nothing)(nothing, nothing)
    # Half a right and half a wrong sample are added to each: (39.5 - 36.5) / 41.
    np.testing.assert_allclose(gain[:, 0], 3 / 41, atol=1e-3)
    assert (gain[:, 1] == 0).all()


def test_units_of_the_features_do_not_matter():
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.normal(5, 3, (60, 3)), np.ones(60)])
    score = (rng.random(60) < expit(features[:, 0] - 6)).astype(float)
    units = np.array([0.01, 100.0, 1.0, 1.0])
    chances = [expit(each @ _fit_logistic(each, score)) for each in (features, features * units)]
    np.testing.assert_allclose(chances[0], chances[1], atol=1e-4)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_is_finite(right):
    same = np.full((12, 3), 0.7)
    gain = ExpectedGain.fit(same, np.full((12, 3), right), same)(same, same)
    np.testing.assert_allclose(gain, 0, atol=1e-9)
