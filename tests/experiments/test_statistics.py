"""The bootstrap against simulated data whose truth is known, and p-values against hand-worked ones."""

import numpy as np
import pytest

from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import (
    Draws,
    ImageMeans,
    adjust_p_values,
    combine_seeds,
    number_images,
    resample,
)

NUM_DATA_SETS = 500


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["questions apart", "questions of an image alike"])
def test_intervals_cover_the_truth_as_often_as_they_say(spread):
    """Difference between a policy and a fixed scale, 150 images with one to seven questions on each.

    An image makes all its questions easier or harder. The truth is that of the process the data come from.
    """
    covered = {"score": 0, "difference": 0, "cost": 0}
    truth = _simulate(np.random.default_rng([7, int(spread)]), 200_000, spread)
    expected = _measure(*truth)(np.ones((1, 200_000)))
    for number in range(NUM_DATA_SETS):
        image, choice, score = _simulate(np.random.default_rng([number, int(spread)]), 150, spread)
        found = resample(_measure(image, choice, score), 150, num_resamples=400, seed=number)
        for name in covered:
            interval = found[name].estimate(0.95)
            covered[name] += bool(interval.low <= expected[name][0] <= interval.high)
    shares = {name: count / NUM_DATA_SETS for name, count in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def _simulate(rng, num_images, spread):
    """Numbers of images, choices and scores `[n, 2]` of questions."""
    image = np.repeat(np.arange(num_images), rng.integers(1, 8, num_images))
    ease = rng.normal(0, spread, num_images)[image]
    chance = 1 / (1 + np.exp(-(ease[:, None] + [-0.3, 0.9])))
    score = (rng.random(chance.shape) < chance).astype(float)
    return image, (ease + rng.normal(size=len(image)) < 0).astype(int), score


def _measure(image, choice, score):
    means = ImageMeans(image)
    cost = np.broadcast_to(np.array([1.0, 9.0]), score.shape)
    means.add("policy", Schedule.of(choice[None]), cost, score)
    means.add_columns("fixed", score)

    def measure(weights):
        found = means(weights)
        (cost, score), (fixed,) = found["policy"], found["fixed"]
        difference = score[:, 0] - fixed[:, 1]
        return {"cost": cost[:, 0], "score": score[:, 0], "difference": difference}

    return measure


def test_few_and_many_resamples_give_the_same_means():
    """Products with sparse and with dense sums."""
    rng = np.random.default_rng(0)
    image, values = rng.integers(0, 12, 60), rng.random((60, 3))
    image[:12] = np.arange(12)
    means = ImageMeans(image)
    means.add("policy", Schedule.of(rng.integers(0, 3, (7, 60))), values)
    means.add_columns("columns", values)
    weights = rng.integers(0, 4, (30, 12))
    many = means(weights)
    for start in range(0, 30, 5):
        few = means(weights[start : start + 5])
        for key in ("policy", "columns"):
            assert few[key][0] == pytest.approx(many[key][0][start : start + 5])
    expected = [np.average(values, axis=0, weights=row[image]) for row in weights]
    assert many["columns"][0] == pytest.approx(np.array(expected))


def test_images_are_numbered_by_name_whatever_the_order():
    names = np.array(["b", "a", "c", "a", "b"], dtype=object)
    assert number_images(names).tolist() == [1, 0, 2, 0, 1]
    assert number_images(names[::-1]).tolist() == [1, 0, 2, 0, 1][::-1]


def test_p_values_by_hand():
    # 1 of 9 resamples is at or below zero: 2 (1 + 1) / 10.
    assert Draws(np.array(1.0), np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])).p_value() == pytest.approx(0.4)
    # None is: 2 / 10; and no difference at all is no evidence.
    assert Draws(np.array(1.0), np.arange(1.0, 10)).p_value() == pytest.approx(0.2)
    assert Draws(np.array(0.0), np.zeros(9)).p_value() == 1


def test_p_values_are_as_rare_as_they_say():
    """Of differences that are noise alone, 5% have a p-value of at most 0.05 (three standard errors)."""
    rng = np.random.default_rng(3)
    small = 0
    for number in range(400):
        means = ImageMeans(np.arange(80))
        means.add_columns("difference", rng.normal(size=(80, 1)))
        found = resample(lambda w: {"d": means(w)["difference"][0][:, 0]}, 80, num_resamples=300, seed=number)  # noqa: B023
        small += bool(found["d"].p_value() <= 0.05)
    assert small / 400 == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400))


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06; 0.5 x 1. In the order given.
    assert adjust_p_values([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # None falls below a smaller one's: 0.02 x 3 = 0.06, then 0.025 x 2 = 0.05.
    assert adjust_p_values([0.02, 0.025, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert adjust_p_values([0.9, 0.8]) == pytest.approx([1, 1])
    assert adjust_p_values([]).tolist() == []


def test_several_seeds_are_averaged_inside_every_resample():
    rng = np.random.default_rng(0)
    values = rng.random((3, 40))
    measures = [lambda w, row=row: {"mean": w @ row / w.sum(axis=1)} for row in values]
    found = combine_seeds(measures, 40, num_resamples=4000, seed=0)["mean"]
    assert found.value == pytest.approx(values.mean())
    # Two sources of spread: images of the mean over seeds, and three seeds drawn from three.
    images = values.mean(axis=0).var() / 40
    seeds = values.mean(axis=1).var() / 3
    rest = (values - values.mean(axis=0) - values.mean(axis=1)[:, None] + values.mean()).var() / 120
    assert found.drawn.var() == pytest.approx(images + seeds + rest, rel=0.1)
    one = combine_seeds(measures[:1], 40, num_resamples=50, seed=0)["mean"]
    same = resample(measures[0], 40, num_resamples=50, seed=0)["mean"]
    np.testing.assert_array_equal(one.drawn, same.drawn)
