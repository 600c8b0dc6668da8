"""Figures of merit against slow, literal readings of their definitions, on outcome tables full of ties."""

from itertools import pairwise

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation.comparing import count_confusions
from experiments.evaluation.curves import Curve
from experiments.evaluation.metrics import (
    FrontView,
    average_gap_recovered,
    average_quality,
    call_share,
    hypervolume,
)
from predictor.policy.front import choose, sweep, upper_hull

repeatable = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def outcome_tables(draw):
    """(estimates, cost, score) `[n, s]`: few values, so that ties are common, and the special cases."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    steps = rng.integers(0 if draw(st.booleans()) else 1, 4, shape)
    cost = np.full(shape, 7.0) if draw(st.integers(0, 9)) == 0 else np.cumsum(steps, axis=1) + 1.0
    score = rng.choice([0.0, 0.3, 0.6, 1.0], shape)
    match draw(st.sampled_from(["as drawn", "as drawn", "all right", "all wrong", "finest is worst"])):
        case "all right":
            score = np.ones(shape)
        case "all wrong":
            score = np.zeros(shape)
        case "finest is worst":
            score = -np.sort(-score, axis=1)
    return rng.integers(0, 4, shape) / 3, cost, score


def reach_points(table):
    """Points [(cost, score)] of the policy at some prices, and those of the coarsest and the finest scale."""
    estimates, cost, score = table
    rows, points = np.arange(len(cost)), []
    for price in (0, 0.1, 0.5, 1, 3, np.inf):
        choice = choose(estimates, cost, price)
        points.append((cost[rows, choice].mean(), score[rows, choice].mean()))
    ends = [(cost[:, column].mean(), score[:, column].mean()) for column in (0, -1)]
    return points, *ends


def as_curve(points):
    cost, score = np.array(points).T
    return Curve.of(cost[None], score[None])


def as_pair(point):
    return np.array([point[0]]), np.array([point[1]])


def line_literally(points, cost):
    best: dict[float, float] = {}
    for where, score in points:
        best[where] = max(score, best.get(where, -np.inf))
    costs = sorted(best)
    if cost <= costs[0]:
        return best[costs[0]]
    if cost >= costs[-1]:
        return best[costs[-1]]
    high = next(where for where in costs if where >= cost)
    low = max(where for where in costs if where < cost)
    return best[low] + (cost - low) / (high - low) * (best[high] - best[low])


def hull_literally(points, cost):
    """The best of all points and all mixes of two of them at this mean cost or below."""
    reached = [score for where, score in points if where <= cost]
    for low, low_score in points:
        for high, high_score in points:
            if low < cost < high:
                share = (cost - low) / (high - low)
                reached.append((1 - share) * low_score + share * high_score)
    return max(reached)


def area_literally(height, points, low, high):
    """Under a curve that bends at the points' costs alone."""
    costs = sorted({low, high, *(cost for cost, _ in points if low < cost < high)})
    heights = [height(points, cost) for cost in costs]
    return sum(
        (b - a) * (h + g) / 2 for a, b, h, g in zip(costs, costs[1:], heights, heights[1:], strict=False)
    )


def reach_literally(points, score):
    """Least cost at which the line is as high; it bends at the points alone."""
    costs = sorted({cost for cost, _ in points})
    if line_literally(points, costs[0]) >= score - 1e-9:
        return costs[0]
    for low, high in pairwise(costs):
        below, above = line_literally(points, low), line_literally(points, high)
        if above >= score - 1e-9:
            return low + min(1.0, (score - below) / (above - below)) * (high - low)
    return np.nan


@repeatable
@given(outcome_tables())
def test_average_quality(table):
    points, coarsest, finest = reach_points(table)
    found = average_quality(FrontView(as_curve(points), as_pair(coarsest), as_pair(finest)))
    low, high = coarsest[0], finest[0]
    area = area_literally(hull_literally, [*points, coarsest], low, high)
    expected = area / (high - low) if high > low else np.nan
    assert found == pytest.approx([expected], abs=1e-9, nan_ok=True)


@repeatable
@given(outcome_tables())
def test_average_gap_recovered(table):
    points, coarsest, finest = reach_points(table)
    found = average_gap_recovered(FrontView(as_curve(points), as_pair(coarsest), as_pair(finest)))
    (low, weak), (high, strong) = coarsest, finest
    expected = np.nan
    if high > low and strong - weak > 1e-9:
        area = area_literally(line_literally, [*points, coarsest], low, high)
        expected = (area / (high - low) - weak) / (strong - weak)
    assert found == pytest.approx([expected], abs=1e-9, nan_ok=True)


@repeatable
@given(outcome_tables(), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_call_share(table, recovered):
    points, coarsest, finest = reach_points(table)
    found = call_share(FrontView(as_curve(points), as_pair(coarsest), as_pair(finest)), recovered)
    (low, weak), (high, strong) = coarsest, finest
    expected = np.nan
    if high > low and strong - weak > 1e-9:
        cost = reach_literally([*points, coarsest], weak + recovered * (strong - weak))
        expected = (cost - low) / (high - low)
    assert found == pytest.approx([expected], abs=1e-9, nan_ok=True)


@repeatable
@given(outcome_tables(), st.sampled_from([0.0, 0.3, 0.55, 1.0]))
def test_least_cost_of_a_score(table, score):
    points, *_ = reach_points(table)
    found = as_curve(points).reach(np.array([score]))
    assert found == pytest.approx([reach_literally(points, score)], abs=1e-9, nan_ok=True)


@repeatable
@given(outcome_tables())
def test_hypervolume_is_the_area_of_the_staircase_and_moocore_s(table):
    points, coarsest, finest = reach_points(table)
    found = hypervolume(FrontView(as_curve(points), as_pair(coarsest), as_pair(finest)))
    area, steps = 0.0, sorted({cost for cost, _ in points if cost < finest[0]})
    for low, high in zip(steps, [*steps[1:], finest[0]], strict=False):
        area += (high - low) * max(score for cost, score in points if cost <= low)
    assert found == pytest.approx([area / finest[0]], abs=1e-9)
    theirs = moocore.hypervolume(np.array(points), ref=[finest[0], 0], maximise=[False, True])
    assert found * finest[0] == pytest.approx([theirs], abs=1e-9)


@repeatable
@given(outcome_tables())
def test_hull_is_literally_the_best_mixture(table):
    points, *_ = reach_points(table)
    costs = np.array([[cost for cost, _ in points]])
    found = as_curve(points).hull().at(costs)
    assert found[0] == pytest.approx([hull_literally(points, cost) for cost in costs[0]], abs=1e-9)
    nondominated = moocore.is_nondominated(np.array(points), maximise=[False, True], keep_weakly=True)
    assert nondominated[upper_hull(*np.array(points).T)].all()


@repeatable
@given(outcome_tables(), st.integers(0, 2**32 - 1))
def test_order_of_samples_and_of_points_changes_nothing(table, seed):
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(table[0]))
    points, coarsest, finest = reach_points(table)
    shuffled, *ends = reach_points([part[rows] for part in table])
    shuffled = [shuffled[i] for i in rng.permutation(len(shuffled))]
    one = (as_curve(points), as_pair(coarsest), as_pair(finest))
    other = (as_curve(shuffled), *map(as_pair, ends))
    for merit in (average_quality, average_gap_recovered):
        assert merit(FrontView(*one)) == pytest.approx(merit(FrontView(*other)), abs=1e-9, nan_ok=True)
    assert hypervolume(FrontView(*one)) == pytest.approx(hypervolume(FrontView(*other)), abs=1e-9)


@repeatable
@given(outcome_tables())
def test_no_policy_has_more_merit_than_the_budgeted_oracle(table):
    _, cost, score = table
    points, coarsest, finest = reach_points(table)
    bound = sweep(score, cost, score)
    oracle = Curve.of(bound.cost[None], bound.score[None])
    assert (
        np.array([line_literally(points, c) for c in bound.cost]) <= oracle.at(bound.cost[None])[0] + 1e-9
    ).all()
    for merit in (average_quality, average_gap_recovered):
        own, bounding = (
            merit(FrontView(curve, as_pair(coarsest), as_pair(finest)))
            for curve in (as_curve(points), oracle)
        )
        assert np.isnan(own).all() or (own <= bounding + 1e-9).all()
    fixed = Curve.of(cost.mean(axis=0)[None], score.mean(axis=0)[None]).hull()
    # Below the cheapest fixed scale there is no mix.
    mix = np.where(bound.cost < fixed.cost.min() - 1e-9, -np.inf, fixed.at(bound.cost[None])[0])
    assert (mix <= bound.score + 1e-9).all()


def test_aiq_and_apgr_by_hand():
    # Points (1, 0.2), (3, 0.6), (5, 0.5), (9, 0.8). The hull runs (1, 0.2), (3, 0.6), (9, 0.8): its area is
    # 2 x 0.4 + 6 x 0.7 = 5, over 8 tokens: AIQ = 0.625.
    points = [(1, 0.2), (3, 0.6), (5, 0.5), (9, 0.8)]
    curve, coarsest, finest = as_curve(points), as_pair((1, 0.2)), as_pair((9, 0.8))
    assert average_quality(FrontView(curve, coarsest, finest)) == pytest.approx([0.625])
    # The line itself: 2 x 0.4 + 2 x 0.55 + 4 x 0.65 = 4.5, mean 0.5625; APGR = (0.5625 - 0.2) / 0.6.
    assert average_gap_recovered(FrontView(curve, coarsest, finest)) == pytest.approx([0.3625 / 0.6])
    # Half of the gap is a score of 0.5: at 2.5 tokens, a share of 1.5 / 8. 80% is 0.68: 60% of the way from
    # 5 to 9 tokens, 7.4.
    assert call_share(FrontView(curve, coarsest, finest), 0.5) == pytest.approx([1.5 / 8])
    assert call_share(FrontView(curve, coarsest, finest), 0.8) == pytest.approx([6.4 / 8])
    # A staircase: 2 x 0.2 + 6 x 0.6 of 9 x 1.
    assert hypervolume(FrontView(curve, coarsest, finest)) == pytest.approx([4 / 9])


def test_routing_at_random_between_two_scales_has_an_apgr_of_one_half():
    curve = as_curve([(1, 0.4), (100, 0.9)])
    ends = as_pair((1, 0.4)), as_pair((100, 0.9))
    assert average_gap_recovered(FrontView(curve, *ends)) == pytest.approx([0.5])
    assert call_share(FrontView(curve, *ends), 0.8) == pytest.approx([0.8])


def test_a_policy_whose_own_cost_lifts_it_off_the_coarsest_scale():
    """Below its cheapest point there is the mix with the coarsest scale, which needs no predictor."""
    coarsest, finest = as_pair((1, 0.4)), as_pair((11, 0.8))
    found = average_quality(FrontView(as_curve([(3, 0.6), (13, 0.8)]), coarsest, finest))
    assert found == pytest.approx([(2 * 0.5 + 8 * (0.6 + 0.76) / 2) / 10])


def test_resamples_are_measured_each_for_itself():
    rng = np.random.default_rng(0)
    cost, score = rng.random((20, 6)) + 0.1, rng.random((20, 6))
    ends = (np.full(20, 0.1), rng.random(20) / 4), (np.full(20, 1.1), 0.5 + rng.random(20) / 2)
    together = Curve.of(cost, score)
    for row in range(20):
        alone = Curve.of(cost[[row]], score[[row]])
        mine = [(each[0][[row]], each[1][[row]]) for each in ends]
        for merit in (average_quality, average_gap_recovered):
            assert merit(FrontView(together, *ends))[row] == pytest.approx(
                merit(FrontView(alone, *mine))[0], abs=1e-12
            )
        assert hypervolume(FrontView(together, *ends))[row] == pytest.approx(
            hypervolume(FrontView(alone, *mine))[0], abs=1e-12
        )
        assert call_share(FrontView(together, *ends), 0.5)[row] == pytest.approx(
            call_share(FrontView(alone, *mine), 0.5)[0], abs=1e-12, nan_ok=True
        )


def test_confusions_are_counted_literally():
    score = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0.5, 0.7]])
    found = count_confusions(score, np.array([1, 2, 2, 0, 2]))
    expected = np.zeros((4, 3), int)
    for needed, chosen in ((1, 1), (3, 2), (0, 2), (1, 0), (2, 2)):
        expected[needed, chosen] += 1
    assert found.tolist() == expected.tolist()


def test_sweep_is_the_front_that_is_measured():
    """The complete front of a policy through `Curve`: same heights as the policy's own interpolation."""
    rng = np.random.default_rng(1)
    cost = np.tile([1.0, 9.0, 36.0], (50, 1))
    front = sweep(rng.random((50, 3)), cost, rng.random((50, 3)))
    budgets = np.linspace(1, 36, 30)
    expected = np.interp(budgets, front.cost[::-1], front.score[::-1])
    assert Curve.of(front.cost[None], front.score[None]).at(budgets[None])[0] == pytest.approx(expected)


def draw_curves(seed, num_rows=30, num_points=12):
    """Costs and scores `[num_rows, num_points]` in any order, with ties in both."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (num_rows, num_points)) / 2, rng.integers(0, 6, (num_rows, num_points)) / 5


@pytest.mark.parametrize("num_points", [1, 2, 3, 12])
def test_lines_of_many_resamples_are_those_of_each(num_points):
    """Below, on, between and beyond the points, against the literal line."""
    cost, score = draw_curves(0, num_points=num_points)
    wanted = np.random.default_rng(1).integers(-2, 22, (30, 40)) / 4
    found = Curve.of(cost, score).at(wanted)
    for row in range(30):
        points = list(zip(cost[row], score[row], strict=True))
        assert found[row] == pytest.approx([line_literally(points, each) for each in wanted[row]], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_hulls_of_many_resamples_are_those_of_each(seed):
    cost, score = draw_curves(seed)
    curve = Curve.of(cost, score)
    hulls = curve.hull()
    for row in range(30):
        vertices = upper_hull(cost[row], score[row])
        expected = np.interp(hulls.cost[row], cost[row, vertices], score[row, vertices])
        assert hulls.score[row] == pytest.approx(expected, abs=1e-12)
    # A convex chain of many points, the worst there is: its hull is one line.
    costs = np.arange(200.0)[None]
    assert Curve.of(costs, (costs / 199) ** 2).hull().score == pytest.approx(costs / 199)


@pytest.mark.parametrize("seed", range(4))
def test_areas_and_hypervolumes_of_many_resamples_are_those_of_each(seed):
    cost, score = draw_curves(seed)
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, 6, 30) / 4, 2 + rng.integers(0, 12, 30) / 4
    curve = Curve.of(cost, score)
    areas, volumes = (
        curve.area(low, high),
        hypervolume(FrontView(curve, (low, np.zeros(30)), (high, np.zeros(30)))),
    )
    for row in range(30):
        points = list(zip(cost[row], score[row], strict=True))
        assert areas[row] == pytest.approx(area_literally(line_literally, points, low[row], high[row]))
        theirs = moocore.hypervolume(np.array(points), ref=[high[row], 0], maximise=[False, True])
        assert volumes[row] * high[row] == pytest.approx(theirs, abs=1e-12)
