"""Predictors that read a sentence encoder's vector of the question, on labels whose truth is known."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from predictor.base import ScalePredictor
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.classical.tabular import Table
from predictor.encoders import TransformerEncoder, load_sentence_encoder
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.pooled import MLP
from predictor.policy.front import policy_value
from tests.predictor.small_encoder import write_encoder
from tests.predictor.synthetic import blind_estimates, make_labels

TRAIN, VALIDATION, TEST = make_labels(300, seed=0), make_labels(100, seed=1), make_labels(400, seed=2)
MEANS = np.broadcast_to(TRAIN.outcomes.score.mean(axis=0), TEST.outcomes.score.shape)
PREDICTORS: dict[str, Any] = {
    "boosting": functools.partial(GradientBoosting, max_trees=40, learning_rate=0.1),
    "neighbours": NearestNeighbours,
    "network": functools.partial(
        LearnedPredictor, network=functools.partial(MLP, width=32), max_epochs=30, learning_rate=3e-3
    ),
}


def value(estimates):
    return policy_value(estimates, TEST.inputs.visual_tokens, TEST.outcomes.score)


@pytest.fixture
def encoder(tmp_path):
    return write_encoder(tmp_path / "encoder")


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.long
def test_the_vector_tells_what_the_question_tells(name, encoder, tmp_path):
    predictor = PREDICTORS[name](features=Features(sentences=str(encoder))).fit(TRAIN, VALIDATION)
    estimates = predictor.predict(TEST.inputs)
    blind = value(blind_estimates(TEST))
    assert value(MEANS) < (value(MEANS) + blind) / 2 < value(estimates) < blind + 0.02
    predictor.save(tmp_path / "saved")
    loaded = type(predictor).load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict(TEST.inputs), estimates, atol=1e-6)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.long
def test_another_encoder_in_its_place_is_refused(name, tmp_path):
    features = Features(sentences=str(write_encoder(tmp_path / "encoder")))
    PREDICTORS[name](features=features).fit(TRAIN, VALIDATION).save(tmp_path / "saved")
    write_encoder(tmp_path / "encoder", seed=1)
    load_sentence_encoder.cache_clear()
    with pytest.raises(ValueError, match=r"has changed since training .* train again"):
        ScalePredictor.load(tmp_path / "saved")


def test_columns_and_costs(encoder):
    features = Features(question=True, sentences=str(encoder))
    table = Table.fit(TRAIN.inputs, features, max_words=5, num_components=0)
    assert table.sizes == (5, 16, 0, 0)
    rows = table.apply(TRAIN.inputs)
    assert rows.shape == (len(TRAIN), 21)
    np.testing.assert_allclose(np.square(rows[:, 5:]).mean(axis=1), 1, rtol=1e-4)
    words = len(TRAIN.inputs.question[0].split())
    cost = features.count_flops(TRAIN.inputs) - Features(question=True).count_flops(TRAIN.inputs)
    assert cost == 2 * 2224 * (words + 2)  # weights of the layer, words with [CLS] and [SEP]


def test_a_blend_reads_the_sentences_of_its_parts_and_encodes_each_question_once(encoder, monkeypatch):
    part: Any = functools.partial(NearestNeighbours, features=Features(sentences=str(encoder)))
    blend = Blend(first=part, second=QuestionOnly, shares=(0.5,)).fit(TRAIN, VALIDATION)
    assert blend.features == Features(sentences=str(encoder))
    assert blend.count_flops(TEST.inputs) > Features(sentences=str(encoder)).count_flops(TEST.inputs) > 0

    encoded: list[str] = []
    run = TransformerEncoder._run

    def record(self, texts):
        encoded.extend(texts)
        return run(self, texts)

    monkeypatch.setattr(TransformerEncoder, "_run", record)
    both = Blend(first=part, second=part, shares=(0.5,)).fit(TRAIN, VALIDATION)
    inputs = dataclasses.replace(TEST.inputs, sentences={})
    encoded.clear()
    alone = blend.predict(inputs)
    assert sorted(encoded) == sorted(set(inputs.question))
    # Other predictors of the same samples find the vectors there, and so do parts of the samples.
    both.predict(inputs)
    blend.predict(inputs.select(slice(10)))
    assert len(encoded) == len(set(inputs.question))
    # The same questions about other samples, as in use, are encoded anew.
    np.testing.assert_array_equal(blend.predict(dataclasses.replace(inputs, sentences={})), alone)
    assert len(encoded) == 2 * len(set(inputs.question))


def test_two_encoders_give_their_vectors_side_by_side(tmp_path):
    first, second = (str(write_encoder(tmp_path / name, seed=seed)) for seed, name in enumerate("ab"))
    features = Features.union(Features(sentences=first), Features(sentences=second))
    vectors = [Features(sentences=each).read_sentences(TEST.inputs) for each in (first, second)]
    assert features.num_sentence_columns == 32
    np.testing.assert_array_equal(features.read_sentences(TEST.inputs), np.concatenate(vectors, axis=1))
    assert features.count_flops(TEST.inputs) == 2 * Features(sentences=first).count_flops(TEST.inputs)
    predictor = NearestNeighbours(features=features).fit(TRAIN, VALIDATION)
    predictor.save(tmp_path / "saved")
    loaded = ScalePredictor.load(tmp_path / "saved")
    assert loaded.features == features
    np.testing.assert_array_equal(loaded.predict(TEST.inputs), predictor.predict(TEST.inputs))
