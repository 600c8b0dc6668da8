"""Sentence vectors, against the definition on a small random BERT."""

import json

import numpy as np
import pytest
import torch

from m3_backbone.sentences import SentenceEncoder
from tests.m3_backbone.small_encoder import write_encoder

TEXTS = ["what color is it", "color", "is it red or blue what", "color"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_vectors_are_normalised_means_of_each_text_alone(folder):
    encoder = SentenceEncoder(str(folder))
    vectors = encoder.encode(TEXTS, batch_size=2)
    assert vectors.shape == (4, encoder.width) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)


def test_a_text_is_encoded_once(folder, monkeypatch):
    encoder = SentenceEncoder(str(folder))
    first = encoder.encode(TEXTS)
    monkeypatch.setattr(encoder, "model", None)
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1]), first[::-1])
    monkeypatch.undo()
    monkeypatch.setattr("m3_backbone.sentences._REMEMBERED", 3)
    encoder.encode(["it is", "color"])
    assert set(encoder._remembered) == {"it is", "color"}  # what is not asked for makes room


def test_a_text_longer_than_the_model_is_cut(folder, tmp_path):
    """Also where the tokenizer, as many do, does not say how long a text may be."""
    silent = write_encoder(tmp_path / "silent")
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (silent / "tokenizer_config.json").write_text(json.dumps(settings))
    for each in (folder, silent):
        assert np.isfinite(SentenceEncoder(str(each)).encode(["red " * 500])).all()


def test_costs_two_operations_per_weight_of_a_layer_and_token(folder):
    encoder = SentenceEncoder(str(folder))
    # One layer: four square matrices, two of the perceptron, biases, two norms; the pooler is not run.
    width, inner = 16, 32
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    # "color" is three tokens with [CLS] and [SEP].
    assert encoder.count_flops(["color"]) == 2 * 3 * layer


def test_what_is_no_encoder_is_refused_by_name(tmp_path, folder):
    with pytest.raises(ValueError, match=f"no sentence encoder in {tmp_path}.*safetensors"):
        SentenceEncoder(str(tmp_path))
    other = write_encoder(tmp_path / "other", seed=1)
    assert SentenceEncoder(str(other)).fingerprint != SentenceEncoder(str(folder)).fingerprint
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no sentence encoder in"):
        SentenceEncoder(str(other))
