"""Cascades against hand-worked cases and a search that tries everything."""

import itertools

import numpy as np
import pytest

from predictor.cascades.cascade import Cascade
from predictor.policy.front import upper_hull

COST = np.array([1.0, 4.0, 16.0])


def draw(num_samples, seed, num_scales=3):
    """Confidences of five values, and scores that are right about as often as those say."""
    rng = np.random.default_rng(seed)
    confidence = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], (num_samples, num_scales))
    score = (rng.random(confidence.shape) < confidence).astype(float)
    cost = np.tile(COST[:num_scales], (num_samples, 1)) * rng.choice([1, 2], (num_samples, 1))
    return confidence, score, cost


def coincide(arrays, seed):
    """The arrays with every second sample's outcomes of a random scale at the next finer scale too."""
    column = np.random.default_rng(seed).integers(0, 2, len(arrays[0]))
    rows = np.arange(0, len(arrays[0]), 2)
    for array in arrays:
        array[rows, column[rows] + 1] = array[rows, column[rows]]
    return arrays


def follow(confidence, score, cost, start, threshold):
    """Cost and score of one sample, scale by scale. A scale that costs as much as the last one coincides."""
    column, paid = start, cost[start]
    while column < len(cost) - 1 and confidence[column] < threshold[column]:
        column += 1
        paid += cost[column] if cost[column] != cost[column - 1] else 0
    return paid, score[column], column


def try_everything(confidence, score, cost):
    """(mean cost, mean score) of every start with every threshold that makes a difference."""
    levels = [-np.inf, 0.3, 0.5, 0.7, 0.9, np.inf]
    for start in range(confidence.shape[1]):
        for threshold in itertools.product(levels, repeat=confidence.shape[1] - 1):
            rows = [follow(*row, start, threshold) for row in zip(confidence, score, cost, strict=True)]
            yield tuple(np.mean([row[:2] for row in rows], axis=0))


@pytest.mark.parametrize("coinciding", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_cascade_is_better_at_any_price(seed, coinciding):
    confidence, score, cost = coincide(draw(50, seed), seed) if coinciding else draw(50, seed)
    fitted = Cascade.fit(confidence, score, cost)
    everything = np.array(list(try_everything(confidence, score, cost)))
    for price in np.geomspace(1e-4, 1, 30):
        best = (everything[:, 1] - price * everything[:, 0]).max()
        assert (fitted.score - price * fitted.cost).max() == pytest.approx(best, abs=1e-12)


def test_each_is_best_from_its_price_to_the_next():
    confidence, score, cost = draw(200, 5)
    fitted = Cascade.fit(confidence, score, cost)
    assert fitted.price[0] == 0 and (np.diff(fitted.price) > 0).all() and (np.diff(fitted.cost) < 0).all()
    for row, (low, high) in enumerate(itertools.pairwise([*fitted.price, fitted.price[-1] + 1])):
        worth = fitted.score - (low + high) / 2 * fitted.cost / fitted.unit
        assert worth.argmax() == row


def test_paths_cost_and_score_what_the_search_found():
    confidence, score, cost = draw(300, 1)
    fitted = Cascade.fit(confidence, score, cost)
    first, last = fitted.escalate(confidence, cost)
    rows = np.arange(len(cost))
    paid = np.cumsum(np.insert(cost, 0, 0, axis=1), axis=1)
    np.testing.assert_allclose((paid[rows, last + 1] - paid[rows, first]).mean(axis=1), fitted.cost)
    np.testing.assert_allclose(score[rows, last].mean(axis=1), fitted.score)


def test_worked_by_hand():
    """Two samples sure and right at scale 1, one unsure and right at 4 only, one wrong throughout."""
    confidence = np.array([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.2, 0.9, 0.9], [0.9, 0.3, 0.3]])
    score = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0]], dtype=float)
    fitted = Cascade.fit(confidence, score, np.tile(COST, (4, 1)))
    # Stop where sure, one sample escalates to 4 and pays 5: 3 of 4 right for (3 * 1 + 5) / 4; below: scale 1.
    np.testing.assert_allclose(fitted.cost, [2, 1])
    np.testing.assert_allclose(fitted.score, [0.75, 0.5])
    # Half as many tokens right for one token more, in units of 16.
    np.testing.assert_allclose(fitted.price, [0, 0.25 * 16])
    first, last = fitted.escalate(confidence, np.tile(COST, (4, 1)))
    assert first.tolist() == [[0] * 4] * 2
    assert last.tolist() == [[0, 0, 1, 0], [0] * 4]


def test_answers_that_were_not_asked_for_are_not_looked_at():
    confidence, score, cost = draw(300, 2)
    fitted = Cascade.fit(confidence, score, cost)
    first, last = fitted.escalate(confidence, cost)
    for row in range(len(fitted.price)):
        seen = (np.arange(3) >= first[row][:, None]) & (np.arange(3) <= last[row][:, None])
        again = fitted.escalate(np.where(seen, confidence, np.nan), cost)
        np.testing.assert_array_equal(again[1][row], last[row])


def test_estimates_are_refused():
    confidence, score, cost = draw(50, 4)
    with pytest.raises(ValueError, match=r"fit predictor\.cascades\.hybrid\.Hybrid"):
        Cascade.fit(confidence, score, cost, confidence)


def test_one_scale_is_a_cascade_too():
    fitted = Cascade.fit([[0.5], [0.5]], [[1], [0]], [[3], [5]])
    assert (fitted.cost.tolist(), fitted.score.tolist()) == ([4], [0.5])


def test_at_most_so_many_are_kept_and_the_ends_among_them():
    confidence, score, cost = draw(500, 6)
    everything, few = Cascade.fit(confidence, score, cost), Cascade.fit(confidence, score, cost, num_prices=3)
    assert len(few.price) == 3 < len(everything.price)
    assert (few.cost[0], few.cost[-1]) == (everything.cost[0], everything.cost[-1])


def test_the_hull_leaves_out_what_lies_on_it():
    assert upper_hull([1, 2, 3, 3, 4], [0, 1, 2, 0, 2]).tolist() == [0, 2]
