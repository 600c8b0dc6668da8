import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.fronts import Grid
from experiments.evaluation.metrics import default_score
from experiments.evaluation.policies import CascadePolicy, Paths, PolicyInputs, PredictorPolicy, ScoredSamples
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Bootstrap
from predictor.policy.front import Front, choose
from predictor.policy.pricing import find_default
from predictor.policy.switches import find_switches
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes


class ThresholdCascade:
    """Goes on to the next scale while the answer's confidence is below a threshold."""

    def __init__(self, confidence, score, cost, estimates, num_prices, first_cost=None):
        self.price = np.linspace(0, 1, num_prices)
        self.fitted_on = len(confidence)

    def escalate(self, confidence, cost, estimates, first_cost=None):
        start = np.zeros(len(confidence), int) if estimates is None else (estimates > 0.6).argmax(axis=1)
        stops = []
        for price in self.price:
            stop = start.copy()
            for row in range(len(confidence)):
                while stop[row] < confidence.shape[1] - 1 and confidence[row, stop[row]] < 1 - price:
                    stop[row] += 1
            stops.append(stop)
        return np.broadcast_to(start, (len(self.price), len(start))), np.array(stops)


@pytest.fixture(scope="module")
def splits():
    return make_outcomes("calibration", 60), make_outcomes("test", 70)


def asked(cost, shared=0.0):
    rows = np.array([cost])
    return PolicyInputs(rows, rows, np.ones_like(rows), shared=shared)


def test_ways_by_hand():
    ways = Paths.escalating(3)
    assert list(zip(ways.start, ways.stop, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert ways.cost(asked([1.0, 9.0, 36.0])).tolist() == [[1, 10, 46, 9, 45, 36]]
    # Of each half a unit is the vision pass, which is paid once however many scales are tried.
    assert ways.cost(asked([1.0, 9.0, 36.0], shared=0.5)).tolist() == [[1, 9.5, 45, 9, 44.5, 36]]
    assert ways.score(np.array([[0.0, 1.0, 0.5]])).tolist() == [[0, 1, 0.5, 1, 0.5, 0.5]]
    assert ways.find([[0, 1], [2, 0]], [[2, 1], [2, 0]]).tolist() == [[2, 3], [5, 0]]
    with pytest.raises(ValueError, match="or at a finer one"):
        ways.find([2], [1])
    assert Paths.single(3).cost(asked([0.1, 0.7, 3.3], shared=0.1)).tolist() == [[0.1, 0.7, 3.3]]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_choices_at_many_prices_are_those_at_each(seed, coarse):
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 4, (5, 4)).cumsum(axis=1).astype(float)
    estimates = rng.random((5, 4)).round(1 if coarse else 9)
    prices = np.sort(np.append(rng.random(4).round(1) * 2, [0.0, np.inf]))
    each = np.array([choose(estimates, cost, price, unit=1) for price in prices])
    schedule = Schedule.at_prices(find_switches(estimates, cost), prices, 1.0)
    np.testing.assert_array_equal([schedule.at(point) for point in range(6)], each)
    dense = Schedule.of(each)
    np.testing.assert_array_equal([dense.at(point) for point in range(6)], each)
    rows, kept = np.arange(5), np.array([1, 4])
    for some in (schedule.keep(kept), dense.keep(kept)):
        assert some.mean(cost) == pytest.approx([cost[rows, each[point]].mean() for point in kept])


@pytest.mark.parametrize("hybrid", [False, True])
def test_cascade_pays_for_every_scale_that_it_tries(splits, hybrid):
    calibration, test = splits
    estimates = (estimate_outcomes(calibration), estimate_outcomes(test)) if hybrid else None
    found = compare_policies(
        calibration,
        test,
        [CascadePolicy("cascade", ThresholdCascade, estimates)],
        grid=Grid(num_prices=9),
        bootstrap=Bootstrap(3),
    ).find("cascade")
    tokens, score = test.visual_tokens, test.score
    first, last = ThresholdCascade(test.confidence, None, None, None, 9).escalate(
        test.confidence, None, estimates and estimates[1]
    )
    for k in range(9):
        spent = [sum(tokens[i, first[k, i] : last[k, i] + 1]) for i in range(len(test))]
        right = [score[i, last[k, i]] for i in range(len(test))]
        assert found.trace.cost[k] == pytest.approx(np.mean(spent))
        assert found.trace.score[k] == pytest.approx(np.mean(right, dtype=float))
    kept = np.searchsorted(found.trace.price, found.front.price)
    np.testing.assert_allclose(found.front.cost, found.trace.cost[kept])
    assert found.chosen.sum(axis=1) == pytest.approx(1)


def test_a_policy_is_not_handed_scores_of_test_samples(splits):
    asked = ScoredSamples.of(splits[1]).inputs
    assert not hasattr(asked, "score") and len(asked) == len(splits[1])


def test_default_is_the_cheapest_price_as_good_as_the_best_fixed_scale():
    front = Front(np.array([9.0, 5.0, 2.0, 1.0]), np.array([0.8, 0.79, 0.78, 0.5]), np.arange(4.0))
    assert find_default(front.cost, front.score, 0.8, tolerance=0.01) == 1
    assert find_default(front.cost, front.score, 0.9, tolerance=0.01) == 0
    with pytest.raises(ValueError, match="at least 0, got -1"):
        find_default(front.cost, front.score, 0.9, tolerance=-1)


def test_predictor_without_a_default_gets_one_from_calibration(splits):
    calibration, test = splits
    estimating = PredictorPolicy("informed", estimate_outcomes(calibration), estimate_outcomes(test))
    found = compare_policies(calibration, test, [estimating], bootstrap=Bootstrap(3)).find("informed")
    at = np.searchsorted(found.trace.price, found.default.price)
    assert found[default_score].value == pytest.approx(found.trace.score[at])
