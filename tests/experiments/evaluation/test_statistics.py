"""The bootstrap against simulated data whose truth is known, and p-values against hand-worked ones."""

import numpy as np
import pytest

from experiments.evaluation.schedules import ImageMeans, Schedule
from experiments.evaluation.statistics import (
    Bootstrap,
    Bootstrapped,
    adjust_p_values,
    combine_seeds,
    draw_weights,
    number_images,
)

NUM_DATA_SETS = 500


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["questions apart", "questions of an image alike"])
@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say(spread):
    """Difference between a policy and a fixed scale, 150 images with one to seven questions on each.

    An image makes all its questions easier or harder. The truth is that of the process the data come from.
    """
    covered = {"score": 0, "difference": 0, "cost": 0}
    truth = _simulate(np.random.default_rng([7, int(spread)]), 200_000, spread)
    expected = _measure(*truth)(np.ones((1, 200_000)))
    for number in range(NUM_DATA_SETS):
        image, choice, score = _simulate(np.random.default_rng([number, int(spread)]), 150, spread)
        found = Bootstrap(400, seed=number).resample(_measure(image, choice, score), 150)
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


def test_a_policy_that_never_changes_its_choice_keeps_fractions():
    """`np.bincount` of no change is an array of integers."""
    schedule = Schedule.of(np.ones((3, 2), dtype=int))
    assert schedule.mean(np.array([[9.0, 0.25], [9.0, 0.5]])).tolist() == [0.375] * 3


def test_images_are_numbered_by_name_whatever_the_order():
    names = np.array(["b", "a", "c", "a", "b"], dtype=object)
    assert number_images(names).tolist() == [1, 0, 2, 0, 1]
    assert number_images(names[::-1]).tolist() == [1, 0, 2, 0, 1][::-1]


@pytest.mark.parametrize("num_images", [1, 3, 500, 1000])
def test_images_are_drawn_one_resample_after_the_other(num_images):
    """Whatever is drawn and measured together: 1,100 resamples are more than one block."""
    weights = np.concatenate(list(draw_weights(num_images, 1100, seed=4)))
    rng = np.random.default_rng(4)
    for row in weights:
        drawn = rng.integers(num_images, size=num_images, dtype=np.int32)
        np.testing.assert_array_equal(row, np.bincount(drawn, minlength=num_images))


def test_a_metric_exists_wholly_or_not_at_all():
    """On the test samples and on no resample, the other way round, on one of both, on all."""
    nan = np.nan
    draws = Bootstrapped(
        np.array([1.0, nan, 3.0, 4.0]), np.array([[nan, 2.0, nan, 4.0], [nan, 2.0, 3.5, 6.0]])
    )
    assert draws.exists.tolist() == [False, False, True, True]
    found = draws.estimate(0.5)
    assert found.value == pytest.approx([nan, nan, 3, 4], nan_ok=True)
    assert found.low == pytest.approx([nan, nan, 3.5, 4.5], nan_ok=True)
    assert found.high == pytest.approx([nan, nan, 3.5, 5.5], nan_ok=True)


def test_p_values_by_hand():
    # 1 of 9 resamples is at or below zero: 2 (1 + 1) / 10.
    assert Bootstrapped(np.array(1.0), np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])).p_value() == pytest.approx(
        0.4
    )
    # None is: 2 / 10; and no difference at all is no evidence.
    assert Bootstrapped(np.array(1.0), np.arange(1.0, 10)).p_value() == pytest.approx(0.2)
    assert Bootstrapped(np.array(0.0), np.zeros(9)).p_value() == 1
    assert Bootstrapped(np.array(1.0), np.arange(1.0, 10)).floor == pytest.approx(0.2)
    assert Bootstrapped(np.array(1.0), np.ones(1)).floor == 1


@pytest.mark.slow
def test_p_values_are_as_rare_as_they_say():
    """Of differences that are noise alone, 5% have a p-value of at most 0.05 (three standard errors)."""
    rng = np.random.default_rng(3)
    small = 0
    for number in range(400):
        means = ImageMeans(np.arange(80))
        means.add_columns("difference", rng.normal(size=(80, 1)))
        found = Bootstrap(300, seed=number).resample(lambda w: {"d": means(w)["difference"][0][:, 0]}, 80)  # noqa: B023
        small += bool(found["d"].p_value() <= 0.05)
    assert small / 400 == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400))


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06; 0.5 x 1. In the order given.
    assert adjust_p_values([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # None falls below a smaller one's: 0.02 x 3 = 0.06, then 0.025 x 2 = 0.05.
    assert adjust_p_values([0.02, 0.025, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert adjust_p_values([0.9, 0.8]) == pytest.approx([1, 1])
    assert adjust_p_values([]).tolist() == []


def draw_means(values, num_resamples=4000):
    """Means of each row of `values` `[num_seeds, num_images]` over the same draws of the images, by seed."""
    num_images = values.shape[1]
    bootstrap = Bootstrap(num_resamples)
    means = bootstrap.resample(lambda w: {"means": w @ values.T / num_images}, num_images)["means"]
    return {
        number: Bootstrapped(value, drawn)
        for number, (value, drawn) in enumerate(zip(means.value, means.resamples.T, strict=True))
    }


def test_several_seeds_are_averaged_inside_every_resample():
    values = np.random.default_rng(0).random((3, 40))
    drawn = draw_means(values)
    found = combine_seeds(drawn, seed=0)
    assert found.value == pytest.approx(values.mean())
    # Two sources of spread: images of the mean over seeds, and two seeds drawn from three.
    images = values.mean(axis=0).var() / 40
    seeds = values.mean(axis=1).var() / 2
    rest = (values - values.mean(axis=0) - values.mean(axis=1)[:, None] + values.mean()).var() / 80
    assert found.resamples.var() == pytest.approx(images + seeds + rest, rel=0.1)
    # That of the seeds is their variance without bias (n - 1), divided by their number.
    assert seeds == pytest.approx(values.mean(axis=1).var(ddof=1) / 3)
    assert combine_seeds({7: drawn[0]}, seed=0) is drawn[0]


def test_resamples_of_two_seeds_are_those_of_either():
    one, other = np.arange(40.0).reshape(20, 2), np.full((20, 2), 100.0)
    found = combine_seeds({5: Bootstrapped(one[0], one), 2: Bootstrapped(other[0], other)}, seed=3)
    assert found.value.tolist() == [50, 50.5]
    from_one = found.resamples[:, 0] < 100
    assert 0 < from_one.sum() < 20
    assert found.resamples.tolist() == np.where(from_one[:, None], one, other).tolist()


def test_a_seed_that_is_not_drawn_has_no_say():
    nothing, something = np.full(50, np.nan), np.ones(50)
    found = combine_seeds(
        {0: Bootstrapped(np.array(1.0), something), 1: Bootstrapped(np.array(1.0), nothing)}, seed=0
    )
    assert set(found.resamples[~np.isnan(found.resamples)]) == {1.0} and np.isnan(found.resamples).any()


def test_what_shares_its_seeds_draws_the_same_ones():
    """A seed that helps both policies alike leaves their difference alone; other seeds do not."""
    luck, images = np.array([0.0, 5.0, 20.0]), np.random.default_rng(1).normal(size=2000)
    policies = [
        {seed: Bootstrapped(np.array(worth + luck[seed]), images + worth + luck[seed]) for seed in range(3)}
        for worth in (1.0, 3.0)
    ]
    one, other = (combine_seeds(each, seed=0) for each in policies)
    assert other.resamples - one.resamples == pytest.approx(np.full(2000, 2.0))
    renamed = combine_seeds({seed + 3: draws for seed, draws in policies[1].items()}, seed=0)
    # Two independent draws of two of three: twice the variance of one.
    assert (renamed.resamples - one.resamples).var() == pytest.approx(2 * luck.var() / 2, rel=0.1)


@pytest.mark.slow
def test_intervals_over_seeds_cover_what_training_gives_on_average():
    """Six seeds spread their mean somewhat more than the images do; that has to be in the interval."""
    covered = {"seeds": 0, "fixed": 0}
    for number in range(NUM_DATA_SETS):
        rng = np.random.default_rng(number)
        values = rng.normal(size=(1, 100)) + rng.normal(0, 0.3, size=(6, 1))
        drawn = draw_means(values, num_resamples=300)
        intervals = {
            "seeds": combine_seeds(drawn, seed=number).estimate(),
            "fixed": Bootstrapped(
                np.array(0.0), np.mean([each.resamples for each in drawn.values()], 0)
            ).estimate(),
        }
        for name, interval in intervals.items():
            covered[name] += bool(interval.low <= 0 <= interval.high)
    shares = {name: count / NUM_DATA_SETS for name, count in covered.items()}
    assert 0.9 <= shares["seeds"] <= 0.97 and shares["fixed"] < 0.85, shares


@pytest.mark.parametrize(("num_images", "has_interval"), [(1, False), (2, False), (7, False), (8, True)])
def test_fewer_than_eight_images_give_no_interval(num_images, has_interval):
    """Two images that are both answered rightly do not show that all are."""

    def measure(weights):
        mean = weights.mean(axis=1)
        return {"score": mean, "both": np.stack([mean] * 2, axis=1)}

    draws = Bootstrap(50).resample(measure, num_images)
    assert draws["score"].has_interval is has_interval
    for name in ("score", "both"):
        estimate = draws[name].estimate()
        assert (estimate.value == 1).all()
        assert (np.isfinite([estimate.low, estimate.high]) == has_interval).all()
    p_value = Bootstrapped(np.array(1.0), np.ones(50), has_interval).p_value()
    assert p_value == (pytest.approx(2 / 51) if has_interval else 1.0)
    assert combine_seeds({0: draws["score"], 1: draws["score"]}, seed=0).has_interval is has_interval
