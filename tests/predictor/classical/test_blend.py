"""A blend is the weighted mean of its parts, each fitted as it would be alone."""

import functools
from typing import Any

import numpy as np

from predictor.base import ScalePredictor
from predictor.classical.baselines import FixedScale, Mix
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.policy.front import policy_value
from tests.predictor.synthetic import make_labels

TRAIN, VALIDATION, TEST = (
    make_labels(150, seed=0),
    make_labels(50, seed=1),
    make_labels(100, seed=2, split="test"),
)


def test_estimates_are_the_weighted_mean_with_the_share_that_validation_prefers():
    blend = Blend(first=QuestionOnly, second=Mix, shares=(0.25, 1.0)).fit(TRAIN, VALIDATION)
    question, mix = QuestionOnly().fit(TRAIN, VALIDATION), Mix().fit(TRAIN, VALIDATION)
    mixed = {
        share: share * question.predict(VALIDATION.inputs) + (1 - share) * mix.predict(VALIDATION.inputs)
        for share in (0.25, 1.0)
    }
    cost, score = VALIDATION.inputs.visual_tokens, VALIDATION.outcomes.score
    best = max(mixed, key=lambda share: policy_value(mixed[share], cost, score))
    expected = best * question.predict(TEST.inputs) + (1 - best) * mix.predict(TEST.inputs)
    assert np.array_equal(blend.predict(TEST.inputs), expected)
    assert blend.num_parameters == question.num_parameters + mix.num_parameters + 1
    # A part that tells nothing gets the least share on offer.
    fixed = functools.partial(FixedScale, scale=1)
    assert Blend(first=fixed, second=QuestionOnly, shares=(0.0, 0.9)).fit(TRAIN, VALIDATION)._share == 0.0


def test_saved_and_loaded_with_features_of_both_parts(tmp_path):
    trees = functools.partial(
        GradientBoosting, features=Features(visual=1, statistics=["tower"]), max_trees=5, name="trees"
    )
    blend = Blend(first=QuestionOnly, second=trees, shares=(0.5,)).fit(TRAIN, VALIDATION)
    assert blend.features == Features(visual=1, statistics=["tower"])
    # The question-only part reads no features: two operations per scale and term of a question.
    question, boosting = blend._parts.values()
    assert blend.count_flops(TEST.inputs) == question.count_flops(TEST.inputs) + boosting.count_flops(
        TEST.inputs
    )
    blend.save(tmp_path)
    loaded = ScalePredictor.load(tmp_path)
    assert isinstance(loaded, Blend)
    assert np.array_equal(loaded.predict(TEST.inputs), blend.predict(TEST.inputs))
    assert loaded.count_flops(TEST.inputs) == blend.count_flops(TEST.inputs)


class Reading(Mix):
    """Tells nothing, and reads what it is given; one operation of its own."""

    def __init__(self, *, features, name="reading"):
        super().__init__(name=name)
        self.features = features

    def count_own_flops(self, inputs):
        return 1.0


def reading(**features: Any) -> functools.partial[Reading]:
    return functools.partial(Reading, features=Features(**features))


def test_features_that_both_parts_read_are_counted_once():
    blend = Blend(first=reading(visual=9), second=reading(visual=[1, 9]), shares=(0.5,)).fit(
        TRAIN, VALIDATION
    )
    assert blend.features == Features(visual=[1, 9])
    # Two scales pooled from 36 tokens of 24 numbers, and one operation of either part.
    assert blend.count_flops(TEST.inputs) == 2 * 36 * 24 + 2


def test_a_part_without_a_share_is_neither_computed_nor_counted(tmp_path, monkeypatch):
    blend = Blend(first=QuestionOnly, second=reading(visual=9)).fit(TRAIN, VALIDATION)
    blend._set_share(1.0)
    alone = QuestionOnly().fit(TRAIN, VALIDATION)
    monkeypatch.setattr(Reading, "predict", None)
    assert np.array_equal(blend.predict(TEST.inputs), alone.predict(TEST.inputs))
    assert blend.features == Features() and blend.count_flops(TEST.inputs) == alone.count_flops(TEST.inputs)


def test_a_blend_falls_back_on_the_better_part(tmp_path):
    fixed = functools.partial(FixedScale, scale=1)
    first = Blend(first=fixed, second=QuestionOnly).fit(TRAIN, VALIDATION)
    assert first._share == 0.0
    first.save(tmp_path)
    loaded = ScalePredictor.load(tmp_path)
    assert loaded.features == first.features == Features()
    assert np.array_equal(loaded.predict(TEST.inputs), first.predict(TEST.inputs))
    assert Blend(first=QuestionOnly, second=fixed).fit(TRAIN, VALIDATION)._share == 1.0
