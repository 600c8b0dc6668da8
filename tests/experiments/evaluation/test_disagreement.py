"""Bounds of the disagreement with the finest scale, and the test that they are still supported."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.betting import SequentialTest
from experiments.evaluation.disagreement import add_disagreement, bound_disagreement, score_agreement
from predictor.policy.pricing import PriceList
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes


def test_agreement_is_that_of_the_texts_and_not_of_the_scores():
    table = make_outcomes("calibration", 2, questions_per_image=1)
    answer = [["red ", "blue", "red", "red"], ["a", "A", "a", "b"]]
    agreement = score_agreement(replace(table, answer=answer))
    assert agreement.score.tolist() == [[1, 0, 1, 1], [0, 0, 0, 1]]


def test_no_disagreement_is_bounded_nearly_as_well_as_a_binomial_count():
    """With one question an image, no bound below 1 - delta^(1 / n) can hold (Clopper & Pearson, 1934)."""
    table = make_outcomes("calibration", 250, questions_per_image=1)
    (bound,) = bound_disagreement(np.full((1, 250), 3), table, delta=0.05)
    assert 1 - 0.05 ** (1 / 250) <= bound <= 0.02
    (fewer,) = bound_disagreement(np.full((1, 25), 3), table.select(slice(25)), delta=0.05)
    assert 1 - 0.05 ** (1 / 25) <= fewer <= 0.15
    assert bound_disagreement(np.zeros((1, 0), int), table.select([]), delta=0.05) == 1


def test_bounds_hold_for_the_population_that_calibration_was_drawn_from():
    population = make_outcomes("test", 2000)
    truth = 1 - score_agreement(population).score.mean(axis=0)
    failures = np.zeros(3)
    for seed in range(10):
        table = make_outcomes("calibration", 60, seed=seed)
        choices = np.repeat(np.arange(3)[:, None], len(table), axis=1)
        bounds = bound_disagreement(choices, table, delta=0.1)
        assert (np.diff(bounds) < 0).all() and (bounds < truth[:3] + 0.25).all()
        failures += bounds < truth[:3]
    assert (failures <= 4).all()  # a probability of 0.1 exceeds this with a chance of 0.2%


def test_every_operating_point_gets_the_bound_of_its_choices():
    table = make_outcomes("calibration", 100)
    estimates = estimate_outcomes(table)
    prices = PriceList.from_calibration(estimates, table.visual_tokens, table.score)
    prices = PriceList(prices.default, prices.points, {"guarantee": replace(prices.default, price=0.0)})
    bounded = add_disagreement(prices, estimates, table, delta=0.05)
    bounds = [point.disagreement for point in bounded.points]
    assert all(0 < bound <= 1 for bound in bounds if bound is not None) and None not in bounds
    assert bounded.named["guarantee"].disagreement == bounds[0]  # both of price 0
    assert bounds[-1] == bound_disagreement(np.zeros((1, len(table)), int), table, delta=0.05)[0]
    # Another price has no bound: its scales may disagree where those of both neighbours agree.
    low, high = bounded.points[3:5]
    between = bounded.find(price=(low.price + high.price) / 2)
    assert between.disagreement is None and between.cost == low.cost
    assert bounded.find(price=round(high.price, 6)) == high
    assert bounded.find(price=2 * bounded.points[-1].price).disagreement is None
    assert replace(bounded.default, disagreement=None) == prices.default


def test_bounds_survive_saving_and_are_left_out_if_there_are_none(tmp_path):
    table = make_outcomes("calibration", 50)
    prices = PriceList.from_calibration(estimate_outcomes(table), table.visual_tokens, table.score)
    prices.save(tmp_path)
    assert "disagreement" not in (tmp_path / "prices.json").read_text()
    assert PriceList.load(tmp_path) == prices
    bounded = add_disagreement(prices, estimate_outcomes(table), table, delta=0.05)
    bounded.save(tmp_path)
    assert PriceList.load(tmp_path) == bounded
    text = (tmp_path / "prices.json").read_text()
    (tmp_path / "prices.json").write_text(text.replace('"disagreement": ', '"disagreement": 3', 1))
    with pytest.raises(ValueError, match="the disagreement of default is not above 0 and at most 1"):
        PriceList.load(tmp_path)


def test_the_first_steps_of_the_sequential_test():
    """Six equal parts bet shares 0, 1/32, ..., 1/2; moving capital between equal parts changes nothing."""
    test = SequentialTest(0.05)
    test.update(1.0, 0.5)
    assert test.capital == pytest.approx(1 + (31 / 32) / 6)
    other = SequentialTest(0.05)
    other.update(0.0, 0.2)
    assert other.capital == pytest.approx(1 - (31 / 32) / 6)
    for _ in range(7):
        test.update(1.0, 0.1)
    assert test.is_rejected and test.capital >= 20 and test.num_values == 8


def run(rate, bound, num_values, seed):
    test, rng = SequentialTest(0.05), np.random.default_rng(seed)
    for value in rng.random(num_values) < rate:
        test.update(float(value), bound)
    return test


def test_bounds_that_hold_are_hardly_ever_rejected_and_others_soon_are():
    rejected = [run(0.1, 0.1, 400, seed).is_rejected for seed in range(100)]
    assert sum(rejected) <= 12  # a probability of 0.05 exceeds this with a chance of 0.1%
    assert sum(run(0.25, 0.1, 300, seed).is_rejected for seed in range(20)) >= 18


def test_a_change_is_found_after_a_long_time_without_one():
    test, rng = SequentialTest(0.05), np.random.default_rng(0)
    for value in rng.random(10_000) < 0.05:
        test.update(float(value), 0.1)
    assert not test.is_rejected
    found = [test.update(float(value), 0.1) for value in rng.random(200) < 0.3]
    assert found[-1]
