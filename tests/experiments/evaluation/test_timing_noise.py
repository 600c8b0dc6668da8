"""Intervals over milliseconds cover the noise of the timings: simulations whose truth is known.

An image is one of 24 types, each as likely, with two questions. A type fixes the chance of a right answer at
each of three scales and what the predictor says of it, so means over the population are means over types. A
timed picture takes the true mean milliseconds times a factor of its own, times one of every part.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments.evaluation.comparing import measure_table
from experiments.evaluation.costs import TimingMeans, Timings, count_milliseconds
from experiments.evaluation.fronts import Columns, Floats, Grid
from experiments.evaluation.metric_table import Bound, Key, Predictor
from experiments.evaluation.metrics import default_cost, default_score, mean_difference, point_cost, to_mix
from experiments.evaluation.policies import Paths, PredictorPolicy, ScoredSamples
from experiments.evaluation.policy_table import PolicyMeans, PolicyTable
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.evaluation_tables import describe_timings, tabulate_parts
from experiments.results.metrics_json import collect_measure
from predictor.policy.front import choose, upper_hull
from predictor.policy.pricing import OperatingPoint
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.evaluation.test_evaluate import compare

NUM_TYPES, NUM_IMAGES, NUM_PICTURES, NUM_SIMULATED = 24, 400, 80, 300
TOKENS = np.array([1.0, 9.0, 36.0])
# True mean milliseconds: the vision pass, prefill and decoding at each scale, the predictor.
VISION, ANSWER, OVERHEAD = 8.0, np.array([4.0, 10.0, 24.0]), 5.0
CHANCE = 1 / (1 + np.exp(-3 * (np.array([0.0, 0.8, 1.4]) - np.linspace(-1, 2, NUM_TYPES)[:, None])))
ESTIMATES = 0.1 + 0.8 * CHANCE
DEFAULT = OperatingPoint(0.2, 36.0, 0.0, 0.0)
POLICY = Predictor("predictor")
DEFAULT_COST, FIXED_COST = Key(POLICY, default_cost), Key(Bound.FIXED, point_cost)
TO_MIX = Key(POLICY, mean_difference, Bound.MIX)


def time_pictures(random: np.random.Generator) -> Timings:
    """Noise of mean 1 with a heavy tail: most of it is common to all that is done with a picture."""

    def draw(sigma: float, *shape: int) -> Floats:
        return random.lognormal(-(sigma**2) / 2, sigma, (NUM_PICTURES, *shape))

    common = draw(0.4)
    return Timings(
        VISION * common * draw(0.3),
        ANSWER * common[:, None] * draw(0.3, 3),
        {POLICY.name: OVERHEAD * common * draw(0.6)},
    )


def as_outcomes(kind: Columns, score: Floats, cost: Floats) -> ScoredSamples:
    tokens = np.tile(TOKENS, (len(kind), 1))
    return ScoredSamples(np.tile(cost, (len(kind), 1)), tokens, np.ones_like(tokens), score)


def find_true_difference(table: PolicyTable) -> float:
    """Mean difference to the mix over the population at the operating points of `table`, at true costs."""
    candidate = table.policies[POLICY.name]
    assert len(candidate.cost) == NUM_TYPES, "each type once"
    true_cost = VISION + ANSWER
    cost = candidate.points.mean(np.tile(true_cost + OVERHEAD, (NUM_TYPES, 1)))[::-1]
    score = candidate.points.mean(CHANCE)[::-1]
    cost, score = candidate.plan @ cost, candidate.plan @ score
    fixed = CHANCE.mean(axis=0)
    hull = upper_hull(true_cost, fixed)
    difference = score - np.interp(cost, true_cost[hull], fixed[hull])
    return float(np.trapezoid(difference) / (len(difference) - 1))


def simulate(*, timed: bool) -> dict[str, float]:
    """Share of simulated data sets in which 95% intervals cover the truth.

    In each, pictures are timed and test images drawn anew. With `timed` false the mean milliseconds are taken
    as exact.
    """
    types = np.arange(NUM_TYPES)
    shares = np.bincount(choose(ESTIMATES, np.tile(TOKENS, (NUM_TYPES, 1)), DEFAULT.price, unit=DEFAULT.unit))
    true_default = VISION + shares / NUM_TYPES @ ANSWER + OVERHEAD
    covered = dict.fromkeys(("policy", "scale", "difference"), 0)
    for number in range(NUM_SIMULATED):
        random = np.random.default_rng([11, number])
        timings = time_pictures(random)
        means = timings.means()
        kind = random.integers(NUM_TYPES, size=NUM_IMAGES).repeat(2)
        score = (random.random((len(kind), 3)) < CHANCE[kind]).astype(np.float64)
        learned = as_outcomes(types, CHANCE, means.cost[0])

        def prepare(
            rows: Columns,
            test: ScoredSamples,
            image: Columns,
            learned: ScoredSamples = learned,
            means: TimingMeans = means,
        ) -> PolicyTable:
            return PolicyTable(
                learned,
                test,
                image,
                [PredictorPolicy(POLICY.name, ESTIMATES, ESTIMATES[rows], DEFAULT)],
                overhead={POLICY.name: float(means.overhead[POLICY.name][0])},
                timed=timed,
                grid=Grid(9, 24),
            )

        table = prepare(kind, as_outcomes(kind, score, means.cost[0]), np.arange(NUM_IMAGES).repeat(2))
        found = Bootstrap(300, seed=number).resample(
            partial(measure_table, table, None), NUM_IMAGES, timings=timings if timed else None
        )
        for name, estimate, truth in (
            ("policy", found[DEFAULT_COST].estimate(), true_default),
            ("scale", found[FIXED_COST].estimate()[1], VISION + ANSWER[1]),
            ("difference", found[TO_MIX].estimate(), find_true_difference(prepare(types, learned, types))),
        ):
            covered[name] += bool(estimate.low <= truth <= estimate.high)
    return {name: count / NUM_SIMULATED for name, count in covered.items()}


@pytest.mark.slow
def test_intervals_cover_the_truth_when_timings_are_noisy():
    covered = simulate(timed=True)
    assert all(0.92 <= share <= 0.98 for share in covered.values()), covered


@pytest.mark.slow
def test_intervals_that_take_timings_as_exact_do_not():
    covered = simulate(timed=False)
    # Of a fixed scale they are one number.
    assert covered["scale"] == 0 and covered["policy"] < 0.6 and covered["difference"] < 0.85, covered


def test_costs_of_timed_policies_by_hand():
    """Two images of one and of three samples, the second drawn twice in the second resample."""
    means = PolicyMeans([0, 1, 1, 1], timed=True)
    unused, score = np.full((4, 6), np.nan), np.zeros((4, 6))
    ways = Paths.escalating(3)
    assert ways.tried.astype(int).tolist() == [
        [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1]
    ]  # fmt: skip
    # From the first point to the second one sample escalates to the finest scale.
    schedule = Schedule.of([[0, 1, 3, 5], [0, 2, 3, 5]])
    means.add("cascade", schedule, ways, unused, score, "started by")
    means.add_point("free", np.array([1, 1, 0, 0]), ways, unused, score)
    means.add_fixed("fixed", unused[:, :3], np.tile([0.0, 0.5, 1.0], (4, 1)))
    milliseconds = TimingMeans(
        cost=np.array([[3.0, 4.0, 6.0], [12.0, 14.0, 18.0]]),
        shared=np.array([2.0, 10.0]),
        overhead={"started by": np.array([0.5, 1.5]), "another": np.array([np.nan, np.nan])},
    )
    found = means(np.array([[1, 1], [0, 2]]), milliseconds)
    # Prefill and decoding take 1, 2 and 4, then 2, 4 and 8; vision and overhead 2.5, then 11.5.
    first = 2.5 + np.array([1 + (1 + 2) + 2 + 4, 1 + (1 + 2 + 4) + 2 + 4]) / 4
    second = 11.5 + np.array([(2 + 4) + 4 + 8, (2 + 4 + 8) + 4 + 8]) / 3
    np.testing.assert_allclose(found["cascade"][0], [first, second])
    np.testing.assert_allclose(found["free"][0], [[2 + (3 + 3 + 1 + 1) / 4], [10 + (6 + 2 + 2) / 3]])
    np.testing.assert_allclose(found["fixed"][0], milliseconds.cost)
    np.testing.assert_allclose(found["fixed"][1], [[0, 0.5, 1]] * 2)


@pytest.fixture(scope="module")
def account():
    random = np.random.default_rng(0)
    common = random.lognormal(0, 0.3, 12)
    overhead = {"informed": common, "question_only": 0.1 * common}
    timings = Timings(8 * common, common[:, None] * [4, 6, 9, 20], overhead, 2, 3, machine="a CPU, 2 threads")
    return count_milliseconds(timings)


def test_timings_move_costs_and_no_score_and_no_draw_of_images(account):
    splits = make_outcomes("calibration", 60), make_outcomes("test", 60)
    timed, exact = (compare(*splits, measure=each) for each in (account, replace(account, timings=None)))
    informed, other = timed.find("informed"), exact.find("informed")
    assert informed[default_cost].value == pytest.approx(other[default_cost].value, rel=1e-12)
    assert informed[to_mix].value == pytest.approx(other[to_mix].value, abs=1e-12)
    # Scores depend on the images alone, and these are the same.
    score, constant = informed[default_score], other[default_score]
    assert (score.low, score.high) == (constant.low, constant.high)
    np.testing.assert_allclose(timed.fixed_score.low, exact.fixed_score.low, rtol=1e-12)
    np.testing.assert_allclose(exact.fixed_cost.high, exact.fixed_cost.low, rtol=1e-12)
    assert (timed.fixed_cost.high > 1.1 * timed.fixed_cost.low).all()
    cost, constant_cost = informed[default_cost], other[default_cost]
    assert cost.high - cost.low > 2 * (constant_cost.high - constant_cost.low)
    luck_free = timed.noise_free["likelihood"]
    np.testing.assert_array_equal(luck_free.fixed_cost.high, timed.fixed_cost.high)


def test_a_resample_has_its_timings_whatever_block_it_is_in(account, monkeypatch):
    timings = account.timings

    def measure(weights: np.ndarray, milliseconds: TimingMeans) -> dict[str, Floats]:
        return {"images": weights @ np.arange(5.0), "cost": milliseconds.cost, **milliseconds.overhead}

    together = Bootstrap(20, seed=3).resample(measure, 5, timings=timings)
    drawn = timings.resample(20, seed=3)
    np.testing.assert_array_equal(together["cost"].resamples, drawn.cost)
    np.testing.assert_array_equal(together["informed"].resamples, drawn.overhead["informed"])
    np.testing.assert_array_equal(together["cost"].value, timings.means().cost[0])
    monkeypatch.setattr("experiments.evaluation.statistics._MOST_RESAMPLES", 7)
    in_blocks = Bootstrap(20, seed=3).resample(measure, 5, timings=timings)
    for name, draws in together.items():
        np.testing.assert_array_equal(in_blocks[name].resamples, draws.resamples)
    alone = Bootstrap(20, seed=3).resample(lambda weights: {"images": weights @ np.arange(5.0)}, 5)
    np.testing.assert_array_equal(alone["images"].resamples, together["images"].resamples)


def test_it_is_said_how_much_was_timed_and_what_is_not_covered(account):
    splits = make_outcomes("calibration", 20), make_outcomes("test", 20)
    content = collect_measure(compare(*splits, measure=account))
    fixed = content["timings"].pop("fixed")
    machine = "a CPU, 2 threads"
    assert content["timings"] == {"num_pictures": 24, "num_rounds": 3, "batch_size": 2, "machine": machine}
    assert [each["value"] for each in fixed] == content["fixed"]
    assert all(each["low"] < each["value"] < each["high"] for each in fixed)
    assert "timings" not in collect_measure(compare(*splits, measure=replace(account, timings=None)))
    assert describe_timings(account) == (
        "milliseconds are means over 24 images timed in 3 rounds (a CPU, 2 threads); their intervals cover "
        "the noise of these timings, but not drift between runs"
    )
    assert not describe_timings(replace(account, timings=None))


def test_tables_of_milliseconds_have_intervals():
    """Two pictures, the second of which takes twice as long: a mean is among 1, 1.5 and 2 times the first."""
    took = np.array([1.0, 2.0])
    timings = Timings(took, took[:, None] * [1, 2, 3, 9], {"informed": 0.1 * took})
    low, high = timings.bound(200, seed=0)
    assert (low.cost.tolist(), high.cost.tolist()) == ([[2, 3, 4, 10]], [[4, 6, 8, 20]])
    account = count_milliseconds(timings)
    splits = make_outcomes("calibration", 20), make_outcomes("test", 20)
    table = tabulate_parts(compare(*splits, measure=account), account.mean_parts(splits[1]))
    assert table.rows[3] == ("scale 144", "1.5", "14", "", "15 [10, 20]")
    assert [row[3] for row in table.rows[4:]] == ["0.15 [0.1, 0.2]", "0"]
