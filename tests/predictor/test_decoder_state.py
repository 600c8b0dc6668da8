"""The decoder's state among the features of predictors."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from experiments.training.joining import join_labels
from predictor.base import ScalePredictor
from predictor.classical.boosting import GradientBoosting
from predictor.classical.controls import RandomFeatures, randomize
from predictor.classical.nearest import NearestNeighbours
from predictor.features import Features
from predictor.folder import describe
from predictor.learned import LearnedPredictor
from predictor.networks.pooled import MLP
from tests.predictor.synthetic import make_labels, with_states

GATE = Features(visual=[], decoder_state=True)


@pytest.fixture(scope="module")
def parts():
    return with_states(make_labels(60, 0)), with_states(make_labels(30, 1, split="validation"))


def test_states_end_with_the_log_odds_of_the_first_token(parts):
    inputs = dataclasses.replace(
        parts[0].inputs.select(slice(3)), first_probability=np.array([0.5, 0.75, 1.0], dtype=np.float32)
    )
    states = GATE.read_states(inputs)
    assert states.dtype == np.float16 and states.shape == (3, 5)
    np.testing.assert_array_equal(states[:, :4], inputs.decoder_state)
    # The largest log-odds are those of a millionth.
    np.testing.assert_allclose(states[:, 4], [0, np.log(3), np.log(1e6)], rtol=1e-3)
    assert Features(visual=[]).read_states(inputs).shape == (3, 0)
    assert parts[0].inputs.select([2, 0]).decoder_state.tolist() == inputs.decoder_state[[2, 0]].tolist()


def test_labels_without_states_are_an_error_with_the_command(parts):
    train, validation = make_labels(20, 0), make_labels(20, 1, split="validation")
    with pytest.raises(ValueError, match="tokenscale label decoder_state=true"):
        NearestNeighbours(features=GATE).fit(train, validation)
    mixed = join_labels({"with": parts[0], "without": train})
    assert mixed.inputs.decoder_state is None and mixed.outcomes.decoder_state is None
    both = join_labels({"first": parts[0], "second": parts[1]})
    assert both.inputs.decoder_state is not None and both.outcomes.first_probability is not None
    assert len(both.inputs.decoder_state) == len(both) == len(both.outcomes.first_probability)


def test_a_predictor_of_earlier_versions_has_the_same_description():
    text = json.dumps(describe(NearestNeighbours, {"features": Features(question=True, decoder_state=False)}))
    assert "decoder_state" not in text
    assert "decoder_state" in json.dumps(describe(NearestNeighbours, {"features": GATE}))
    assert Features.union(GATE, Features(question=True)) == Features(
        visual=[], question=True, decoder_state=True
    )
    assert not Features.union(Features(visual=9)).decoder_state
    assert GATE.reads_vision and GATE.vision_scales((4, 16)) == (4,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearnedPredictor(
            network=partial(MLP, width=16, token_width=1, num_layers=1),
            features=GATE,
            max_epochs=10,
            batch_size=16,
            learning_rate=1e-2,
            average_decay=0.5,
        ),
        lambda: NearestNeighbours(features=GATE),
        lambda: GradientBoosting(features=GATE, max_trees=20),
    ],
    ids=["network", "neighbours", "trees"],
)
def test_predictors_read_the_states(make, parts, tmp_path):
    train, validation = parts
    predictor = make().fit(train, validation)
    estimates = predictor.predict(validation.inputs)[:, -1]
    right = validation.outcomes.score[:, -1] > 0
    assert estimates[right].mean() > estimates[~right].mean() + 0.3
    predictor.save(tmp_path)
    loaded = ScalePredictor.load(tmp_path)
    assert loaded.features.decoder_state
    np.testing.assert_array_equal(loaded.predict(validation.inputs)[:, -1], estimates)
    noise = randomize(validation.inputs, np.random.default_rng(0))
    blind = predictor.predict(noise)[:, -1]
    assert abs(blind[right].mean() - blind[~right].mean()) < 0.2


def test_controls_read_noise_instead(parts):
    def make():
        return NearestNeighbours(features=GATE, num_neighbours=(10,))

    control = RandomFeatures(predictor=make, name="random").fit(*parts)
    estimates, score = control.predict(parts[1].inputs)[:, -1], parts[1].outcomes.score[:, -1]
    assert abs(np.corrcoef(estimates, score)[0, 1]) < 0.3


def test_prices_pay_the_tokens_of_the_coarsest_scale(parts):
    inputs = parts[0].inputs.select(slice(2))
    coinciding = np.array([[1, 9, 36], [9, 9, 36]], dtype=np.int32)
    inputs = dataclasses.replace(inputs, visual_tokens=coinciding)
    assert GATE.count_paid_tokens(inputs).tolist() == [[1, 9 + 1, 36 + 1], [9, 9, 36 + 9]]
    assert Features(visual=9).count_paid_tokens(inputs) is coinciding


def test_outcomes_are_charged_with_the_prefill_of_the_predictor(parts):
    labels, _ = parts
    assert labels.outcomes.visual_tokens[0].tolist() == [1, 9, 36]
    assert GATE.charge(labels).visual_tokens[0].tolist() == [1, 10, 37]
    assert Features(visual=1).charge(labels) is labels.outcomes
