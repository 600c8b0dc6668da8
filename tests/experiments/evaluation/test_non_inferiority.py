"""The cheapest operating point that is as good as a fixed scale, worked out the slow way."""

import itertools

import numpy as np
import pytest

from experiments.bench.evaluation import measure
from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.metrics import front_saving, reached_cost, reached_difference, reached_saving
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from predictor.policy.front import choose
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes


def test_least_cost_on_calibration_and_what_it_does_on_test():
    calibration, test = make_outcomes("calibration", 120), make_outcomes("test", 150)
    contender = PredictorPolicy("informed", estimate_outcomes(calibration), estimate_outcomes(test))
    comparison = compare_policies(calibration, test, [contender], bootstrap=Bootstrap(200))
    found = comparison.find("informed")
    policy, rows = found.policy, np.arange(len(test))
    assert len(found.verdicts) == 6
    for verdict in found.verdicts:
        margin = verdict.baseline[1]
        reached, saving, difference = (
            found.find(metric, verdict.baseline)
            for metric in (reached_cost, reached_saving, reached_difference)
        )
        target = calibration.score[:, verdict.column].mean(dtype=float) - margin
        # Least cost of all mixes of two operating points whose score on calibration is the target or more.
        mixes = [(cost, (k, k), 1.0) for k, cost in enumerate(policy.cost) if policy.score[k] >= target]
        for low, high in itertools.combinations(range(len(policy.cost)), 2):
            if policy.score[low] < target <= policy.score[high]:
                share = (target - policy.score[low]) / (policy.score[high] - policy.score[low])
                cost = policy.cost[low] + share * (policy.cost[high] - policy.cost[low])
                mixes.append((cost, (low, high), share))
        if not mixes:
            assert reached is None and verdict.is_shown is None and verdict.prices == ()
            continue
        _, (low, high), share = min(mixes)
        points = []
        for k in (low, high):
            chosen = choose(contender.test, test.visual_tokens, policy.price[k], unit=policy.unit)
            points.append(
                (test.visual_tokens[rows, chosen].mean(), test.score[rows, chosen].mean(dtype=float))
            )
        cost, score = (1 - share) * np.array(points[0]) + share * np.array(points[1])
        fixed_cost, fixed_score = (
            each.value[verdict.column] for each in (comparison.fixed_cost, comparison.fixed_score)
        )
        assert reached is not None and saving is not None and difference is not None
        assert reached.value == pytest.approx(cost, abs=1e-9)
        assert saving.value == pytest.approx(fixed_cost / cost, abs=1e-9)
        assert difference.value == pytest.approx(score - fixed_score, abs=1e-9)
        assert verdict.is_shown == (difference.low >= -margin)


def test_what_costs_no_less_is_not_inferior_to_itself():
    """Estimates that always say the finest scale: the same score, no saving, and that is shown."""
    calibration, test = make_outcomes("calibration", 30), make_outcomes("test", 30)
    finest = [np.tile([0.0, 0.0, 0.0, 1.0], (len(table), 1)) for table in (calibration, test)]
    found = compare_policies(
        calibration, test, [PredictorPolicy("finest", finest[0], finest[1])], bootstrap=Bootstrap(20)
    )
    finest_policy = found.find("finest")
    verdict = finest_policy.verdicts[0]
    assert verdict.baseline == ("finest", 0.0) and verdict.is_shown
    assert finest_policy[reached_saving, verdict.baseline].value == pytest.approx(1)
    assert finest_policy[reached_difference, verdict.baseline].value == pytest.approx(0)
    assert finest_policy[front_saving, verdict.baseline].value == pytest.approx(1)


def test_benchmark_runs():
    sizes = {"num_images": 40, "questions_per_image": 3, "num_scales": 3, "num_prices": 20}
    found = measure(**sizes, num_resamples=5, num_budgets=7, seed=0)
    assert found["num_samples"] == 120 and found["num_metrics"] > 100
    assert all(points <= 20 for points in found["num_points"].values())
