"""Packed decoding with drafts and references gives what `generate` of transformers gives, token for token."""

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextConfig

from m3_backbone.backbone import Answer
from m3_backbone.decoding.drafting import TokenTree
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.modeling import M3LlavaNextForConditionalGeneration
from m3_backbone.loading.checkpoint import Checkpoint
from tests.paths import FIXTURES

SCALES = (1, 4, 9, 36)
IMAGE_SIZES = ((192, 192), (300, 90), (100, 380), (640, 480))
MAX_NEW_TOKENS = 6
VOCABULARY = 512
WORDS = ["What", "color", "is", "the", "circle", "7", "how", "many?", "A.", "a cat\nB. a dog", "ß", "日"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
TOKENS = st.integers(3, VOCABULARY - 1)


@cache
def make_backbone(seed, num_layers, num_key_value_heads):
    """A tiled M3 of random weights with `num_key_value_heads` for 8 heads of its queries.

    In float64, so that no near tie is decided by the order of a sum. One token in 16 ends an answer.
    """
    folder = FIXTURES / "reference_m3" / "tiled_other_grids" / "checkpoint"
    checkpoint = Checkpoint.open(folder, scales=SCALES)
    config = copy.deepcopy(checkpoint.config)
    assert isinstance(config, LlavaNextConfig)
    text = config.get_text_config()
    text.num_hidden_layers, text.num_attention_heads, text.head_dim = num_layers, 8, 6
    text.num_key_value_heads = num_key_value_heads
    text.tie_word_embeddings = config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(
            seed
        )  # vectors, such as the class token, keep the values that the model begins with
        model = M3LlavaNextForConditionalGeneration(config).double().eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim >= 2:
            weight.normal_(std=1.5 * weight[0].numel() ** -0.5, generator=generator)
    ends = torch.randperm(VOCABULARY - 3, generator=generator)[: VOCABULARY // 16] + 3
    model.generation_config.eos_token_id = ends.tolist()
    model.generation_config.pad_token_id = 0
    backbone = LlavaBackbone(
        dataclasses.replace(checkpoint, config=config), device="cpu", max_new_tokens=MAX_NEW_TOKENS
    )
    vars(backbone)["model"] = model  # in place of weights from files
    pixels = np.random.default_rng(seed)
    images = [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in IMAGE_SIZES
    ]
    return backbone, images, backbone.encode(images)


@cache
def generate(model, image, question, scale):
    """Token ids that `generate` gives for one question alone, from pixels."""
    backbone, images, _ = make_backbone(*model)
    inputs = backbone.processor(images[image], backbone.processor.template.format(question), scale)
    ids = backbone.model.generate(**inputs, token_scale=scale, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


MODELS = st.tuples(st.integers(0, 2), st.sampled_from([1, 3]), st.sampled_from([1, 2, 4, 8]))


@st.composite
def requests(draw):
    """A model, a scale, a batch size and rows of (image, question, references, draft).

    A draft is that many first tokens of the right answer, then tokens of chance.
    """
    row = st.tuples(
        st.integers(0, len(IMAGE_SIZES) - 1),
        st.sampled_from(draw(st.lists(TEXTS, min_size=1, max_size=4))),
        st.lists(TEXTS, max_size=2),
        st.tuples(st.integers(0, MAX_NEW_TOKENS), st.lists(TOKENS, max_size=3)),
    )
    rows = draw(st.lists(row, min_size=1, max_size=8))
    return draw(MODELS), draw(st.sampled_from(SCALES)), draw(st.integers(1, 8)), draw(st.booleans()), rows


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests())
def test_packed_answers_with_drafts_are_those_of_generate(request):
    model, scale, batch_size, has_drafts, rows = request
    backbone, _, encoded = make_backbone(*model)
    backbone.batch_size = batch_size
    expected = [generate(model, image, question, scale) for image, question, _, _ in rows]
    drafts = [
        Answer("", [*ids[:num_right], *others], 1.0, 0.0, None, None)
        for ids, (_, _, _, (num_right, others)) in zip(expected, rows, strict=True)
    ]
    answers = backbone.answer(
        [encoded[image] for image, _, _, _ in rows],
        [question for _, question, _, _ in rows],
        scale,
        references=[references for _, _, references, _ in rows],
        drafts=drafts if has_drafts else None,
    )
    assert [answer.token_ids for answer in answers] == expected


@pytest.mark.long
def test_the_answers_of_these_models_are_worth_comparing():
    """Most models answer differently at other scales, and answers have one token, some, or all."""
    lengths, distinct = set(), 0
    for seed in range(3):
        model = (seed, 3, 2)
        answers = [generate(model, 3, f"What is {number}?", scale) for number in range(4) for scale in SCALES]
        lengths |= set(map(len, answers))
        distinct += len(set(map(tuple, answers)))
    assert min(lengths) <= 2 and MAX_NEW_TOKENS in lengths and distinct >= 12


@pytest.mark.parametrize("num_key_value_heads", [1, 4])
def test_a_pass_that_is_packed_wrongly_is_noticed(num_key_value_heads, monkeypatch):
    """The property would fail if questions on one image saw each other."""
    model, questions = (0, 3, num_key_value_heads), ["What color is it?", "how many?", "Why is that?"]
    backbone, _, encoded = make_backbone(*model)
    expected = [generate(model, 0, question, 9) for question in questions]
    backbone.batch_size = 8
    assert [a.token_ids for a in backbone.answer(encoded[:1] * 3, questions, 9)] == expected
    monkeypatch.setattr(
        TokenTree, "make_mask", lambda tree: torch.ones(len(tree), len(tree), dtype=torch.bool).tril()
    )
    assert [a.token_ids for a in backbone.answer(encoded[:1] * 3, questions, 9)] != expected
