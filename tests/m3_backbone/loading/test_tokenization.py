"""Ids and texts computed by the slow LlamaTokenizer of transformers 4.37.2 on the fixtures' tokenizer."""

import json
import shutil
import sys

import pytest

from m3_backbone.loading.tokenization import load_tokenizer

# text, ids with `legacy: true`, ids with `legacy: false` (as published vicuna checkpoints have it)
RECORDED = [
    ("</s>", [1, 2], [1, 2]),
    ("a</s>b", [1, 259, 2, 268], [1, 259, 2, 479]),
    ("<s> x", [1, 1, 461, 485], [1, 1, 461, 485]),
    ("x <unk> y", [1, 461, 485, 0, 317], [1, 461, 485, 0, 317]),
    (" lead</s> trail ", [1, 292, 326, 2, 260, 468, 369, 470], [1, 461, 292, 326, 2, 260, 468, 369, 470]),
    (
        "\nWhat color?\nAnswer ASSISTANT:",
        [1, 461, 13, 511, 291, 263, 307, 314, 510, 13, 486, 469, 302, 429, 496],
        [1, 461, 13, 511, 291, 263, 307, 314, 510, 13, 486, 469, 302, 429, 496],
    ),
    (
        "日本 \u2581under",
        [1, 461, 233, 154, 168, 233, 159, 175, 461, 461, 474, 469, 476, 265],
        [1, 461, 233, 154, 168, 233, 159, 175, 461, 474, 469, 476, 265],
    ),
]
DECODED = [
    ([442, 274, 378, 199, 7, 381, 252, 118, 210], "ist w detailed\ufffd\x04 left\ufffds\ufffd"),
    ([213], "\ufffd"),
    ([277, 324, 131], "en user\ufffd"),
]


@pytest.fixture(params=[True, False])
def legacy(request):
    return request.param


@pytest.fixture
def tokenizer(plain, tmp_path, legacy, monkeypatch):
    # sentencepiece's generated code refuses the protobuf of many environments: it is not used.
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    for name in ("tokenizer.model", "special_tokens_map.json"):
        shutil.copy(plain.folder / "checkpoint" / name, tmp_path)
    config = json.loads((plain.folder / "checkpoint" / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": legacy}))
    return load_tokenizer(tmp_path)


def test_ids_are_those_of_the_slow_tokenizer(tokenizer, legacy):
    for text, old, new in RECORDED:
        assert tokenizer(text).input_ids == (old if legacy else new), text


def test_a_saved_tokenizer_is_the_same(tokenizer, legacy, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.legacy is legacy
    test_ids_are_those_of_the_slow_tokenizer(saved, legacy)


def test_texts_are_those_of_the_slow_tokenizer(tokenizer):
    for ids, text in DECODED:
        assert tokenizer.decode(ids) == text


def test_an_image_token_changes_nothing_else(tokenizer, legacy):
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    test_ids_are_those_of_the_slow_tokenizer(tokenizer, legacy)
    assert tokenizer.decode([512, 277, 512, 324], skip_special_tokens=True) == "en user"
