"""States of the decoder after image and question: those of transformers' own forward pass from pixels."""

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image

from m3_backbone.backbone import Answer
from m3_backbone.decoding.decoding import DecoderState
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.native.gemma4 import Gemma4Backbone
from m3_backbone.native.internvl import InternVLBackbone
from m3_backbone.native.qwen_vl import QwenVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from m3_backbone.native.tiles import TiledBackbone
from tests.m3_backbone.native.reference import draw_noise
from tests.paths import FIXTURES
from tests.query_checkpoint import write_query_checkpoint

QUESTIONS = ("What color is the large square?", "How many?")
SETTINGS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_new_tokens": 5}
OFFICIAL = FIXTURES / "official_m3"


def open_backbone(family, folder):
    if family == "mqt_llava":
        return LlavaBackbone(write_query_checkpoint(folder / "mqt"), **SETTINGS)
    if family in ("llava15", "llavanext"):
        return LlavaBackbone(OFFICIAL / family / "checkpoint", **SETTINGS)
    if family == "shrunk":
        return DownsampledLlavaBackbone("tiny_m3", **SETTINGS)
    if family.startswith("gemma4"):
        like = family.removeprefix("gemma4_")
        return Gemma4Backbone(
            write_random_checkpoint(folder, "gemma4", like=like), scales=[70, 140], **SETTINGS
        )
    if family == "internvl":
        return InternVLBackbone(write_random_checkpoint(folder, family, num_layers=2), **SETTINGS)
    if family == "smolvlm":
        return TiledBackbone(write_random_checkpoint(folder, family, num_layers=2), **SETTINGS)
    return QwenVLBackbone(write_random_checkpoint(folder, family), scales=[4, 16], **SETTINGS)


FAMILIES = (
    *("llava15", "llavanext", "mqt_llava", "shrunk", "smolvlm", "internvl", "qwen2_5_vl", "qwen3_vl"),
    *("gemma4_e2b", "gemma4_31b"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    return open_backbone(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def images():
    return [*draw_noise(((64, 48),)), Image.new("RGB", (30, 90), "red")]


@torch.no_grad()
def read_official(backbone, image, question, scale):
    """Last hidden state and the largest probability of the next token, from pixels."""
    inputs = backbone.generate_inputs([image], [question], scale)
    outputs = backbone.model(**inputs, output_hidden_states=True)
    return outputs.hidden_states[-1][0, -1].float(), float(outputs.logits[0, -1].float().softmax(-1).max())


def test_states_are_those_of_transformers_and_cost_no_further_pass(backbone, images):
    pairs = [(image, question) for image in images for question in QUESTIONS]
    encoded = dict(zip(map(id, images), backbone.encode(images), strict=True))
    asked = [encoded[id(image)] for image, _ in pairs], [question for _, question in pairs]
    scale = backbone.scales[0]
    prefilled, work = count_work(backbone, lambda: backbone.prefill(*asked, scale))
    assert work.prefix_tokens and not work.decoded_tokens
    for (image, question), state in zip(pairs, prefilled.states, strict=True):
        hidden, probability = read_official(backbone, image, question, scale)
        torch.testing.assert_close(state.hidden, hidden, rtol=1e-4, atol=1e-4)
        assert state.probability == pytest.approx(probability, rel=1e-4)

    # Answers are decoded from the prefill, in any order, and only those that are asked for.
    plain, whole = count_work(backbone, lambda: backbone.answer(*asked, scale))
    answers, rest = count_work(backbone, lambda: prefilled.answer([2, 0]))
    assert read_ids(answers) == read_ids([plain[2], plain[0]])
    assert answers[0].confidence == pytest.approx(plain[2].confidence, rel=1e-4)
    assert not rest.prefix_tokens and not rest.question_tokens
    assert read_ids(prefilled.answer([3, 2, 1, 0])) == read_ids(plain[::-1])
    assert work.prefix_tokens == whole.prefix_tokens and work.question_tokens == whole.question_tokens

    # An answer of a given length begins with the usual answer, and continues after its end.
    prefilled = backbone.prefill(*asked, scale)
    long = prefilled.answer([1, 3], num_tokens=9)
    for index, answer in zip((1, 3), long, strict=True):
        assert len(answer.token_ids) == 9
        assert answer.token_ids[: len(plain[index].token_ids)] == plain[index].token_ids
    assert read_ids(prefilled.answer([1, 3])) == read_ids([plain[1], plain[3]])
    assert read_ids(prefilled.answer([1, 3], num_tokens=9)) == read_ids(long)

    # Drafts and references leave the state as it is, and it takes no further token.
    drafted = {"references": [["a red one"]] * 4, "drafts": plain}
    without, work = count_work(backbone, lambda: backbone.answer(*asked, scale, **drafted))
    answers, same_work = count_work(backbone, lambda: backbone.answer_with_states(*asked, scale, **drafted))
    assert answers == without and without[0].state is None and same_work == work
    for answer, state in zip(answers, prefilled.states, strict=True):
        torch.testing.assert_close(answer.state.hidden, state.hidden, rtol=1e-4, atol=1e-4)
        assert answer.state.probability == pytest.approx(state.probability, rel=1e-4)


def read_ids(answers):
    return [answer.token_ids for answer in answers]


def count_work(backbone, run):
    """Result of `run`, and the work of the decoder in it."""
    before = dataclasses.replace(backbone.work)
    return run(), backbone.work.since(before)


def test_a_bad_state_is_an_error():
    state = DecoderState(torch.tensor([1.0, 70000.0]), 0.5)  # too large for half precision
    with pytest.raises(ValueError, match="not finite"):
        Answer("", [1], 0.5, 0.0, None, None, state).check_finite()
