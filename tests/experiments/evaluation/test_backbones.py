"""Backbones at equal cost: numbers that can be worked out by hand."""

import dataclasses

import numpy as np
import pytest

from experiments.evaluation.backbones import BackboneSamples, NoiseFree, compare_backbones
from experiments.evaluation.costs import TOKENS, count_flops
from experiments.evaluation.fronts import Grid
from experiments.evaluation.metric_table import Bound, Predictor
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from tests.predictor.synthetic import make_labels

SETTINGS = Grid(9), Bootstrap(40)


def make_backbone(name, score, tokens=(1, 2, 4), vision=0, num_images=12, has_policy=True):
    """A backbone with the scores `[num_scales]` of each second sample; samples differ in image."""
    splits = []
    for split in ("calibration", "test"):
        table = make_labels(num_images, 0, questions_per_image=1, split=split).outcomes
        columns = np.tile(np.asarray(score, dtype=np.float32), (num_images // len(score), 1))
        # A reference is answered with the probability of the score: expected scores equal scores.
        nll = np.where(columns > 0, 0.0, 100.0).astype(np.float32)
        splits.append(
            dataclasses.replace(
                table,
                image_id=np.array([f"{split}-{row}" for row in range(num_images)], dtype=object),
                score=columns,
                nll=nll,
                visual_tokens=np.tile(np.int32(tokens), (num_images, 1)),
                prefill_flops=np.tile(np.int64(1e9) * np.int64(tokens), (num_images, 1)),
                vision_flops=np.full((num_images, 3), vision, dtype=np.int64) * np.int64(1e9),
            )
        )
    calibration, test = splits
    policy = PredictorPolicy("blind", calibration.score * 0 + 0.5, test.score * 0 + 0.5)
    policies = [policy] if has_policy else []
    return BackboneSamples(name, calibration, test, policies, [TOKENS, count_flops({})])


def average_line(budgets, score):
    """Mean over log-spaced budgets by the trapezoid rule."""
    values = np.interp(budgets, *score)
    return float(((values[1:] + values[:-1]) / 2).mean())


def test_mixes_and_oracles_at_equal_tokens():
    """One question in two needs the finest scale; the other backbone answers that one at its second scale."""
    first = make_backbone("first", [[1, 1, 1], [0, 0, 1]])
    second = make_backbone("second", [[1, 1, 1], [0, 1, 1]])
    comparison = compare_backbones([first, second], *SETTINGS)
    tokens = comparison.measures[0]
    budgets = np.geomspace(1, 4, 9)
    np.testing.assert_allclose(tokens.budgets, budgets)
    one, two = tokens.backbones
    mixes = [([1, 4], [0.5, 1]), ([1, 2, 4], [0.5, 1, 1])]
    oracles = [([1, 2.5, 4], [0.5, 1, 1]), ([1, 1.5, 4], [0.5, 1, 1])]
    for fronts, mix, oracle in zip((one, two), mixes, oracles, strict=True):
        assert fronts.means[Bound.MIX].value == pytest.approx(average_line(budgets, mix))
        assert fronts.means[Bound.BUDGETED].value == pytest.approx(average_line(budgets, oracle))
        likelihood = fronts.means[NoiseFree("likelihood")].value
        assert likelihood == pytest.approx(average_line(budgets, oracle), abs=1e-6)
    differences = {test.chooser: test for test in tokens.differences}
    assert list(differences) == [Bound.MIX, Predictor("blind"), Bound.BUDGETED, NoiseFree("likelihood")]
    mean = differences[Bound.MIX].mean
    assert mean.value == pytest.approx(two.means[Bound.MIX].value - one.means[Bound.MIX].value)
    assert mean.low <= mean.value <= mean.high
    # The second backbone has all that the first one has: choosing among both adds nothing.
    assert {joint.chooser: float(joint.gain.value) for joint in tokens.joint} == pytest.approx(
        {Bound.BUDGETED: 0, NoiseFree("likelihood"): 0}, abs=1e-6
    )
    shares = {name: float(share.value) for name, share in comparison.answered.items()}
    assert shares == {"all": 1, "none": 0, "only first": 0, "only second": 0}


def test_a_joint_oracle_takes_from_each_backbone_what_the_other_lacks():
    first = make_backbone("first", [[1, 1, 1], [0, 0, 0]])
    second = make_backbone("second", [[0, 0, 0], [1, 1, 1]])
    comparison = compare_backbones([first, second], *SETTINGS)
    shares = {name: float(share.value) for name, share in comparison.answered.items()}
    assert shares == {"all": 0, "none": 0, "only first": 0.5, "only second": 0.5}
    for matched in comparison.measures:
        assert [float(joint.mean.value) for joint in matched.joint] == pytest.approx([1, 1])
        assert [float(joint.gain.value) for joint in matched.joint] == pytest.approx([0.5, 0.5])


def test_equal_backbones_do_not_differ():
    score = [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    comparison = compare_backbones([make_backbone(name, score) for name in ("a", "b", "c")], *SETTINGS)
    for matched in comparison.measures:
        assert len(matched.differences) == 2 * 4
        for test in matched.differences:
            assert test.mean.value == test.mean.low == test.mean.high == 0
            assert test.adjusted == 1


def test_budgets_are_those_that_every_backbone_can_meet():
    """GFLOPs of the first run from 1 to 4, of the second from 3 to 6; of the third they do not overlap."""
    score = [[1, 1, 1], [0, 1, 1]]
    first, second, third = (
        make_backbone(name, score, vision=vision) for name, vision in (("a", 0), ("b", 2), ("c", 9))
    )
    flops = compare_backbones([first, second], *SETTINGS).measures[1]
    assert flops.unit == "GFLOPs"
    assert flops.budgets[[0, -1]].tolist() == pytest.approx([3, 4])
    comparison = compare_backbones([first, third], *SETTINGS)
    assert [matched.unit for matched in comparison.measures] == ["tokens"]
    assert comparison.skipped == ["GFLOPs: the costs of the backbones do not overlap"]


def test_fixed_scales_of_equal_cost_are_compared_without_predictors():
    """At 2 tokens the better backbone answers the other half too; a scale of 3 tokens has no counterpart."""
    first = make_backbone("a", [[1, 1, 1], [0, 0, 1]], has_policy=False)
    second = make_backbone("b", [[1, 1, 1], [0, 1, 1]], tokens=(2, 3, 4), has_policy=False)
    tokens = compare_backbones([first, second], *SETTINGS).measures[0]
    assert [(test.cost, test.first, test.second) for test in tokens.fixed] == [(2, "a", "b"), (4, "a", "b")]
    assert [float(test.score.value) for test in tokens.fixed] == [0.5, 1]
    assert [float(test.difference.value) for test in tokens.fixed] == [0, 0]
    better = make_backbone("b", [[1, 1, 1], [0, 1, 1]], has_policy=False)
    tokens = compare_backbones([first, better], *SETTINGS).measures[0]
    assert [float(test.difference.value) for test in tokens.fixed] == [0, 0.5, 0]
    half = tokens.fixed[1]
    # Half of the questions: at least one of twelve images of each kind is in every resample of this seed.
    assert 0 < half.difference.low < 0.5 < half.difference.high < 1
    assert half.p_value < half.adjusted < 0.2 and tokens.fixed[0].adjusted == 1
    assert [test.chooser for test in tokens.differences] == [
        Bound.MIX, Bound.BUDGETED, NoiseFree("likelihood")
    ]  # fmt: skip


def test_samples_and_names_must_fit():
    score = [[1, 1, 1], [0, 1, 1]]
    first = make_backbone("a", score)
    with pytest.raises(ValueError, match="give two or more different backbones, got a, a"):
        compare_backbones([first, first], *SETTINGS)
    with pytest.raises(ValueError, match="a and b answered different test samples"):
        compare_backbones([first, make_backbone("b", score, num_images=10)], *SETTINGS)
