"""Oracles by hand, and the luck that some of them have against the luck that others lack."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.fronts import RULES, Grid, choose_by_rule, choose_stably
from experiments.evaluation.metric_table import Rule
from experiments.evaluation.noise_free import expect_scores, leave_one_out, measure_noise_free
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from predictor.policy.front import choose
from tests.experiments.evaluation.synthetic import SCALES, estimate_outcomes, make_outcomes


def test_stable_oracle_by_hand():
    score = np.array(
        [[0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0.3, 0.6, 0.3, 0.6]]
    )
    assert choose_stably(score).tolist() == [3, 1, 3, 3, 0, 3]
    assert choose_by_rule(score, "stable").tolist() == [3, 1, 3, 3, 0, 3]
    assert choose_by_rule(score, "coarsest").tolist() == [1, 1, 0, 0, 0, 1]
    assert choose_by_rule(score, "finest").tolist() == [1, 1, 0, 3, 0, 1]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=1, max_size=5))
def test_stable_oracle_literally(score):
    for row, found in zip(score, choose_stably(score), strict=True):
        stable = [k for k in range(3) if max(row) > 0 and all(each == max(row) for each in row[k:])]
        assert found == (stable[0] if stable else 2)


def test_expected_score_is_the_chance_of_all_tokens_of_the_reference():
    # Two tokens of probabilities 0.5 and 0.8: mean NLL -(ln 0.5 + ln 0.8) / 2.
    nll = -(np.log(0.5) + np.log(0.8)) / 2
    assert expect_scores([[nll, 0.0]], [[2, 4]]) == pytest.approx(np.array([[0.4, 1.0]]))


def test_leave_one_out_by_hand():
    runs = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]])
    assert leave_one_out(runs).tolist() == [[[0.5, 1.0]], [[0.5, 0.5]], [[1.0, 0.5]]]
    with pytest.raises(ValueError, match="two runs at least"):
        leave_one_out(runs[:1])


def test_resampled_oracle_literally():
    rng = np.random.default_rng(0)
    cost = np.tile([1.0, 4.0, 9.0], (6, 1))
    runs = rng.integers(0, 2, (3, 6, 3)).astype(float)
    images = ["a", "a", "b", "c", "c", "c"]
    found = measure_noise_free(
        cost, leave_one_out(runs), runs, images, grid=Grid(num_prices=1000), bootstrap=Bootstrap(2)
    )
    rows, expected = np.arange(6), []
    # All prices at which the first run's choices change, from dear points to cheap ones.
    others = [np.mean([runs[k] for k in range(3) if k != run], axis=0) for run in range(3)]
    prices = sorted({0.0, *_switching_prices(others[0], cost)}, reverse=True)
    for price in prices:
        points = []
        for run in range(3):
            choice = choose(others[run], cost, price, unit=9.0)
            points.append((cost[rows, choice].mean(), runs[run][rows, choice].mean()))
        expected.append(np.mean(points, axis=0))
    assert np.column_stack([found.cost.value, found.score.value]) == pytest.approx(np.array(expected))
    assert found.fixed_score.value == pytest.approx(np.mean(runs, axis=(0, 1)))
    assert (found.num_runs, found.num_samples) == (3, 6)


def _switching_prices(estimates, cost):
    """Prices per 9 tokens at which some sample's best scale changes: where two scales are level."""
    for values, costs in zip(estimates, cost, strict=True):
        for low, high in itertools.combinations(range(3), 2):
            price = 9 * (values[high] - values[low]) / (costs[high] - costs[low])
            if price > 0:
                utility = values - price * costs / 9
                if np.isclose(utility[[low, high]], utility.max()).all():
                    yield price


def test_answers_at_random_give_luck_to_the_budgeted_oracle_and_nothing_to_those_without():
    """Every answer is right with chance one half at every scale: there is nothing to choose."""
    rng = np.random.default_rng(1)
    runs = rng.integers(0, 2, (4, 2000, 4)).astype(float)
    cost, images = np.tile(np.array(SCALES, float), (2000, 1)), np.arange(2000).astype(str)
    settings: Any = {"bootstrap": Bootstrap(200), "grid": Grid(9)}
    lucky = measure_noise_free(cost, runs[:1], runs[:1], images, **settings)
    resampled = measure_noise_free(cost, leave_one_out(runs), runs, images, **settings)
    chance = np.full((1, 2000, 4), 0.5)
    likelihood = measure_noise_free(cost, chance, chance, images, **settings)
    assert lucky.gap.low > 0.2
    assert likelihood.gap.value == pytest.approx(0, abs=1e-9)
    assert resampled.gap.high < 0.02


def test_comparison_has_what_its_outcomes_allow():
    calibration, test = make_outcomes("calibration", 40), make_outcomes("test", 50)
    contender = PredictorPolicy("informed", estimate_outcomes(calibration), estimate_outcomes(test))
    found = compare_policies(calibration, test, [contender], bootstrap=Bootstrap(5))
    assert {key.policy.name for key in found.metrics if isinstance(key.policy, Rule)} == RULES.keys()
    # 0.1 and 2 nats a token over three tokens.
    chance = np.exp(np.where(test.score > 0, -0.3, -6.0))
    assert found.noise_free["likelihood"].fixed_score.value == pytest.approx(
        np.mean(chance, axis=0), abs=1e-6
    )
    test.references[3].append("another answer")
    try:
        assert compare_policies(calibration, test, [contender], bootstrap=Bootstrap(5)).noise_free == {}
    finally:
        test.references[3].pop()
