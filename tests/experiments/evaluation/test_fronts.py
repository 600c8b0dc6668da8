import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from experiments.evaluation.curves import Curve
from experiments.evaluation.fronts import (
    CalibratedPolicy,
    choose_as_oracle,
    find_smallest_right,
    raise_budgets,
    trace_prices,
)
from predictor.policy.front import choose, find_unit, sweep, upper_hull
from predictor.policy.switches import find_switches
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

# Few values, so that ties and equal costs are common.
SCORES = st.sampled_from([0.0, 0.3, 0.5, 1.0])
STEPS = st.integers(1, 4)


@st.composite
def tables(draw, max_samples=6):
    """(cost, score), both [n, s]: costs rise along the ladder but may stay equal for a step."""
    num_samples, num_scales = draw(st.integers(1, max_samples)), draw(st.integers(1, 4))
    cost = np.array([[draw(st.integers(0, 3)) for _ in range(num_scales)] for _ in range(num_samples)])
    score = [[draw(SCORES) for _ in range(num_scales)] for _ in range(num_samples)]
    return np.cumsum(cost, axis=1) + 1.0, np.array(score)


def hull_height(points, cost):
    """Most that convex combinations of points [(cost, score)] reach within a mean cost: a linear program.

    Its own tolerance is 1e-7.
    """
    costs, scores = np.array(points, dtype=float).T
    found = linprog(-scores, A_ub=[costs], b_ub=[cost], A_eq=[np.ones(len(costs))], b_eq=[1], bounds=(0, 1))
    assert found.status == 0
    return -found.fun


def test_hull_by_hand():
    # (2, 5) is below the line from (1, 4) to (4, 10), (5, 10) dearer than its equal, (9, 3) dominated.
    cost, score = [4, 1, 2, 5, 9, 3], [10, 4, 5, 10, 3, 8.5]
    assert upper_hull(cost, score).tolist() == [1, 5, 0]
    assert upper_hull([7], [0]).tolist() == [0]
    assert upper_hull([1, 1, 1], [2, 3, 3]).tolist() == [1]


@given(st.lists(st.tuples(STEPS, SCORES), min_size=1, max_size=7), st.data())
def test_hull_is_as_high_as_any_mixture(points, data):
    cost, score = np.array(points, dtype=float).T
    hull = upper_hull(cost, score)
    assert (np.diff(cost[hull]) > 0).all() and (np.diff(score[hull]) > 0).all()
    budget = data.draw(st.floats(cost.min(), cost.max() + 1))
    assert np.interp(budget, cost[hull], score[hull]) == pytest.approx(hull_height(points, budget), abs=1e-6)


@given(st.lists(st.tuples(STEPS, SCORES), min_size=1, max_size=7))
def test_dominated_point_does_not_move_the_hull(points):
    cost, score = np.array(points, dtype=float).T
    hull = upper_hull(cost, score)
    worse = hull[0]
    more = upper_hull(np.append(cost, cost[worse] + 1), np.append(score, score[worse] - 0.1))
    assert more.tolist() == hull.tolist()


def score_of_mix(fixed_cost, fixed_score, cost):
    """As comparisons find it: hull of the fixed scales in each resample, flat beyond its ends."""
    costs, scores, wanted = (
        np.atleast_2d(np.asarray(each, float)) for each in (fixed_cost, fixed_score, cost)
    )
    return np.squeeze(Curve.of(costs, scores).hull().at(wanted))


def test_mix_by_hand():
    # Scale 9 lies below the line from 1 to 36, and the finest is not the best. Half a token buys nothing, and
    # is compared with the cheapest scale, in the mix's favour.
    cost, score = [1, 9, 36, 144], [0.4, 0.45, 0.75, 0.7]
    mix = score_of_mix(cost, score, [1, 15, 36, 100, 144, 0.5])
    assert mix == pytest.approx([0.4, 0.4 + 14 / 35 * 0.35, 0.75, 0.75, 0.75, 0.4])
    curve = Curve.of(np.array([cost], float), np.array([score])).hull()
    np.testing.assert_allclose(curve.at(np.array([[1, 15, 36, 100, 144, 0.5]])), [mix])


@given(st.lists(st.tuples(STEPS, SCORES), min_size=1, max_size=5), st.floats(0, 6))
def test_mix_is_as_high_as_any_mixture(points, more):
    cost, score = np.array(points, dtype=float).T
    budget = cost.min() + more
    assert score_of_mix(cost, score, [budget]) == pytest.approx(hull_height(points, budget), abs=1e-6)


def test_mix_of_many_resamples_is_the_mix_of_each():
    rng = np.random.default_rng(0)
    cost, score = np.sort(rng.random((20, 4)) + 0.1), rng.random((20, 4))
    wanted = 0.2 + rng.random((20, 7))
    together = score_of_mix(cost, score, wanted)
    apart = [score_of_mix(*row) for row in zip(cost, score, wanted, strict=True)]
    np.testing.assert_array_equal(together, np.stack(apart))


def test_oracle_conventions():
    score = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0.3, 0.3, 0.6, 0.6]])
    cost = np.tile([1, 9, 36, 144], (4, 1))
    assert find_smallest_right(score).tolist() == [1, -1, 0, 2]
    authors, honest = (choose_as_oracle(score, cost, rule) for rule in ("coarsest", "finest"))
    assert authors.tolist() == [1, 0, 0, 2]
    assert honest.tolist() == [1, 3, 0, 2]
    # Both score 2.6 / 4; the authors' charges (9 + 1 + 1 + 36) / 4 tokens, the honest one 143 / 4 more.
    rows = np.arange(4)
    assert cost[rows, authors].mean() == 11.75
    assert cost[rows, honest].mean() == 47.5


def test_budgeted_oracle_by_hand():
    # One sample gains at 9 tokens, one at 144, one never: 1/8 a token is spent first, then 1/143.
    cost = np.tile([1.0, 9.0, 144.0], (3, 1))
    score = [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    front = sweep(score, cost, score)
    assert front.cost * 3 == pytest.approx([154, 11, 3])
    assert front.score * 3 == pytest.approx([2, 1, 0])


@given(tables(), st.floats(0, 1))
def test_budgeted_oracle_is_the_best_of_all_choices(table, position):
    """Against the linear program over all choices of a scale for each sample, drawn at random or not."""
    cost, score = table
    front = sweep(score, cost, score)
    lowest, highest = cost.min(axis=1).mean(), cost[:, -1].mean()
    budget = lowest + position * (highest - lowest)
    rows = np.arange(len(cost))
    choices = itertools.product(range(cost.shape[1]), repeat=len(cost))
    reachable = [(cost[rows, list(c)].mean(), score[rows, list(c)].mean()) for c in choices]
    reached = np.interp(budget, front.cost[::-1], front.score[::-1])
    assert reached == pytest.approx(hull_height(sorted(set(reachable)), budget), abs=1e-6)


@given(tables(), st.integers(0, 2**32 - 1))
def test_no_policy_and_no_mix_is_above_the_budgeted_oracle(table, seed):
    cost, score = table
    oracle = sweep(score, cost, score)
    policy = sweep(np.random.default_rng(seed).random(cost.shape), cost, score)
    bound = np.interp(policy.cost, oracle.cost[::-1], oracle.score[::-1])
    assert (policy.score <= bound + 1e-9).all()
    budgets = np.linspace(cost.mean(axis=0).min(), cost.mean(axis=0).max(), 9)
    mix = score_of_mix(cost.mean(axis=0), score.mean(axis=0), budgets)
    assert (mix <= np.interp(budgets, oracle.cost[::-1], oracle.score[::-1]) + 1e-9).all()


def test_traced_prices_span_the_front_evenly():
    table = make_outcomes("calibration", 100)
    estimates, cost = estimate_outcomes(table), table.visual_tokens.astype(float)
    complete = sweep(estimates, cost, table.score)
    switches = find_switches(estimates, cost)
    everything = trace_prices(switches, cost, unit=144.0, num_prices=10**6)
    np.testing.assert_array_equal(everything, complete.price)
    prices = trace_prices(switches, cost, unit=144.0, num_prices=40)
    front = sweep(estimates, cost, table.score, prices)
    assert 30 <= len(prices) <= 40 and prices[0] == 0
    assert front.cost[0] == complete.cost[0] and front.cost[-1] == complete.cost[-1] == 1
    assert (-np.diff(np.log(front.cost)) < 3 * np.log(144) / 40).all()


def test_calibrated_policy_meets_its_budgets_on_calibration():
    table = make_outcomes("calibration", 100)
    estimates, cost = estimate_outcomes(table), table.visual_tokens.astype(float)
    policy = CalibratedPolicy.from_front(sweep(estimates, cost, table.score), find_unit(cost))
    assert (np.diff(policy.cost) > 0).all() and (np.diff(policy.score) > 0).all()
    assert (np.diff(policy.price) < 0).all()

    choices = [choose(estimates, cost, price, unit=policy.unit) for price in policy.price]
    rows = np.arange(len(table))
    assert [cost[rows, c].mean() for c in choices] == pytest.approx(policy.cost)
    assert [table.score[rows, c].mean() for c in choices] == pytest.approx(policy.score)

    budgets = np.array([1.0, 2.5, 20.0, policy.cost[-1] + 50])
    plan = policy.plan(budgets)
    assert plan.sum(axis=1) == pytest.approx(1)
    assert ((plan > 0).sum(axis=1) <= 2).all()
    assert plan @ policy.cost == pytest.approx([1.0, 2.5, 20.0, policy.cost[-1]])
    with pytest.raises(ValueError, match="below the cheapest operating point"):
        policy.plan([0.5])


def test_prices_mean_the_same_on_other_samples():
    """The unit is calibration's: a sample is treated alike whatever samples surround it."""
    calibration, test = make_outcomes("calibration", 50), make_outcomes("test", 50)
    unit = find_unit(calibration.cost)
    front = sweep(estimate_outcomes(calibration), calibration.cost, calibration.score)
    policy = CalibratedPolicy.from_front(front, unit)
    cost = test.visual_tokens.astype(float)
    cost[::2] *= 3
    estimates = estimate_outcomes(test)
    for price in policy.price:
        together = choose(estimates, cost, price, unit=unit)
        np.testing.assert_array_equal(together[1::2], choose(estimates[1::2], cost[1::2], price, unit=unit))


def test_budgets_below_the_cheapest_scale_are_raised_to_it():
    """Per resample: with tiles the cheapest scale's mean cost is not the same in all of them."""
    cost, score = np.array([[1.0, 9.0], [2.0, 9.0]]), np.array([[0.5, 0.9], [0.5, 0.9]])
    budgets = raise_budgets([1.0, 5.0, 9.0], cost)
    assert budgets.tolist() == [[1, 5, 9], [2, 5, 9]]
    assert score_of_mix(cost, score, budgets) == pytest.approx(
        np.array([[0.5, 0.7, 0.9], [0.5, 0.5 + 0.4 * 3 / 7, 0.9]])
    )
