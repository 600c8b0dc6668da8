"""Policies against hand-worked numbers and against a literal reading of their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.policy.front import choose, find_unit, policy_value, score_at_budgets, space_budgets, sweep

# Two samples, scales of 1 and 4 tokens; unit 4. Sample 0 gains 0.6 from the finer scale, sample 1 gains 0.2:
# they leave it at prices 0.6 / 3 * 4 = 0.8 and 0.2 / 3 * 4 = 0.2667.
ESTIMATES = np.array([[0.2, 0.8], [0.6, 0.8]])
COST = np.array([[1, 4], [1, 4]])
SCORE = np.array([[0.0, 1.0], [1.0, 1.0]])


def test_hand_worked_choices() -> None:
    assert find_unit(COST) == 4
    assert choose(ESTIMATES, COST, 0).tolist() == [1, 1]
    assert choose(ESTIMATES, COST, 0.3).tolist() == [1, 0]
    assert choose(ESTIMATES, COST, 0.9).tolist() == [0, 0]
    assert choose(ESTIMATES, COST, np.inf).tolist() == [0, 0]
    # The same prices per token, in another unit.
    assert choose(ESTIMATES, COST, 0.3 / 4, unit=1).tolist() == [1, 0]


def test_hand_worked_front_and_value() -> None:
    front = sweep(ESTIMATES, COST, SCORE)
    np.testing.assert_allclose(front.price, [0, 0.8 / 3, 0.8])
    np.testing.assert_allclose(front.cost, [4, 2.5, 1])
    np.testing.assert_allclose(front.score, [1, 1, 0.5])
    # Halfway between 1 and 2.5 tokens half of the gain; above 4 nothing more; below 1 impossible.
    np.testing.assert_allclose(score_at_budgets(front, [0.5, 1, 1.75, 3, 9]), [np.nan, 0.5, 0.75, 1, 1])
    # Three budgets: 1, 2, 4 tokens, scores 0.5, 0.5 + 1/3, 1.
    np.testing.assert_allclose(space_budgets(COST, 3), [1, 2, 4])
    assert policy_value(ESTIMATES, COST, SCORE, num_budgets=3) == pytest.approx((0.5 + 0.5 + 1 / 3 + 1) / 3)


def test_constant_estimates_reach_the_mix() -> None:
    """1, 2 and 4 tokens score 0.25, 0.25 and 0.75: the middle scale lies under the hull and is skipped."""
    cost = np.tile([1, 2, 4], (4, 1))
    score = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    front = sweep(np.tile(score.mean(axis=0), (4, 1)), cost, score)
    assert front.cost.tolist() == [4, 1]
    np.testing.assert_allclose(score_at_budgets(front, [1, 2.5, 4]), [0.25, 0.5, 0.75])


def test_ties_go_to_the_cheaper_scale() -> None:
    assert choose([[0.5, 0.5, 0.5]], [[1, 4, 9]], 0).tolist() == [0]
    assert choose([[0.5, 0.5]], [[3, 2]], 0).tolist() == [1]
    assert choose([[0.5, 0.5]], [[2, 2]], 0).tolist() == [0]
    # At exactly the switching price: 0.75 lost for 3 of 4 saved, price 1.
    assert choose([[0.0, 0.75]], [[1, 4]], 1).tolist() == [0]


def test_one_scale_has_one_point() -> None:
    front = sweep([[0.1], [0.9]], [[5], [5]], [[1], [0]])
    assert (front.cost.tolist(), front.score.tolist(), front.price.tolist()) == ([5], [0.5], [0])
    assert policy_value([[0.1], [0.9]], [[5], [5]], [[1], [0]]) == 0.5


@pytest.mark.parametrize(
    ("estimates", "cost", "price", "message"),
    [
        ([[0.5, 0.5]], [[1, 4]], -1, "at least 0"),
        ([[0.5, 0.5]], [[1, 4]], float("nan"), "at least 0"),
        ([[0.5]], [[1, 4]], 0, "but cost is"),
        ([[0.5, np.nan]], [[1, 4]], 0, "not finite"),
        ([[0.5, 0.5]], [[0, 4]], 0, "positive"),
        (np.empty((0, 2)), np.empty((0, 2)), 0, "at least one"),
    ],
)
def test_refusals(estimates: object, cost: object, price: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(estimates, cost, price)  # type: ignore[arg-type]


def choose_literally(estimates: np.ndarray, cost: np.ndarray, price: float) -> list[int]:
    choice = []
    for costs, utility in zip(cost, estimates - price * cost / cost[:, -1].mean(), strict=True):
        best = np.flatnonzero(np.isclose(utility, utility.max(), rtol=0, atol=1e-12))
        choice.append(int(best[costs[best].argmin()]))
    return choice


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, costs and scores with plenty of ties; costs differ between samples and need not ascend."""
    num_samples, num_scales = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (num_samples, num_scales)
    return (
        generator.integers(0, 5, shape) / 4,
        generator.integers(1, 9, shape),
        generator.integers(0, 3, shape) / 2,
    )


@settings(max_examples=200, deadline=None)
@given(tables(), st.floats(0, 20))
def test_choose_and_sweep_agree_with_the_definition(table: tuple[np.ndarray, ...], price: float) -> None:
    estimates, cost, score = table
    choice = choose(estimates, cost, price)
    literal = choose_literally(estimates, cost, price)
    rows = np.arange(len(cost))
    utility = estimates - price * cost / find_unit(cost)
    # At the very price where a sample switches rounding decides, so there either of the two is right.
    tied = np.array(
        [
            len(set(costs[np.isclose(u, u.max(), rtol=0, atol=1e-12)])) > 1
            for costs, u in zip(cost, utility, strict=True)
        ]
    )
    np.testing.assert_allclose(utility[rows, choice], utility[rows, literal], atol=1e-12)
    assert (tied | (cost[rows, choice] == cost[rows, literal])).all()
    assert (tied | (estimates[rows, choice] == estimates[rows, literal])).all()
    front = sweep(estimates, cost, score, [price])
    np.testing.assert_allclose(front.cost, cost[rows, choice].mean(), atol=1e-12)
    np.testing.assert_allclose(front.score, score[rows, choice].mean(), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_complete_front(table: tuple[np.ndarray, ...]) -> None:
    """Between two prices of the complete front no choice changes, and the oracle's is above every other."""
    estimates, cost, score = table
    front = sweep(estimates, cost, score)
    assert (np.diff(front.price) > 0).all() and (np.diff(front.cost) < 0).all()
    between = sweep(
        estimates, cost, score, (front.price + np.append(front.price[1:], front.price[-1] + 1)) / 2
    )
    np.testing.assert_allclose(between.cost, front.cost, atol=1e-12)
    np.testing.assert_allclose(between.score, front.score, atol=1e-12)
    oracle = sweep(score, cost, score)
    assert (score_at_budgets(oracle, front.cost) >= front.score - 1e-9).all()
    assert policy_value(score, cost, score) >= policy_value(estimates, cost, score) - 1e-9
