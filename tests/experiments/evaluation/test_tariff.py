"""Costs by a tariff: linear in tokens, GFLOPs and length; a cascade pays the answers that it rejects."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import TOKENS, Timings, count_flops, count_milliseconds
from experiments.evaluation.policies import CascadeEntry, PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.evaluation.tariff import MeasuredTariff, Tariff, measure_savings
from predictor.cascades.cascade import Cascade
from tests.predictor.synthetic import make_labels


@pytest.fixture(scope="module")
def compared():
    splits = [
        make_labels(40, seed, split=split).outcomes for seed, split in enumerate(("calibration", "test"))
    ]
    estimates = [np.random.default_rng(seed).random(table.score.shape) for seed, table in enumerate(splits)]
    policy = PredictorPolicy("first", estimates[0], estimates[1])
    cascade = CascadeEntry("cascade", Cascade.fit, None).enter({})
    calibration, test = splits
    comparison = compare_policies(
        calibration, test, [policy, cascade], reference=None, bootstrap=Bootstrap(100)
    )
    return comparison, test


def test_cost_of_tokens(compared):
    comparison, test = compared
    tariff = Tariff(name="a", unit="cents", request=3, input_token=2, output_token=5, output_tokens=(1, 30))
    measures = tariff.list_measures([])
    questions = np.array([len(ids) for ids in test.question_ids])[:, None]
    expected = 3 + 2 * (test.visual_tokens + questions)
    np.testing.assert_allclose(measures[0].of(test), expected + 5)
    np.testing.assert_allclose(measures[1].of(test), expected + 150)

    savings = measure_savings(comparison, test, tariff, measures)
    finest = (expected + 150)[:, -1].mean()
    assert savings.finest.value[1] == pytest.approx(finest)
    chosen = comparison.policies[0].default.choice
    cost = (expected + 150)[np.arange(len(test)), chosen].mean()
    assert savings.cost["first"].value[1] == pytest.approx(cost)
    assert savings.saved["first"].value[1] == pytest.approx(1 - cost / finest)
    assert savings.saved["first"].low[1] <= 1 - cost / finest <= savings.saved["first"].high[1]


def test_a_cascade_pays_for_every_answer(compared):
    comparison, test = compared
    tariff = Tariff(name="a", unit="cents", input_token=1, output_token=1, output_tokens=(1, 1001))
    first, cascade = comparison.policies
    # Every second question is tried at all scales.
    stop = np.where(np.arange(len(test)) % 2, len(test.scales) - 1, 0)
    default = replace(cascade.default, path=cascade.default.paths.find(np.zeros_like(stop), stop))
    comparison = replace(comparison, policies=[first, replace(cascade, default=default)])
    savings = measure_savings(comparison, test, tariff, tariff.list_measures([]))
    num_answers = default.paths.tried[default.path].sum(axis=1)
    assert num_answers.max() == len(test.scales)
    added = np.diff(savings.cost["cascade"].value)[0]
    assert added == pytest.approx(1000 * num_answers.mean())


def test_operations_have_the_parts_and_the_overhead_of_flops(compared):
    _, test = compared
    flops = count_flops({"first": 0.5}, vision_readers=["first"])
    (measure,) = Tariff(name="a", unit="J", gflop=4, output_tokens=(1,)).list_measures([flops])
    np.testing.assert_allclose(measure.of(test), 4 * flops.of(test))
    np.testing.assert_allclose(measure.shared_of(test), 4 * flops.shared_of(test))
    assert measure.overhead_of("first") == 2.0


def test_tokens_of_predictors_are_paid(compared):
    """A gate pays for the coarsest input unless it answers from it; self-asking pays at every scale."""
    _, test = compared
    tokens = replace(TOKENS, state_readers=["gate"], overhead={"asks": 7.0})
    flops = count_flops({"gate": 0.5}, state_readers=["gate"])
    tariff = Tariff(name="a", unit="J", request=3, input_token=2, gflop=4, output_tokens=(1,))
    (measure,) = tariff.list_measures([tokens, flops])
    questions = np.array([len(ids) for ids in test.question_ids])
    coarsest = 2 * (test.visual_tokens[:, 0] + questions) + 4 * test.prefill_flops[:, 0] / 1e9
    added = measure.of(test, "gate") - measure.of(test)
    np.testing.assert_allclose(added[:, 0], 0)
    np.testing.assert_allclose(added[:, -1], coarsest)
    assert measure.overhead_of("gate") == 2 and measure.overhead_of("asks") == 14
    (in_tokens,) = Tariff(name="b", unit="J", input_token=2, output_tokens=(1,)).list_measures([tokens])
    np.testing.assert_allclose(
        (in_tokens.of(test, "gate") - in_tokens.of(test))[:, 1], 2 * (test.visual_tokens[:, 0] + questions)
    )


def test_milliseconds_of_long_answers_are_linear_in_the_length(compared):
    """Two images: means over them of the vision pass, the prefill and each further token."""
    _, test = compared
    num_scales = len(test.scales)
    first, further = np.arange(1.0, 1 + num_scales), np.linspace(0.1, 0.2, num_scales)
    timings = Timings(
        vision=np.array([3.0, 5.0]),
        answer=np.full((2, num_scales), np.nan),  # of the answers as they are
        overhead={"first": np.array([0.5, 1.5])},
        first_token=np.stack([first - 0.5, first + 0.5]),
        per_token=np.stack([further, further]),
    )
    measures = MeasuredTariff(output_tokens=(1, 30)).list_measures([count_milliseconds(timings)])
    for measure, number in zip(measures, (1, 30), strict=True):
        np.testing.assert_allclose(measure.of(test)[0], 4 + first + (number - 1) * further)
        assert measure.key == "tariff" and measure.overhead_of("first") == 1
        np.testing.assert_allclose(measure.shared_of(test), 4)
    assert measures[0].label.startswith("milliseconds to the first token at batch size 1")
    assert measures[1].label.startswith("milliseconds to token 30 at")


def test_what_is_refused():
    again = "run `tokenscale latency latency.output_tokens=30` with the same settings"
    with pytest.raises(
        ValueError, match=f"there are no timings of these predictors on this machine: {again}"
    ):
        MeasuredTariff().list_measures([])
    with pytest.raises(ValueError, match=f"the timings have no long answers: {again}"):
        MeasuredTariff().list_measures([count_milliseconds(Timings(np.ones(2), np.ones((2, 3)), {}))])
    with pytest.raises(ValueError, match=r"output_tokens=\[2, 1\]: give increasing numbers"):
        MeasuredTariff(output_tokens=(2, 1))
    with pytest.raises(ValueError, match="tariff a: every scale costs the same"):
        Tariff(name="a", unit="J", output_token=1)
    with pytest.raises(ValueError, match=r"output_tokens=\[30, 1\]: give increasing numbers"):
        Tariff(name="a", unit="J", input_token=1, output_tokens=(30, 1))
    with pytest.raises(ValueError, match="the labels have no FLOPs: run `tokenscale label` again"):
        Tariff(name="a", unit="J", gflop=1).list_measures([])
