"""Share of the gap to a noise-free oracle, where its value is known."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.metrics import expected_to_mix, mean_gap_share, mean_to_mix, reachable_gap_share
from experiments.evaluation.noise_free import expect_scores
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.resampled import Resampled
from experiments.results.metrics_json import collect_metrics
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes


def make_splits(nll_of_wrong=None):
    """Calibration and test outcomes; with `nll_of_wrong`, a right answer is certain."""
    splits = [make_outcomes(split, 60) for split in ("calibration", "test")]
    if nll_of_wrong is not None:
        splits = [
            replace(table, nll=np.where(table.score == 1, 0.0, nll_of_wrong).astype(np.float32))
            for table in splits
        ]
    return splits


def compare(splits, estimates, **arguments):
    policy = PredictorPolicy("policy", *estimates)
    calibration, test = splits
    return compare_policies(calibration, test, [policy], reference=None, **arguments, bootstrap=Bootstrap(50))


def test_the_oracle_itself_recovers_all_of_its_gap_and_the_mix_nothing():
    splits = make_splits()
    expected = [expect_scores(table.nll, table.reference_tokens) for table in splits]
    (oracle,) = compare(splits, expected).policies
    assert float(oracle[reachable_gap_share, "likelihood"].value) == pytest.approx(1, abs=0.02)
    constant = [np.broadcast_to(expected[0].mean(axis=0), scores.shape) for scores in expected]
    (mix,) = compare(splits, constant).policies
    assert float(mix[expected_to_mix, "likelihood"].value) == pytest.approx(0, abs=1e-3)


def test_without_noise_both_shares_are_the_same():
    """If the likelihood is 1 for right answers and 0 for wrong ones, expected scores are the scores."""
    splits = make_splits(nll_of_wrong=50.0)
    comparison = compare(splits, [estimate_outcomes(table) for table in splits])
    (policy,) = comparison.policies
    for raw, reachable in ((mean_gap_share, reachable_gap_share), (mean_to_mix, expected_to_mix)):
        for part in ("value", "low", "high"):
            expected = float(getattr(policy[raw], part))
            assert float(getattr(policy[reachable, "likelihood"], part)) == pytest.approx(expected, abs=1e-6)
    metrics = collect_metrics(comparison, splits[1], task="t", backbone="b")
    shown = metrics["predictors"]["policy"]
    assert shown["reachable"]["likelihood"]["gap_share"]["value"] == shown["mean_gap_share"]["value"]


def test_sampled_answers_count_only_if_all_samples_have_them():
    splits = make_splits()
    test = splits[1]
    estimates = [estimate_outcomes(table) for table in splits]
    order = np.random.default_rng(0).permutation(len(test))
    # Four runs with the labelled scores: no noise, in any order of the samples.
    runs = Resampled(order, np.repeat(test.score[order][None].astype(np.float64), 4, axis=0))
    (policy,) = compare(splits, estimates, resampled=runs).policies
    assert float(policy[reachable_gap_share, "resampled"].value) == pytest.approx(
        float(policy[mean_gap_share].value), abs=1e-6
    )
    some = Resampled(runs.rows[:40], runs.score[:, :40])
    comparison = compare(splits, estimates, resampled=some)
    assert "resampled" in comparison.noise_free
    assert comparison.policies[0].find(reachable_gap_share, "resampled") is None
