"""Qwen2.5-VL and Qwen3-VL with random weights: equal to `generate` from pixels, one question at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from m3_backbone.decoding.sampling import Draw
from m3_backbone.ladder import coinciding_scales
from m3_backbone.native.qwen_vl import QwenVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from tests.m3_backbone.native.reference import draw_noise, generate_greedily, record_vision

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
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = backbone.processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens)
    ids = backbone.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    types = (ids == config.image_token_id).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **pixels}


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
        inputs = inputs_of(backbone, image, question, scale)
        length = inputs["input_ids"].shape[1]
        for name, value in (("input_ids", reference), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            more = torch.tensor(value).expand(1, len(reference))
            inputs[name] = torch.cat([inputs[name], more], dim=1)
        backbone.model.model.rope_deltas = None
        with torch.no_grad():
            log_probs = backbone.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
        expected = -log_probs[range(len(reference)), reference].mean().item()
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


def test_sampled_answers_depend_on_their_keys_only(case):
    backbone, question = case.backbone, QUESTIONS[0]
    draws = [Draw(2.0, (number,)) for number in range(4)]
    together = backbone.answer([case.encoded[0]] * 4, [question] * 4, 16, draws=draws)
    alone = [backbone.answer([case.encoded[0]], [question], 16, draws=[draw])[0] for draw in draws]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({tuple(answer.token_ids) for answer in together}) > 1


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


def test_flops_equal_those_that_pytorch_counts(case, monkeypatch):
    backbone = QwenVLBackbone(
        case.backbone.checkpoint, scales=SCALES, device="cpu", dtype="float32", attn_implementation="eager"
    )
    for image in case.images:
        for scale in SCALES:
            with FlopCounterMode(display=False) as vision:
                backbone.run_vision([image], scale)
            assert backbone.vision_flops(image.size, scale) == vision.get_total_flops()
            inputs = inputs_of(backbone, image, QUESTIONS[0], scale)
            with torch.no_grad(), FlopCounterMode(display=False) as whole:
                backbone.model(**inputs, logits_to_keep=1)
            prefill = whole.get_total_flops() - vision.get_total_flops()
            assert backbone.prefill_flops(image.size, QUESTIONS[0], scale) == prefill


def test_a_vision_pass_runs_once_for_all_questions_and_only_at_the_scales_that_are_needed(case, monkeypatch):
    backbone = case.backbone
    passes = record_vision(backbone, monkeypatch)
    encoded = backbone.encode(case.images)
    backbone.compute_features(encoded, backbone.feature_scales)
    backbone.answer([image for image in encoded for _ in QUESTIONS], QUESTIONS * len(SIZES), 4)
    assert sorted(passes) == sorted((size, 4) for size in SIZES)
    passes.clear()
    # The smallest picture has the same tokens at 16 and at 64.
    for scale in (16, 64):
        backbone.answer(encoded, QUESTIONS[:1] * len(SIZES), scale)
    assert ((90, 80), 64) not in passes and len(passes) == 2 * len(SIZES) - 1


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
