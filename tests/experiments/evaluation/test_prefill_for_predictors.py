"""Costs of a predictor that reads the decoder's state: the prefill of the coarsest scale, by hand."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import (
    PREFILL_FOR_PREDICTOR,
    TOKENS,
    VISION_FOR_PREDICTOR,
    Timings,
    count_flops,
    count_milliseconds,
    list_cost_measures,
)
from experiments.evaluation.fronts import Grid
from experiments.evaluation.metrics import default_cost
from experiments.evaluation.policies import CascadePolicy, Policy, PredictorPolicy, ScoredSamples
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.evaluation_tables import tabulate_parts
from predictor.cascades.hybrid import Hybrid
from predictor.classical.controls import ShuffledLabels
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.policy.pricing import OperatingPoint
from tests.experiments.evaluation.test_coinciding import PATHS, cost_paths, of_family
from tests.predictor.synthetic import make_labels

GATE = {"vision_readers": ["gate"], "state_readers": ["gate"]}
TOKENS_OF_GATE = dataclasses.replace(TOKENS, state_readers=["gate"])


@pytest.mark.parametrize(
    ("family", "vision", "sunk"),
    [("pooled", (5, 5, 5), 1), ("thumbnail", (2, 5, 20), 1), ("native", (2, 5, 20), 2 + 1)],
)
def test_the_prefill_is_paid_unless_the_path_starts_there(family, vision, sunk):
    """Prefill is 1, 9 and 36 GFLOPs; a native backbone pays the vision pass of 2 too."""
    table, flops = of_family(family, vision=vision), count_flops({}, **GATE)
    starts_above = [start > 0 for start, _ in PATHS]
    added = np.subtract(cost_paths(table, flops, "gate"), cost_paths(table, flops))
    assert added.tolist() == [sunk * is_above for is_above in starts_above]
    assert cost_paths(table, flops, "another") == cost_paths(table, flops)
    # Visual tokens: 1, 9 and 36, and the 1 of the coarsest scale.
    assert cost_paths(table, TOKENS_OF_GATE, "gate") == [1, 10, 46, 9 + 1, 45 + 1, 36 + 1]
    assert cost_paths(table, TOKENS_OF_GATE) == cost_paths(table, TOKENS) == [1, 10, 46, 9, 45, 36]
    parts = flops.mean_parts(table)
    assert parts[PREFILL_FOR_PREDICTOR].tolist() == [0, 1, 1]
    assert (VISION_FOR_PREDICTOR in parts) == (family == "native")


def test_a_scale_that_coincides_with_the_coarsest_uses_its_prefill():
    table = of_family("native", (9, 9, 36), (4, 4, 20), (9, 9, 36))
    flops = count_flops({}, **GATE)
    added = np.subtract(cost_paths(table, flops, "gate"), cost_paths(table, flops))
    assert added.tolist() == [0, 0, 0, 0, 0, 4 + 9]
    assert cost_paths(table, TOKENS_OF_GATE, "gate") == [9, 9, 45, 9, 45, 36 + 9]


def test_cascades_decide_by_what_a_scale_adds():
    """The prefill for the predictor counts where a path starts, and not at the scales after it."""
    table = of_family("pooled", vision=(5, 5, 5))
    samples = ScoredSamples.of(table, count_flops({}, **GATE), "gate")
    assert samples.cost.tolist() == [[5 + 1, 5 + 9 + 1, 5 + 36 + 1]]
    assert np.asarray(samples.shared).tolist() == [[5 + 1]] and samples.further.tolist() == [[1, 9, 36]]
    tokens = ScoredSamples.of(table, TOKENS_OF_GATE, "gate")
    assert tokens.cost.tolist() == tokens.tokens.tolist() == [[1, 10, 37]]
    assert tokens.further.tolist() == tokens.inputs.further.tolist() == [[1, 9, 36]]
    assert samples.first.tolist() == tokens.first.tolist() == [[1, 9 + 1, 36 + 1]]


@pytest.mark.parametrize(("per_scale", "sunk"), [(False, 0.5), (True, 2 + 0.5)])
def test_milliseconds_of_the_prefill_are_those_that_were_timed(per_scale, sunk):
    vision = np.array([[2.0, 4.0, 6.0]] * 2) if per_scale else np.array([2.0, 2.0])
    timings = Timings(
        vision=vision,
        answer=np.array([[1.0, 2.0, 4.0]] * 2),
        overhead={"gate": np.array([0.25, 0.25]), "blind": np.array([0.25, 0.25])},
        prefill=np.array([0.25, 0.75]),
    )
    named = timings.with_names({"gate": "gate", "hybrid": "gate", "blind": "blind"}, ["gate"], ["gate"])
    means = named.means()
    tried = [np.array([[share]]) for share in (0.25, 0.5, 0.25)]
    expected = means.cost_of_policy(tried, tried[0], "blind").item()
    for policy in ("gate", "hybrid"):
        # Three quarters of the answers are not at the coarsest scale.
        added = means.cost_of_policy(tried, tried[0], policy).item() - expected
        assert added == pytest.approx(0.75 * sunk)
    table = of_family("native" if per_scale else "pooled")
    measure = count_milliseconds(named)
    assert (measure.of(table, "gate") - measure.of(table)).tolist() == [[0, sunk, sunk]]


@pytest.fixture(scope="module")
def parts():
    """Labels of a pooled backbone with states that tell nothing."""
    rng = np.random.default_rng(0)
    labelled = []
    for number, split in enumerate(("train", "calibration", "test")):
        labels = make_labels(20, number, split=split)
        inputs = dataclasses.replace(
            labels.inputs,
            decoder_state=rng.normal(size=(len(labels), 4)).astype(np.float16),
            first_probability=rng.random(len(labels)).astype(np.float32),
        )
        labelled.append(dataclasses.replace(labels, inputs=inputs))
    return labelled


def test_every_cost_measure_knows_which_predictors_read_states(parts):
    train, calibration, test = parts
    reads = partial(NearestNeighbours, features=Features(visual=[], decoder_state=True))
    predictors = {
        "question_only": QuestionOnly().fit(train, calibration),
        "gate": reads().fit(train, calibration),
        "shuffled": ShuffledLabels(predictor=reads, name="shuffled").fit(train, calibration),
    }
    timings = Timings(
        np.ones(3), np.ones((3, 3)), {name: np.ones(3) for name in predictors}, prefill=np.ones(3)
    )
    measures = list_cost_measures(
        test.outcomes, predictors, test.inputs, starts_from={"hybrid": "gate"}, timings=timings
    )
    assert [measure.key for measure in measures] == ["tokens", "flops", "milliseconds"]
    for measure in measures:
        assert set(measure.state_readers) == {"gate", "shuffled", "hybrid"}

    # The price of an answer at the finest scale exceeds every estimate.
    default = OperatingPoint(price=2.0, unit=1.0, cost=1.0, score=0.5)
    on_calibration, on_test = (predictors["gate"].predict(part.inputs) for part in (calibration, test))
    policies: list[Policy] = [
        PredictorPolicy("gate", on_calibration, on_test, default),
        CascadePolicy("hybrid", Hybrid.fit, (on_calibration, on_test)),
    ]
    for measure in measures:
        comparison = compare_policies(
            calibration.outcomes,
            test.outcomes,
            policies,
            measure=measure,
            grid=Grid(5, 8),
            bootstrap=Bootstrap(20),
        )
        assert comparison.find("gate")[default_cost].value > 0
        table = tabulate_parts(comparison, measure.mean_parts(test.outcomes))
        assert "prefill for predictor is the prefill of the coarsest scale" in table.caption
    # At this price every sample is answered at the coarsest scale, whose prefill is that of the gate.
    assert comparison.find("gate")[default_cost].value == pytest.approx(1 + 1 + 1)
