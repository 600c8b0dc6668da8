"""Prices against hand-worked numbers, on the table of `test_policy`: points (4, 1), (2.5, 1), (1, 0.5)."""

from dataclasses import replace

import pytest

from predictor.policy.pricing import PriceList, choose_price
from tests.predictor.policy.test_front import COST, ESTIMATES, SCORE


def test_price_for_a_budget_is_the_lowest_within_it():
    assert choose_price(ESTIMATES, COST, SCORE, 4).price == 0
    point = choose_price(ESTIMATES, COST, SCORE, 3.9)
    assert point.price == pytest.approx(0.8 / 3)
    assert (point.unit, point.cost, point.score) == (4, 2.5, 1)
    assert choose_price(ESTIMATES, COST, SCORE, 1).cost == 1
    with pytest.raises(ValueError, match=r"within 0\.9: it is at least 1\.0"):
        choose_price(ESTIMATES, COST, SCORE, 0.9)


def test_default_price_is_the_highest_that_scores_as_the_best_fixed_scale():
    assert choose_price(ESTIMATES, COST, SCORE).cost == 2.5
    # Estimates that mislead: no price reaches the finest scale's 1.0, so the best there is.
    misled = ESTIMATES[:, ::-1]
    assert choose_price(misled, COST, SCORE).score == 0.5


def test_a_tolerance_lets_the_default_price_rise():
    assert choose_price(ESTIMATES, COST, SCORE, tolerance=0.49).cost == 2.5
    assert choose_price(ESTIMATES, COST, SCORE, tolerance=0.5).cost == 1
    assert PriceList.from_calibration(ESTIMATES, COST, SCORE, tolerance=0.5).default.cost == 1
    with pytest.raises(ValueError, match="a tolerance is at least 0"):
        choose_price(ESTIMATES, COST, SCORE, tolerance=-0.1)


def test_price_list_by_budget_and_by_price(tmp_path):
    prices = PriceList.from_calibration(ESTIMATES, COST, SCORE)
    assert [(point.cost, point.score) for point in prices.points] == [(4, 1), (2.5, 1), (1, 0.5)]
    assert prices.at_budget(3).cost == 2.5
    assert prices.at_budget(100).cost == 4
    assert (prices.at_price(0.5).price, prices.at_price(0.5).cost) == (0.5, 2.5)
    assert prices.at_price(7).cost == 1
    with pytest.raises(ValueError, match=r"within 0\.5: it is at least 1\.0"):
        prices.at_budget(0.5)
    with pytest.raises(ValueError, match="at least 0"):
        prices.at_price(-1)
    bounds = dict(zip((4, 2.5, 1), (0.0, 0.3, 0.1), strict=True))
    points = tuple(replace(point, disagreement=bounds[point.cost]) for point in prices.points)
    bounded = replace(prices, points=points)
    at = [points[1].price, (points[1].price + points[2].price) / 2, points[2].price, points[2].price + 1]
    assert [bounded.at_price(price).disagreement for price in at] == [0.3, None, 0.1, None]
    prices.save(tmp_path)
    assert PriceList.load(tmp_path) == prices
    with pytest.raises(FileNotFoundError, match=r"tokenscale train"):
        PriceList.load(tmp_path / "elsewhere")
