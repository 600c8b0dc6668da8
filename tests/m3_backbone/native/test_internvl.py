"""InternVL: counts, costs and answers are those of transformers' own classes from pixels."""

import copy
import pickle
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.internvl.processing_internvl import InternVLProcessor

from m3_backbone.ladder import coinciding_scales
from m3_backbone.native.checkpoint import NativeCheckpoint
from m3_backbone.native.internvl import InternVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from tests.m3_backbone.native.reference import (
    check_flops,
    draw_noise,
    generate_greedily,
    make_prompt,
    score_reference,
)
from tests.paths import ROOT

SIZES = ((64, 48), (40, 120), (90, 80), (30, 1), (7, 7))
QUESTIONS = ("What color is the square?", "How many circles are there?")
MAX_NEW_TOKENS = 6
# Tiles have 4 visual tokens; at most 1, 2, 4 and 12 tiles besides the thumbnail.
MAX_TILES = {4: 1, 12: 2, 20: 4, 52: 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("internvl"), "internvl", num_layers=2)


def open_backbone(folder, **arguments):
    arguments = {"device": "cpu", "dtype": "float32", "max_new_tokens": MAX_NEW_TOKENS, **arguments}
    return InternVLBackbone(folder, **arguments)


@pytest.fixture(scope="module")
def backbone(folder):
    return open_backbone(folder)


def inputs_of(backbone, image, question, scale):
    """Inputs of the model from pixels, as its own processor makes them."""
    pixels = backbone.checkpoint.image_processor(
        images=image, crop_to_patches=True, max_patches=MAX_TILES[scale], return_tensors="pt"
    )
    tokens: Any = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4
    )
    expanded = InternVLProcessor.replace_image_token(tokens, pixels, 0)
    inputs = make_prompt(backbone, question, "<IMG_CONTEXT>", expanded)
    del inputs["mm_token_type_ids"]
    return {**inputs, "pixel_values": pixels["pixel_values"]}


@pytest.mark.long
def test_answers_equal_generate_from_pixels(backbone):
    images = [*draw_noise(SIZES), Image.new("RGB", (30, 60))]
    encoded = backbone.encode(images)
    pairs = [(number, question) for number in range(len(images)) for question in QUESTIONS]
    column, questions = [encoded[number] for number, _ in pairs], [question for _, question in pairs]
    references = [["red"]] * len(pairs)
    reference = backbone.processor.answer_ids("red")
    previous, texts = None, set()
    assert backbone.scales == tuple(MAX_TILES)
    for scale in backbone.scales:
        answers = backbone.answer(column, questions, scale, references=references)
        for (number, question), answer in zip(pairs, answers, strict=True):
            inputs = inputs_of(backbone, images[number], question, scale)
            ids, log_prob, _ = generate_greedily(backbone.model, inputs, MAX_NEW_TOKENS)
            assert answer.token_ids == ids
            assert np.log(answer.confidence) == pytest.approx(log_prob, abs=1e-4)
            nll = score_reference(backbone, inputs, reference)
            assert answer.nll == pytest.approx(nll, abs=1e-4)
        if previous is not None:
            drafted = backbone.answer(column, questions, scale, drafts=previous)
            assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in answers]
        previous = answers
        texts |= {answer.text for answer in answers}
    assert len(texts) > 2 * len(pairs)


def test_prompt_and_counts_equal_those_of_the_processor(backbone):
    for image in draw_noise((*SIZES, (300, 100), (33, 32), (65, 64), (1, 30), (90, 3), (1, 1), (900, 1))):
        for scale in backbone.scales:
            inputs = inputs_of(backbone, image, QUESTIONS[0], scale)
            ids = inputs["input_ids"][0].tolist()
            count = backbone.num_visual_tokens(image.size, scale)
            visual = [backbone.checkpoint.config.image_token_id] * count
            assert ids == [*backbone.system_ids, *visual, *backbone.processor.suffix_ids(QUESTIONS[0])]
            assert len(inputs["pixel_values"]) * 4 == count <= scale
            (prefix,) = backbone.visual_prefixes(backbone.encode([image]), scale)
            with torch.no_grad():
                features = backbone.model.get_image_features(inputs["pixel_values"], return_dict=True)
            torch.testing.assert_close(prefix.embeds, features.pooler_output.flatten(0, 1))


def at_published_size(folder):
    """The checkpoint with tiles of the published size, 256 visual tokens; its model cannot run."""
    checkpoint = NativeCheckpoint.open(folder, InternVLBackbone.families)
    config = copy.deepcopy(checkpoint.config)
    config.vision_config.patch_size = (14, 14)
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448})
    return replace(checkpoint, config=config, image_processor=images)


def test_counts_at_the_published_size(folder):
    backbone = InternVLBackbone(at_published_size(folder))
    assert backbone.scales == (256, 768, 1280, 3328)
    for name in ("internvl3_2b", "internvl3_8b"):
        scales = OmegaConf.load(ROOT / "conf" / "backbone" / f"{name}.yaml").scales
        assert tuple(scales) == backbone.scales
    # A page: 1, 1, 5 and 13 tiles.
    counts = [backbone.num_visual_tokens((1700, 2200), scale) for scale in backbone.scales]
    assert counts == [256, 256, 1280, 3328]
    assert coinciding_scales(backbone, (1700, 2200)) == {256: 256, 768: 256, 1280: 1280, 3328: 3328}


def test_counts_ascend_and_never_exceed_the_scale(backbone, folder):
    ladder = [4, *range(12, 56, 4)]
    fine = open_backbone(folder, scales=ladder)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(1, 3000), st.integers(1, 3000))
    def check(width, height):
        counts = [fine.num_visual_tokens((width, height), scale) for scale in ladder]
        assert counts[0] == 4 and all(coarse <= fine for coarse, fine in pairwise(counts))
        assert all(count <= scale for count, scale in zip(counts, ladder, strict=True))

    check()


def test_the_thumbnail_is_encoded_once(backbone):
    num_tiles = []
    hook = backbone.model.model.vision_tower.register_forward_pre_hook(
        lambda module, arguments, kwargs: num_tiles.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        # 4 x 3 tiles, 2 x 1 tiles, and a square for which the thumbnail suffices at scale 12.
        encoded = backbone.encode(draw_noise(((64, 48), (30, 60), (20, 20))))
        assert sum(num_tiles) == 0
        column, questions = [image for image in encoded for _ in QUESTIONS], [*QUESTIONS] * 3
        backbone.answer(column, questions, 4)
        backbone.compute_features(encoded, backbone.feature_scales)
        assert sum(num_tiles) == 3
        backbone.answer(column, questions, 12)
        assert [backbone.grid(image.size, 12) for image in encoded] == [(0, 0), (2, 1), (0, 0)]
        assert sum(num_tiles) == 3 + 2
        backbone.answer(column, questions, 52)
        assert [backbone.grid(image.size, 52) for image in encoded] == [(3, 4), (2, 1), (0, 0)]
        assert sum(num_tiles) == 3 + 2 + 12
        fresh = backbone.encode(draw_noise(((64, 48),)))
        backbone.answer(fresh, QUESTIONS[:1], 52)
        assert sum(num_tiles) == 3 + 2 + 12 + 13
    finally:
        hook.remove()


def test_flops_equal_those_counted(folder):
    backbone = open_backbone(folder, attn_implementation="eager")
    for image in draw_noise(((64, 48), (30, 60))):
        coarsest = backbone.vision_flops(image.size, 4)
        for scale in backbone.scales:
            inputs = inputs_of(backbone, image, QUESTIONS[0], scale)
            check_flops(backbone, inputs, image.size, QUESTIONS[0], scale)
            # Once the thumbnail is encoded, a finer scale costs only its other tiles.
            encoded = backbone.encode([image])
            backbone.encode_at(encoded, 4)
            with FlopCounterMode(display=False) as rest:
                backbone.encode_at(encoded, scale)
            assert rest.get_total_flops() == backbone.vision_flops(image.size, scale) - coarsest


@pytest.mark.long
def test_small_batches_and_copies_give_equal_answers(folder, backbone, tmp_path):
    images, questions = draw_noise(SIZES), QUESTIONS[:1] * len(SIZES)
    backbone.checkpoint.copy_to(tmp_path / "copy")
    others = (
        open_backbone(folder, image_batch_size=1, batch_tokens=50),
        InternVLBackbone(tmp_path / "copy", device="cpu", **backbone.saved_arguments()),
        pickle.loads(pickle.dumps(backbone)),
    )
    for scale in backbone.scales:
        expected = backbone.answer(backbone.encode(images), questions, scale)
        for other in others:
            assert other.fingerprints["weights"] == backbone.fingerprints["weights"]
            answers = other.answer(other.encode(images), questions, scale)
            assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]


def test_what_cannot_be_encoded_is_refused(folder, backbone):
    for scales in ([20, 52], [4, 8], [4, 21]):
        with pytest.raises(ValueError, match="give 4, which is the thumbnail alone"):
            open_backbone(folder, scales=scales)
    checkpoint = NativeCheckpoint.open(folder, InternVLBackbone.families)
    for size in ({"height": 32, "width": 48}, {"height": 40, "width": 40}):
        images = transformers.GotOcr2ImageProcessorPil(size=size)
        with pytest.raises(ValueError, match="must be square, with sides of a multiple of 16"):
            InternVLBackbone(replace(checkpoint, image_processor=images))
    changed = open_backbone(folder)
    changed.checkpoint.image_processor.min_patches = 3
    assert changed.num_visual_tokens((64, 48), 12) == 4
    with pytest.raises(ValueError, match="is too long: with 52 visual tokens"):
        backbone.check_question("one " * 9000)
