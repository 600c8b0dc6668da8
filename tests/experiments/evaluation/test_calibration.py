import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from experiments.evaluation.calibration import Binned
from experiments.evaluation.schedules import ImageMeans
from experiments.evaluation.statistics import Bootstrap, draw_weights


def measure_calibration(estimates, score, image, *, num_resamples, seed=0, num_bins=10):
    binned, means = Binned(estimates, score, image, num_bins), ImageMeans(image)
    binned.add_to(means)
    brier_and_error = Bootstrap(num_resamples, seed=seed).estimate(
        lambda weights: dict(enumerate(binned.measure(means(weights)))), means.num_images
    )
    return binned.describe(brier_and_error[0], brier_and_error[1])


def error_literally(estimates, score, num_bins):
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = [k for k, p in enumerate(estimates) if low <= p < high or (b == num_bins - 1 and p == 1)]
        if inside:
            gap = np.mean([estimates[k] for k in inside]) - np.mean([score[k] for k in inside])
            total += len(inside) / len(estimates) * abs(gap)
    return total


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_calibration_literally(seed, num_samples):
    rng = np.random.default_rng(seed)
    # Eighths lie inside bins of a fifth, and 0 and 1 at the ends.
    estimates = rng.integers(0, 9, (num_samples, 2)) / 8
    score = rng.choice([0.0, 0.3, 1.0], (num_samples, 2))
    image = rng.permutation(np.arange(num_samples) % 7)
    image = np.unique(image, return_inverse=True)[1]
    found = measure_calibration(estimates, score, image, num_resamples=3, num_bins=5, seed=seed)
    for scale in range(2):
        assert found.brier.value[scale] == pytest.approx(
            np.mean((estimates - score)[:, scale] ** 2), abs=1e-9
        )
        expected = error_literally(estimates[:, scale], score[:, scale], 5)
        assert found.error.value[scale] == pytest.approx(expected, abs=1e-9)
    assert found.count.sum(axis=1).tolist() == [num_samples] * 2


def test_intervals_are_those_of_resampled_rows():
    rng = np.random.default_rng(0)
    estimates, score, image = rng.random((40, 1)), rng.integers(0, 2, (40, 1)), np.arange(40) // 4
    found = measure_calibration(estimates, score, image, num_resamples=9, seed=2)
    errors = []
    for weights in np.concatenate(list(draw_weights(10, 9, seed=2))):
        rows = np.repeat(np.arange(40), weights[image])
        errors.append(error_literally(estimates[rows, 0], score[rows, 0], 10))
    assert [found.error.low[0], found.error.high[0]] == pytest.approx(np.quantile(errors, [0.025, 0.975]))


def test_by_hand_and_by_scikit_learn():
    estimates, score = np.array([[0.95], [0.95], [0.15], [0.15]]), np.array([[1.0], [0.0], [0.0], [0.0]])
    found = measure_calibration(estimates, score, np.arange(4), num_resamples=2)
    # Half of the samples are off by 0.45, the other half by 0.15.
    assert found.error.value == pytest.approx([0.3])
    assert found.brier.value == pytest.approx([brier_score_loss(score[:, 0], estimates[:, 0])])
    assert found.count[0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.estimate[0, [1, 9]] == pytest.approx([0.15, 0.95])
    assert found.score[0, [1, 9]].tolist() == [0, 0.5] and np.isnan(found.score[0, 0])
