"""Qwen2.5-VL and Qwen3-VL with random weights: equal to `generate` from pixels, one question at a time."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from m3_backbone.ladder import coinciding_scales
from m3_backbone.native.qwen_vl import QwenVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from tests.m3_backbone.native.reference import draw_noise, generate_greedily, make_prompt, score_reference

SIZES = ((640, 480), (100, 300), (90, 80))
QUESTIONS = ("What color is the large square?", "How many?")
SCALES = (4, 16, 64)
MAX_NEW_TOKENS = 6


@dataclasses.dataclass
class Case:
    """A random model with pictures of several shapes."""

    backbone: QwenVLBackbone
    images: list[Image.Image]
    encoded: list


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def case(request, tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    backbone = QwenVLBackbone(
        folder, scales=SCALES, device="cpu", dtype="float32", max_new_tokens=MAX_NEW_TOKENS
    )
    images = draw_noise(SIZES)
    return Case(backbone, images, backbone.encode(images))


def inputs_of(backbone, image, question, scale):
    """Inputs of the model from pixels, as its own processor makes them."""
    checkpoint, config = backbone.checkpoint, backbone.checkpoint.config
    smallest, largest = backbone._limits(image.size, scale)
    size = {"shortest_edge": smallest, "longest_edge": largest}
    pixels = checkpoint.image_processor(images=[image], size=size, return_tensors="pt")
    num_tokens = int(pixels["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
    expanded = "<|image_pad|>" * num_tokens
    return {**make_prompt(backbone, question, "<|image_pad|>", expanded), **pixels}


def generate(backbone, image, question, scale):
    """Token ids, log-probability and margin of the greedy answer of `generate`."""
    inputs = inputs_of(backbone, image, question, scale)
    return generate_greedily(backbone.model, inputs, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def generated(case):
    """(token ids, log-probability, margin) by picture, question and scale."""
    return {
        (number, question, scale): generate(case.backbone, image, question, scale)
        for number, image in enumerate(case.images)
        for question in QUESTIONS
        for scale in SCALES
    }


@pytest.mark.long
@pytest.mark.parametrize("scale", SCALES)
def test_a_batch_of_questions_gives_the_answers_of_generate(case, generated, scale):
    pairs = [(number, question) for number in range(len(SIZES)) for question in QUESTIONS]
    answers = case.backbone.answer(
        [case.encoded[number] for number, _ in pairs], [question for _, question in pairs], scale
    )
    for (number, question), answer in zip(pairs, answers, strict=True):
        ids, log_prob, _ = generated[number, question, scale]
        assert answer.token_ids == ids
        assert np.log(answer.confidence) == pytest.approx(log_prob, abs=1e-4)


def test_references_have_the_likelihood_that_the_model_gives_them(case):
    backbone, question, scale = case.backbone, QUESTIONS[0], 16
    reference = backbone.processor.answer_ids("a red one")
    assert reference[-1] == backbone.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number, image in enumerate(case.images):
        backbone.model.model.rope_deltas = None
        expected = score_reference(backbone, inputs_of(backbone, image, question, scale), reference)
        (answer,) = backbone.answer([case.encoded[number]], [question], scale, references=[["a red one"]])
        assert answer.nll == pytest.approx(expected, abs=1e-4)
        assert answer.reference_tokens == len(reference)


def test_drafts_change_no_answer_and_save_its_decoding(case, generated):
    backbone = case.backbone
    coarse, fine = (backbone.answer(case.encoded, QUESTIONS[:1] * len(SIZES), s) for s in (4, 64))
    before = dataclasses.replace(backbone.work)
    again = backbone.answer(case.encoded, QUESTIONS[:1] * len(SIZES), 64, drafts=fine)
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in fine]
    assert backbone.work.since(before).decoded_tokens == 0
    other = backbone.answer(case.encoded, QUESTIONS[:1] * len(SIZES), 64, drafts=coarse)
    assert [answer.token_ids for answer in other] == [
        generated[number, QUESTIONS[0], 64][0] for number in range(len(SIZES))
    ]


@pytest.mark.parametrize(
    ("model_type", "image_size", "counts"),
    [
        # Caps of 4, 16, 64, 256 and 1024 tokens; the values are those of the processors on real images.
        ("qwen2_5_vl", (640, 480), [2, 12, 54, 234, 391]),
        ("qwen3_vl", (640, 480), [2, 12, 54, 234, 300]),
        ("qwen3_vl", (1700, 2200), [2, 12, 63, 252, 1008]),
    ],
)
def test_visual_tokens_are_known_from_the_size_of_the_image(tmp_path, model_type, image_size, counts):
    folder = write_random_checkpoint(tmp_path, model_type)
    backbone = QwenVLBackbone(folder, scales=(4, 16, 64, 256, 1024))
    assert [backbone.num_visual_tokens(image_size, scale) for scale in backbone.scales] == counts
    assert "model" not in vars(backbone)
    image = Image.new("RGB", image_size)
    for scale, count in zip(backbone.scales, counts, strict=True):
        inputs = inputs_of(backbone, image, "What?", scale)
        assert int(inputs["mm_token_type_ids"].sum()) == count


def test_batches_filled_by_tokens_give_the_same_answers(case, generated):
    backbone = QwenVLBackbone(
        case.backbone.checkpoint,
        scales=SCALES,
        device="cpu",
        dtype="float32",
        max_new_tokens=MAX_NEW_TOKENS,
        batch_tokens=120,
    )
    encoded = backbone.encode(case.images)
    pairs = [(number, question) for number in range(len(SIZES)) for question in QUESTIONS]
    answers = backbone.answer([encoded[n] for n, _ in pairs], [question for _, question in pairs], 64)
    for (number, question), answer in zip(pairs, answers, strict=True):
        assert answer.token_ids == generated[number, question, 64][0]


def test_what_cannot_be_asked_is_refused(case, tmp_path):
    backbone = case.backbone
    with pytest.raises(ValueError, match="too long: its sides may differ by a factor of 200"):
        backbone.encode([Image.new("RGB", (900, 3))])
    for question, reason in (("", "empty"), ("<|im_end|> hi", "control token"), ("a " * 5000, "too long")):
        with pytest.raises(ValueError, match=reason):
            backbone.answer(case.encoded[:1], [question], 4)
    with pytest.raises(ValueError, match="4, 16, 64"):
        backbone.num_visual_tokens((10, 10), 5)
    with pytest.raises(ValueError, match="positive numbers of visual tokens"):
        QwenVLBackbone(backbone.checkpoint, scales=())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'qwen2_5_vl' or 'qwen3_vl'"):
        QwenVLBackbone(tmp_path)


def test_thin_images_have_no_more_tokens_at_a_lower_cap(case):
    # At a cap of 16, the image processor enlarges 640 x 20 pixels to more tokens than at a cap of 64.
    for size in ((640, 20), (500, 16), (20, 640)):
        counts = [case.backbone.num_visual_tokens(size, scale) for scale in SCALES]
        assert counts == sorted(counts)
        coinciding = coinciding_scales(case.backbone, size)
        assert len(set(coinciding.values())) == len(set(counts))
        (encoded,) = case.backbone.encode([Image.new("RGB", size, "red")])
        answers = {scale: case.backbone.answer([encoded], QUESTIONS[:1], scale)[0] for scale in SCALES}
        assert all(answers[scale] == answers[coarse] for scale, coarse in coinciding.items())
