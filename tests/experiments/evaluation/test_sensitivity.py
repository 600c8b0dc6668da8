"""The sensitive split: other answers decide about the groups, and each group has results of its own."""

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.sensitive_groups import (
    Deciding,
    Membership,
    find_downsampled,
    find_groups,
    find_membership,
)
from experiments.evaluation.sensitivity import divide_by_sensitivity
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.resampled import Resampled
from tests.predictor.synthetic import make_labels


@pytest.fixture(scope="module")
def labels():
    return make_labels(40, 0, split="calibration").outcomes, make_labels(40, 1, split="test").outcomes


def read_none(backbone):
    raise AssertionError(f"labels of {backbone} are not needed")


def test_groups_follow_from_the_answers_that_decide():
    finest, downsampled = [1.0, 1.0, 0.0, 0.5, 0.25], [0.0, 1.0, 1.0, 0.25, 0.0]
    assert find_groups(finest, downsampled).tolist() == [0, 1, 2, 0, 2]


def test_downsampled_has_at_most_a_quarter_of_the_tokens():
    assert find_downsampled([[1, 9, 36, 144]]) == 2
    assert find_downsampled([[1, 9, 37, 144]]) == 1
    assert find_downsampled([[70, 140]]) == 0
    # The mean over the images counts.
    assert find_downsampled([[1, 20, 100], [1, 20, 20]]) == 0
    assert find_downsampled([[1, 10, 100], [1, 20, 20]]) == 1


def test_sampled_answers_decide_for_the_questions_that_have_them(labels):
    _, test = labels
    rows = np.array([7, 2, 5])
    # Right in 3 of 4 runs at the finest scale, 1 of 4 at the second: the first two; the last is never right.
    score = np.zeros((4, 3, len(test.scales)))
    score[:3, :2, -1], score[:1, 0, 1], score[:3, 1, 1] = 1, 1, 1
    membership = find_membership(test, Resampled(rows, score), Deciding(scale=test.scales[1]), read_none)
    assert membership is not None
    assert membership.rows.tolist() == [2, 5, 7]
    assert membership.group.tolist() == [1, 2, 0]
    assert membership.finest == f"4 sampled answers at scale {test.scales[-1]}"
    assert membership.rows_of("sensitive").tolist() == [7]


def test_without_sampled_answers_there_are_no_groups(labels):
    assert find_membership(labels[1], None, Deciding(), read_none) is None
    with pytest.raises(ValueError, match="run `tokenscale resample`, or name a backbone"):
        find_membership(labels[1], None, Deciding(only="sensitive"), read_none)


def test_another_backbone_decides_but_not_with_the_scored_answers(labels):
    _, test = labels
    order = np.arange(len(test))[::-1]
    other = test.select(order[5:])
    deciding = Deciding("other", "other", scale=test.scales[0])
    with pytest.raises(ValueError, match=r"sensitive.finest=other: .*so the answers that are scored would"):
        find_membership(test, None, deciding, lambda name: other)
    other.score[:] = np.roll(other.score, 1, axis=0)
    membership = find_membership(test, None, deciding, lambda name: other)
    assert membership is not None
    assert membership.rows.tolist() == list(range(len(test) - 5))
    by_id = dict(zip(other.sample_id, other.score, strict=True))
    expected = find_groups(*np.array([by_id[sample][[-1, 0]] for sample in test.sample_id[:-5]]).T)
    assert membership.group.tolist() == expected.tolist()


def test_finest_scale_is_no_downsampled_answer(labels):
    _, test = labels
    sampled = Resampled(np.arange(4), np.zeros((2, 4, len(test.scales))))
    with pytest.raises(ValueError, match=r"sensitive.scale=36: give one of 1, 9, the scales"):
        find_membership(test, sampled, Deciding(scale=36), read_none)


def test_results_of_each_group(labels):
    calibration, test = labels
    estimates = [np.random.default_rng(seed).random(table.score.shape) for seed, table in enumerate(labels)]
    policy = PredictorPolicy("first", estimates[0], estimates[1])
    comparison = compare_policies(calibration, test, [policy], reference=None, bootstrap=Bootstrap(200))
    rows = np.arange(3, len(test))
    group = np.random.default_rng(2).integers(0, 2, len(rows))
    split = divide_by_sensitivity(comparison, test, Membership(rows, group, "a", "b"))
    assert split.num_samples.tolist() == [(group == 0).sum(), (group == 1).sum(), 0]
    np.testing.assert_allclose(split.share.value, split.num_samples / len(rows))
    default = comparison.policies[0].default
    for number in (0, 1):
        members = rows[group == number]
        chosen = default.choice[members]
        np.testing.assert_allclose(split.fixed_score.value[number], test.score[members].mean(axis=0))
        np.testing.assert_allclose(split.fixed_cost.value[number], test.cost[members].mean(axis=0))
        score, cost = (values[members, chosen].mean() for values in (test.score, test.cost))
        assert split.score["first"].value[number] == pytest.approx(score)
        assert split.cost["first"].value[number] == pytest.approx(cost)
        difference = score - test.score[members, -1].mean()
        assert split.to_finest["first"].value[number] == pytest.approx(difference)
        assert split.to_finest["first"].low[number] <= difference <= split.to_finest["first"].high[number]
    # No question of the third group: nothing to say.
    assert np.isnan(split.score["first"].value[2]) and split.share.value[2] == 0
