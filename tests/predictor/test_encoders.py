"""Sentence vectors: a small random BERT against the definition, tables against their packages."""

import json
import sys

import numpy as np
import pytest
import torch
from model2vec import StaticModel
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from wordllama.inference import WordLlamaInference

from predictor import encoders as sentences
from predictor.encoders import StaticEncoder, TransformerEncoder, load_sentence_encoder
from tests.predictor.small_encoder import write_encoder

TEXTS = ["what color is it", "color", "is it red or blue what", "color"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_vectors_are_normalised_means_of_each_text_alone(folder):
    encoder = TransformerEncoder(str(folder))
    vectors = encoder.encode(TEXTS, batch_size=2)
    assert vectors.shape == (4, encoder.width) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)


def test_a_text_is_encoded_once_in_a_call_and_anew_in_the_next(folder, monkeypatch):
    encoder = TransformerEncoder(str(folder))
    encoded: list[str] = []

    def run(texts):
        encoded.extend(texts)
        return TransformerEncoder._run(encoder, texts)

    monkeypatch.setattr(encoder, "_run", run)
    first = encoder.encode(TEXTS)
    assert sorted(encoded) == sorted(set(TEXTS))
    # Vectors are kept with the samples that they belong to, never here: a timed question is a new one.
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1]), first[::-1])
    assert sorted(encoded) == sorted([*set(TEXTS), *set(TEXTS)])


def test_control_tokens_of_the_encoder_are_text_in_a_question(folder):
    tokenizer = TransformerEncoder(str(folder)).tokenizer
    control = tokenizer.sep_token
    encoder = TransformerEncoder(str(folder))
    ids = encoder._tokenize([f"what {control} color"])["input_ids"][0]
    assert ids.count(tokenizer.sep_token_id) == encoder._tokenize(["what color"])["input_ids"][0].count(
        tokenizer.sep_token_id
    )
    assert not np.allclose(*encoder.encode([f"what {control} color", "what color"]))


def test_a_text_longer_than_the_model_is_cut(folder, tmp_path):
    """Also where the tokenizer, as many do, does not say how long a text may be."""
    silent = write_encoder(tmp_path / "silent")
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (silent / "tokenizer_config.json").write_text(json.dumps(settings))
    for each in (folder, silent):
        assert np.isfinite(TransformerEncoder(str(each)).encode(["red " * 500])).all()


def test_costs_two_operations_per_weight_of_a_layer_and_token(folder):
    encoder = TransformerEncoder(str(folder))
    # One layer: four square matrices, two of the perceptron, biases, two norms; the pooler is not run.
    width, inner = 16, 32
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    # "color" is three tokens with [CLS] and [SEP].
    assert encoder.count_flops(["color"]) == 2 * 3 * layer


def test_what_is_no_encoder_is_refused_by_name(tmp_path, folder):
    with pytest.raises(ValueError, match=f"no sentence encoder in {tmp_path}.*safetensors"):
        TransformerEncoder(str(tmp_path))
    other = write_encoder(tmp_path / "other", seed=1)
    assert TransformerEncoder(str(other)).fingerprint != TransformerEncoder(str(folder)).fingerprint
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no sentence encoder in"):
        TransformerEncoder(str(other))


def test_wordllama_gives_the_vectors_of_its_package():
    texts = ["What color is the ring?", "How many letters are there?", "Which colour does the ring have?"]
    encoder = load_sentence_encoder("wordllama")
    vectors = encoder.encode(texts)
    assert vectors.shape == (3, encoder.width) == (3, 256)
    reference = WordLlamaInference(*sentences._read_wordllama())
    np.testing.assert_allclose(vectors, reference.embed(texts, norm=True), atol=1e-5)
    # Trained on other texts than ours: what means the same lies together.
    assert vectors[0] @ vectors[2] > 0.8 > 0.3 > abs(vectors[0] @ vectors[1])
    # One addition for each of the 256 numbers of a token.
    assert encoder.count_flops(["red"]) == 256
    assert np.isfinite(encoder.encode(["", "red " * 5000])).all()


def test_tables_come_in_the_layouts_of_model2vec_and_sentence_transformers(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    table = np.array([[9, 9], [3, 4], [0, 2]], np.float32)
    StaticModel(table, tokenizer).save_pretrained(tmp_path / "model2vec")
    inner = tmp_path / "other" / "0_StaticEmbedding"
    inner.mkdir(parents=True)
    save_file({"embedding.weight": table}, inner / "model.safetensors")
    tokenizer.save(str(inner / "tokenizer.json"))
    (tmp_path / "other" / "config_sentence_transformers.json").write_text("{}")
    modules = [{"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"}]
    (tmp_path / "other" / "modules.json").write_text(json.dumps(modules))
    for folder in ("model2vec", "other"):
        encoder = load_sentence_encoder(str(tmp_path / folder))
        assert isinstance(encoder, StaticEncoder)
        # What is not in the table has no direction.
        expected = [(0.6, 0.8), (3 / 45**0.5, 6 / 45**0.5), (0, 0)]
        np.testing.assert_allclose(encoder.encode(["red", "red blue", "green"]), expected, atol=1e-6)
        assert encoder.count_flops(["red", "red blue"]) == 2 * 1.5
    StaticModel(table + 1, tokenizer).save_pretrained(tmp_path / "changed")
    assert load_sentence_encoder(str(tmp_path / "changed")).fingerprint != encoder.fingerprint
    for folder, name in (("model2vec", "model.safetensors"), ("changed", "tokenizer.json")):
        whole = (tmp_path / folder / name).read_bytes()
        (tmp_path / folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"no static embeddings in {tmp_path}/{folder}"):
            StaticEncoder(str(tmp_path / folder))


@pytest.mark.parametrize("package", ["model2vec", "wordllama"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "model2vec", None if package == "model2vec" else sys.modules["model2vec"]
    )
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"{package}.*tokenscale\[sentences\]"):
        StaticEncoder("wordllama")
