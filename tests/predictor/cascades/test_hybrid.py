"""Hybrids against a walk sample by sample, and against the predictor alone."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m3_backbone.ladder import find_coarsest
from predictor.cascades.hybrid import HYBRID, ExpectedGain, Hybrid
from predictor.policy.front import choose, find_unit, sweep
from tests.predictor.cascades.test_cascade import coincide

COST = np.array([1.0, 4.0, 16.0])


def draw(num_samples, seed):
    """Answers that are right as often as their confidence says, and estimates that know something, too."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.05, 0.95, (num_samples, 3))
    score = (rng.random(confidence.shape) < confidence).astype(float)
    cost = np.tile(COST, (num_samples, 1)) * rng.choice([1, 2], (num_samples, 1))
    return confidence, score, cost, np.clip(0.7 * score + 0.3 * rng.random(score.shape), 0, 1)


def follow(cost, gain, unit, start, escalation_price):
    """First and last column of one sample, scale by scale.

    A escalating price is a gain per cost of one of the samples: for that sample, the two sides are equal.
    """
    column = start
    while column < len(cost) - 1 and gain[column] / cost[column + 1] * unit > escalation_price:
        column += 1
    return start, column


def test_escalates_while_the_gain_is_worth_its_price():
    confidence, score, cost, estimates = draw(200, 0)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    assert fitted.unit == find_unit(cost) and len(fitted.price) > 5
    first, last = fitted.escalate(confidence, cost, estimates)
    gain = fitted.gain(confidence, estimates)
    prices = zip(fitted.starting_price, fitted.escalation_price, strict=True)
    for row, (starting, escalating) in enumerate(prices):
        starts = choose(estimates, cost, starting, unit=fitted.unit)
        literal = [
            follow(cost[i], gain[i], fitted.unit, start, escalating)
            for i, start in enumerate(starts.tolist())
        ]
        assert list(zip(first[row].tolist(), last[row].tolist(), strict=True)) == literal
    assert (last > first).any() and (last == first).any()


def test_coinciding_scales_are_passed_without_an_answer():
    """Of every second sample the middle scale is the coarsest or the finest one; each counts as one scale."""
    confidence, score, cost, estimates = coincide(draw(200, 0), 0)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    coarsest = find_coarsest(cost)
    first, last = fitted.escalate(confidence, cost, estimates)
    gain, rows = fitted.gain(confidence, estimates), np.arange(len(cost))
    assert (coarsest[rows, first] == first).all() and (coarsest[rows, last] == last).all()
    for row, price in enumerate(fitted.escalation_price):
        for sample in rows:
            # The distinct scales from the first one, and the gain from each one's last column.
            column = first[row, sample]
            while True:
                end = np.flatnonzero(coarsest[sample] == column).max()
                if end == 2 or not gain[sample, end] / cost[sample, end + 1] * fitted.unit > price:
                    break
                column = end + 1
            assert column == last[row, sample]
    tried = (
        (np.arange(3) >= first[..., None]) & (np.arange(3) <= last[..., None]) & (coarsest == np.arange(3))
    )
    np.testing.assert_allclose((tried * cost).sum(axis=2).mean(axis=1), fitted.cost)
    np.testing.assert_allclose(score[rows, last].mean(axis=1), fitted.score)
    # Confidences of scales that were not answered, or that coincide with a coarser one, are not read.
    for row in range(len(fitted.price)):
        again = fitted.at(row).escalate(np.where(tried[row], confidence, np.nan), cost, estimates)
        np.testing.assert_array_equal(again[1][0], last[row])


def test_where_all_scales_coincide_there_is_one():
    confidence, score, _, estimates = draw(40, 1)
    confidence, score = (np.repeat(values[:, :1], 3, axis=1) for values in (confidence, score))
    cost = np.full((40, 3), 4.0)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    assert fitted.cost.tolist() == [4]
    first, last = fitted.escalate(confidence, cost, estimates)
    assert not first.any() and not last.any()


def test_costs_and_scores_what_the_search_found():
    confidence, score, cost, estimates = draw(300, 1)
    score = np.where(score > 0, 2 / 3, 0)  # as VQA accuracy has it
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    first, last = fitted.escalate(confidence, cost, estimates)
    rows = np.arange(len(cost))
    paid = np.cumsum(np.insert(cost, 0, 0, axis=1), axis=1)
    np.testing.assert_allclose((paid[rows, last + 1] - paid[rows, first]).mean(axis=1), fitted.cost)
    np.testing.assert_allclose(score[rows, last].mean(axis=1), fitted.score)


def test_is_never_worse_than_the_estimates_alone_where_it_was_fitted():
    confidence, score, cost, estimates = draw(400, 3)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    front = sweep(estimates, cost, score, fitted.starting_price, unit=fitted.unit)
    for price in np.geomspace(1e-3, 1, 10):
        alone = (front.score - price * front.cost).max()
        assert (fitted.score - price * fitted.cost).max() >= alone - 1e-12


def test_answers_tell_what_estimates_do_not():
    """Estimates that say nothing, confidences that say all: on samples it was not fitted to it gains much."""
    rng = np.random.default_rng(5)
    score = np.stack([rng.random(4000) < 0.6, np.ones(4000)], axis=1)
    confidence = np.where(score, rng.uniform(0.6, 1, score.shape), rng.uniform(0, 0.4, score.shape))
    cost, estimates = np.tile([1.0, 16.0], (4000, 1)), np.tile([0.6, 1.0], (4000, 1))
    half = 2000
    fitted = Hybrid.fit(confidence[:half], score[:half], cost[:half], estimates[:half])
    _, last = fitted.escalate(confidence[half:], cost[half:], estimates[half:])
    right = score[half:][np.arange(half), last].mean(axis=1)
    # All are right where the 40% that were wrong went on, and only those.
    best = np.flatnonzero(right == 1)
    assert last[best].mean(axis=1).min() == pytest.approx(0.4, abs=0.03)


def test_answers_that_were_not_asked_for_are_not_looked_at():
    confidence, score, cost, estimates = draw(300, 2)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    first, last = fitted.escalate(confidence, cost, estimates)
    for row in range(len(fitted.price)):
        seen = (np.arange(3) >= first[row][:, None]) & (np.arange(3) <= last[row][:, None])
        again = fitted.escalate(np.where(seen, confidence, np.nan), cost, estimates)
        np.testing.assert_array_equal(again[1][row], last[row])


def test_the_expected_gain_is_that_of_the_world():
    """This answer is right as often as its confidence says, the next as often as the estimate."""
    rng = np.random.default_rng(0)
    confidence, estimates = rng.uniform(0.05, 0.95, (2, 20000, 2))
    chance = np.stack([confidence[:, 0], estimates[:, 1]], axis=1)
    gain = ExpectedGain.fit(confidence, rng.random(chance.shape) < chance, estimates)(confidence, estimates)
    np.testing.assert_allclose(gain[:, 0], chance[:, 1] - chance[:, 0], atol=0.05)
    assert (gain[:, 1] == 0).all()


def test_a_scale_that_is_always_right_is_no_obstacle():
    confidence, score, cost, _ = draw(100, 4)
    score[:, 2] = 1
    fitted = Hybrid.fit(confidence, score, cost, np.full(score.shape, 0.5))
    assert fitted.score[0] == 1


def test_one_scale_leaves_no_choice(tmp_path):
    fitted = Hybrid.fit([[0.5], [0.5]], [[1], [0]], [[3], [5]], [[0.3], [0.4]])
    assert (fitted.cost.tolist(), fitted.score.tolist()) == ([4], [0.5])
    fitted.save(tmp_path)
    loaded = Hybrid.load(tmp_path)
    assert loaded is not None and loaded.num_scales == 1


def test_at_most_so_many_are_kept():
    confidence, score, cost, estimates = draw(500, 6)
    everything = Hybrid.fit(confidence, score, cost, estimates)
    few = Hybrid.fit(confidence, score, cost, estimates, num_prices=3)
    assert len(few.price) == 3 < len(everything.price)
    assert (few.cost[0], few.cost[-1]) == (everything.cost[0], everything.cost[-1])


def test_price_and_budget_find_a_row_that_stands_for_itself():
    confidence, score, cost, estimates = draw(400, 8)
    fitted = Hybrid.fit(confidence, score, cost, estimates)
    assert fitted.find() == fitted.default == 0
    assert fitted.find(price=0) == 0 and fitted.find(price=1e9) == len(fitted.price) - 1
    row = fitted.find(budget=6)
    assert fitted.cost[row] <= 6 < fitted.cost[row - 1]
    assert fitted.find(price=fitted.price[row]) == row
    every, one = (each.escalate(confidence, cost, estimates) for each in (fitted, fitted.at(row)))
    for first, second in zip(every, one, strict=True):
        np.testing.assert_array_equal(first[row], second[0])
    with pytest.raises(ValueError, match=r"within 0\.5: it is"):
        fitted.find(budget=0.5)
    with pytest.raises(ValueError, match="not both"):
        fitted.find(price=1, budget=1)
    with pytest.raises(ValueError, match="at least 0"):
        fitted.find(price=-1)


def test_the_default_is_the_cheapest_that_is_good_enough():
    fitted = Hybrid.fit(*draw(400, 9))
    best = float(np.median(fitted.score))
    row = fitted.with_default(best).default
    assert fitted.score[row] >= best > fitted.score[row + 1]
    assert fitted.with_default(best, tolerance=0.1).default > row
    assert fitted.with_default(2.0).default == 0  # none is: the highest score
    assert fitted.cost[fitted.with_default(best, budget=7).default] <= 7


def test_saved_it_is_the_same_and_damaged_it_says_so(tmp_path):
    confidence, score, cost, estimates = draw(200, 10)
    fitted = Hybrid.fit(confidence, score, cost, estimates).with_default(0.5)
    fitted.save(tmp_path)
    loaded = Hybrid.load(tmp_path)
    assert loaded is not None
    assert (loaded.default, loaded.unit) == (fitted.default, fitted.unit)
    for name in ("price", "cost", "score", "starting_price", "escalation_price"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
    for first, second in zip(
        fitted.escalate(confidence, cost, estimates),
        loaded.escalate(confidence, cost, estimates),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    assert Hybrid.load(tmp_path / "elsewhere") is None
    # As earlier versions named an array.
    arrays = load_file(tmp_path / HYBRID)
    save_file(
        {name.replace("escalation_price", "climbing_price"): arrays[name] for name in arrays},
        tmp_path / HYBRID,
    )
    former = Hybrid.load(tmp_path)
    assert former is not None
    np.testing.assert_array_equal(former.escalation_price, fitted.escalation_price)
    path = tmp_path / HYBRID
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"hybrid\.safetensors is damaged .*run the train command again"):
        Hybrid.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("default", lambda array: array - 1000),
        ("default", lambda array: array.astype(float) + 0.5),
        ("unit", lambda array: 0 * array),
        ("price", lambda array: array + 1),
        ("cost", lambda array: array[::-1]),
        ("score", lambda array: array * np.nan),
        ("escalation_price", lambda array: array[1:]),
        ("here", lambda array: array * np.nan),
        ("beyond", lambda array: array[:, :-1]),
    ],
)
def test_what_no_fit_gives_is_not_loaded(tmp_path, name, change):
    Hybrid.fit(*draw(200, 11)).save(tmp_path)
    arrays = load_file(tmp_path / HYBRID)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    save_file(arrays, tmp_path / HYBRID)
    with pytest.raises(ValueError, match="damaged"):
        Hybrid.load(tmp_path)


def test_wants_estimates():
    confidence, score, cost, estimates = draw(50, 7)
    with pytest.raises(ValueError, match="give the predictor's estimates"):
        Hybrid.fit(confidence, score, cost, None)
    with pytest.raises(ValueError, match="give the predictor's estimates"):
        Hybrid.fit(confidence, score, cost, estimates).escalate(confidence, cost, None)
