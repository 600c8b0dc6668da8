"""Objectives: values worked out by hand, recorded losses, choices that estimates reproduce."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from predictor.batches import Target
from predictor.objectives import (
    Correctness,
    ExpectedUtility,
    LikelihoodDistillation,
    LikelihoodRanking,
    MinimumScaleClasses,
    MinimumScaleOrdinal,
    SmallestSufficientScale,
)
from predictor.objectives.likelihood import rank_by_likelihood
from predictor.objectives.minimum_scale import weigh_smallest
from predictor.objectives.utility import build_estimates
from predictor.policy.front import choose
from tests.paths import FIXTURES

FIXTURE = FIXTURES / "avg_router.safetensors"


def target(score=None, nll=None):
    score = torch.tensor(score if score is not None else np.zeros_like(nll), dtype=torch.float32)
    nll = torch.tensor(nll if nll is not None else np.zeros_like(score), dtype=torch.float32)
    return Target(score, nll)


def test_correctness_is_the_entropy_at_even_chances():
    assert Correctness(2)(torch.zeros(1, 2), target([[1.0, 0.3]])).item() == pytest.approx(math.log(2))
    # -(0.25 log 0.8 + 0.75 log 0.2) for a score of a quarter and a logit of log 4.
    loss = Correctness(1)(torch.full((1, 1), math.log(4)), target([[0.25]]))
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.8) + 0.75 * math.log(0.2)))


def test_scores_share_out_the_smallest_scale():
    weights = weigh_smallest(torch.tensor([[0, 1 / 3, 1.0], [1, 0, 0], [0, 0, 0], [0.3, 0.9, 0.6]]))
    expected = np.array([[0, 1 / 3, 2 / 3, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0.3, 0.6, 0, 0.1]])
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_minimum_scale_as_classes():
    objective = MinimumScaleClasses(2)
    outputs = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    np.testing.assert_allclose(objective.estimate(outputs), [[0.5, 0.8]], atol=1e-6)
    assert objective(outputs, target([[0.0, 1.0]])).item() == pytest.approx(-math.log(0.3))
    expected = -(0.4 * math.log(0.5) + 0.6 * math.log(0.2))
    assert objective(outputs, target([[0.4, 0.4]])).item() == pytest.approx(expected)


def test_minimum_scale_as_an_order():
    """Thresholds 1 and 0.5: the chance that scale k does not suffice is sigmoid(output + threshold)."""
    objective = MinimumScaleOrdinal(2)
    assert objective.thresholds.tolist() == [1, 0.5]

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    outputs = torch.tensor([[0.2]])
    exceeds = [sigmoid(1.2), sigmoid(0.7)]
    np.testing.assert_allclose(objective.estimate(outputs).detach(), [[1 - x for x in exceeds]], atol=1e-6)
    # A score of 0 at the first scale and 0.25 at the second: exceeded for certain, and with 0.75.
    expected = -math.log(exceeds[0]) - 0.75 * math.log(exceeds[1]) - 0.25 * math.log(1 - exceeds[1])
    assert objective(outputs, target([[0.0, 0.25]])).item() == pytest.approx(expected, rel=1e-5)


def test_smallest_sufficient_scale_takes_no_further_gain():
    objective = SmallestSufficientScale(3)
    scores = torch.tensor(
        [[0.6, 0.7, 0.7], [0.6, 0.7, 0.8], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.4, 0.5, 0.5]]
    )
    assert objective.find_target(scores).tolist() == [0, 1, 2, 0, 1]
    # Chances 0.2, 0.5, 0.3: the expected position is 1.1, so scale 1 has 0.9 and scale 2 is the first with 1.
    outputs = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    np.testing.assert_allclose(objective.estimate(outputs), [[0, 0.9, 1]], atol=1e-6)
    # Sides 1, 3 and 6: the expected side is 3.5, a sixth of the way from 3 to 6.
    by_side = SmallestSufficientScale(3, resolution="side")
    tokens = torch.tensor([[1.0, 9.0, 36.0]])
    np.testing.assert_allclose(by_side.estimate_by_side(outputs, tokens), [[0, 5 / 6, 1]], atol=1e-6)
    # The second scale coincides with the first: the expected side is 1 + 0.3 * 5, three tenths of the step.
    tokens = torch.tensor([[1.0, 1.0, 36.0]])
    np.testing.assert_allclose(by_side.estimate_by_side(outputs, tokens), [[0.7, 1, 1]], atol=1e-6)


def test_inconsistent_samples_are_left_out_of_the_loss():
    outputs = torch.tensor([[0.0, 2.0, -1.0], [1.0, 1.0, 1.0]])
    consistent, inconsistent = [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]
    objective = Correctness(3, consistent_only=True)
    alone = Correctness(3)(outputs[:1], target([consistent]))
    assert objective(outputs, target([consistent, inconsistent])).item() == pytest.approx(alone.item())
    assert objective(outputs[1:], target([inconsistent])).item() == 0


def test_likelihood_ranking_is_avg_llavas():
    recorded = load_file(FIXTURE)
    logits, nll = recorded["rglf.logits"], recorded["rglf.nll"]
    found = rank_by_likelihood(logits, nll, margin=1.0)
    torch.testing.assert_close(found[None], recorded["rglf.rank_loss_margin1"])
    whole = LikelihoodRanking(5, margin=1.0)(logits, Target(torch.zeros_like(nll), nll))
    expected = recorded["rglf.rank_loss_margin1"] + 0.1 * recorded["rglf.cross_entropy"]
    torch.testing.assert_close(whole[None], expected)


def test_likelihood_ranking_by_hand():
    """NLL 2 and 1, log-probabilities log 0.75 and log 0.25: the second should lead by 0.1 and trails."""
    outputs = torch.log(torch.tensor([[0.75, 0.25]]))
    expected = math.log(3) + 0.1 * 1 + 0.1 * math.log(4)
    assert LikelihoodRanking(2)(outputs, target(nll=[[2.0, 1.0]])).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_is_least_at_the_likelihood():
    objective, nll = LikelihoodDistillation(1), math.log(2)
    at_target = objective(torch.zeros(1, 1), target(nll=[[nll]])).item()
    assert at_target == pytest.approx(math.log(2))
    assert all(objective(torch.full((1, 1), x), target(nll=[[nll]])).item() > at_target for x in (-0.3, 0.3))


def test_expected_utility_by_hand():
    """Chances 0.25 and 0.75 of utilities 1 - 0.1 and 0.5 - 0.2."""
    outputs = torch.log(torch.tensor([[0.25, 0.75]]))
    utility = torch.tensor([[0.9, 0.3]])
    expected = 0.25 * 0.9 + 0.75 * 0.3
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    for temperature in (0.0, 0.1):
        loss = ExpectedUtility(2, temperature=temperature).expect(outputs, utility)
        assert loss.item() == pytest.approx(-(expected + temperature * entropy))


COST = torch.tensor([1.0, 9, 36, 144]) / 144


def test_estimates_reproduce_explicable_choices_at_every_price():
    """Choices made from estimates in [0, 1] come back from the estimates that are built from them."""
    rng = np.random.default_rng(0)
    prices = torch.logspace(-2, 1, 24)
    scores = rng.random((300, 4))
    # Only steps that lie a grid point away from impossible ones: calibrator_half the differences.
    scores = 0.5 * scores
    cost = COST.expand(300, 4)
    choices = np.stack([choose(scores, cost, float(price), unit=1) for price in prices], axis=1)
    estimates = build_estimates(torch.from_numpy(choices), cost, prices)
    assert estimates.min() >= 0 and estimates.max() <= 1
    for column, price in enumerate(prices):
        found = choose(estimates, cost, float(price), unit=1)
        np.testing.assert_array_equal(found, choices[:, column])


def test_inexplicable_choices_become_ones_that_fall():
    """Random choices: what the estimates choose falls as the price rises, never above what was asked for."""
    rng = np.random.default_rng(1)
    prices = torch.logspace(-2, 1, 24)
    choices = torch.from_numpy(rng.integers(0, 4, (300, 24)))
    choices[:100] = torch.sort(choices[:100], dim=1, descending=True).values
    choices[0] = 3  # the finest at any price: ten times more than a score can be worth
    cost = COST.expand(300, 4)
    estimates = build_estimates(choices, cost, prices)
    assert estimates.min() >= 0 and estimates.max() <= 1
    found = np.stack([choose(estimates, cost, float(price), unit=1) for price in prices], axis=1)
    assert (np.diff(found, axis=1) <= 0).all()
    assert (found <= np.minimum.accumulate(choices.numpy(), axis=1)).all()
    np.testing.assert_array_equal(found[:, 0], choices[:, 0])
    # While one answer at the finest scale costs less than a score of 1, and no more, it can be bought.
    affordable = prices.numpy() * (1 - 1 / 144) * 1.4 < 1
    assert (found[0][affordable] == 3).all() and found[0, -1] < 3
