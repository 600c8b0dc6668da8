"""The contract that all predictors keep, shown on those that need no training loop."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from predictor.base import ScalePredictor
from predictor.classical.baselines import BestScalePerTask, FixedScale, Mix
from predictor.classical.question_only import QuestionOnly
from predictor.policy.front import choose, policy_value
from tests.predictor.synthetic import SCALES, blind_estimates, make_labels

TRAIN, VALIDATION, TEST = (
    make_labels(150, seed=0),
    make_labels(50, seed=1),
    make_labels(100, seed=2, split="test"),
)
BASELINES: list[Callable[[], ScalePredictor]] = [
    lambda: FixedScale(scale=9),
    Mix,
    BestScalePerTask,
    QuestionOnly,
]


@pytest.mark.parametrize("make", BASELINES)
def test_saved_and_loaded_it_estimates_the_same(make, tmp_path):
    predictor = make().fit(TRAIN, VALIDATION)
    estimates = predictor.predict(TEST.inputs)
    assert estimates.shape == (len(TEST), len(SCALES))
    assert ((estimates >= 0) & (estimates <= 1)).all()
    predictor.save(tmp_path)
    loaded = ScalePredictor.load(tmp_path)
    assert type(loaded) is type(predictor)
    assert json.dumps(loaded.get_arguments()) == json.dumps(predictor.get_arguments())
    assert (loaded.predict(TEST.inputs) == estimates).all()
    assert loaded.num_parameters == predictor.num_parameters
    loaded.save(tmp_path)
    assert (ScalePredictor.load(tmp_path).predict(TEST.inputs) == estimates).all()


def test_fixed_scale_is_chosen_at_every_price_below_one():
    estimates = FixedScale(scale=9).fit(TRAIN, VALIDATION).predict(TEST.inputs)
    for price in (0, 0.5, 0.99):
        assert set(choose(estimates, TEST.inputs.visual_tokens, price)) == {SCALES.index(9)}
    with pytest.raises(ValueError, match=r"no scale 4 .* only \[1, 9, 36\]"):
        FixedScale(scale=4).fit(TRAIN, VALIDATION)


def test_means_per_task_worked_by_hand():
    """Two tasks of four samples each; their means, and the mean over all for a task never seen."""
    score = np.array([[0, 1, 1]] * 2 + [[0, 0, 1]] * 2 + [[1, 1, 0]] * 4, dtype=np.float32)
    task = np.array(["a"] * 4 + ["b"] * 4, dtype=object)
    part = make_labels(2, seed=0)
    train = type(part)(
        inputs=dataclasses.replace(part.inputs, task=task),
        outcomes=dataclasses.replace(part.outcomes, task=task, score=score),
    )
    inputs = dataclasses.replace(part.inputs, task=np.array(["b", "a", "c", *"aaaaa"], dtype=object))
    estimates = BestScalePerTask().fit(train, VALIDATION).predict(inputs)
    np.testing.assert_array_equal(estimates[:3], [[1, 1, 0], [0, 0.5, 1], [0.5, 0.75, 0.5]])
    np.testing.assert_array_equal(Mix().fit(train, VALIDATION).predict(inputs)[0], [0.5, 0.75, 0.5])


def test_question_only_finds_what_the_words_tell():
    """It comes near the best that can be said without the picture, and not above it but for luck."""
    predictor = QuestionOnly().fit(make_labels(500, seed=0), VALIDATION)
    test = make_labels(500, seed=2)
    blind = blind_estimates(test)
    assert np.abs(predictor.predict(test.inputs) - blind).mean() < 0.05
    cost, score = test.inputs.visual_tokens, test.outcomes.score
    assert policy_value(predictor.predict(test.inputs), cost, score) == pytest.approx(
        policy_value(blind, cost, score), abs=0.01
    )


def test_question_only_takes_fractions_and_single_classes():
    """A score of 0.3 everywhere is learned as 0.3; a scale that is never right, or always, keeps its mean."""
    score = np.tile(np.array([0, 0.3, 1], dtype=np.float32), (len(TRAIN), 1))
    train = type(TRAIN)(TRAIN.inputs, dataclasses.replace(TRAIN.outcomes, score=score))
    estimates = QuestionOnly().fit(train, VALIDATION).predict(TEST.inputs)
    np.testing.assert_allclose(estimates, np.broadcast_to([0, 0.3, 1], estimates.shape), atol=0.01)


def with_outcomes(labels, **changes):
    return type(labels)(labels.inputs, dataclasses.replace(labels.outcomes, **changes))


def test_parts_that_do_not_belong_together_are_refused():
    other = with_outcomes(VALIDATION, fingerprints={**VALIDATION.outcomes.fingerprints, "weights": "zz"})
    with pytest.raises(ValueError, match="weights zz instead of aa"):
        Mix().fit(TRAIN, other)
    with pytest.raises(ValueError, match=r"image 'train-0-0' is in train and in validation"):
        Mix().fit(TRAIN, TRAIN)
    with pytest.raises(ValueError, match="the validation part has no samples"):
        Mix().fit(TRAIN, VALIDATION.select([]))


def test_another_ladder_is_refused():
    predictor = Mix().fit(TRAIN, VALIDATION)
    inputs = dataclasses.replace(TEST.inputs, scales=(1, 4, 36))
    with pytest.raises(ValueError, match=r"trained for scales \[1, 9, 36\], not \[1, 4, 36\]"):
        predictor.predict(inputs)


def test_another_backbone_is_refused_and_other_data_are_not():
    predictor = Mix().fit(TRAIN, VALIDATION)
    predictor.check_backbone({"weights": "aa", "prompt": "cc", "decoding": "dd", "data": "other"})
    with pytest.raises(ValueError, match="prompt cc instead of xx"):
        predictor.check_backbone({"weights": "aa", "prompt": "xx", "decoding": "dd"})


def test_before_fit_nothing_can_be_predicted_or_saved(tmp_path):
    with pytest.raises(ValueError, match="mix is not fitted"):
        Mix().predict(TEST.inputs)
    with pytest.raises(ValueError, match="nothing to save"):
        Mix().save(tmp_path)


def test_folders_that_hold_no_predictor_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenscale train"):
        ScalePredictor.load(tmp_path)
    Mix().fit(TRAIN, VALIDATION).save(tmp_path)
    with pytest.raises(ValueError, match="holds a Mix, not a QuestionOnly"):
        QuestionOnly.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"is damaged \("):
        ScalePredictor.load(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("baselines.Mix", "baselines.Gone"))
    Mix().fit(TRAIN, VALIDATION)
    with pytest.raises(ValueError):
        ScalePredictor.load(tmp_path)
    config.write_text("{}")
    with pytest.raises(ValueError, match=r"is damaged \("):
        ScalePredictor.load(tmp_path)


def test_inputs_hold_no_outcome():
    """What `predict` is given has no field that the frozen model's answers could sit in."""
    fields = {field.name for field in dataclasses.fields(TEST.inputs)}
    assert not fields & {"score", "nll", "confidence", "answer", "references", "kind", "attributes"}


def test_a_predictor_of_another_version_is_named(tmp_path):
    Mix().fit(TRAIN, VALIDATION).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"arguments": {"name": "mix", "gone": 1}},
        {"class": "predictor.classical.question_only.QuestionOnly"},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=r"another version of the code .* train it again"):
            ScalePredictor.load(tmp_path)
