"""Images shrunk before the tower instead of pooled tokens, on tiny_m3 and on the official checkpoint."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from m3_backbone.conformance.costs import flops_are_those_of_the_counter, vision_flops_fit_the_family
from m3_backbone.conformance.subject import Subject, draw_image
from m3_backbone.conformance.vision import vision_runs_for_the_scale_alone
from m3_backbone.ladder import coinciding_scales
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.loading.checkpoint import load_m3
from tests.m3_backbone.native.reference import check_downsampled
from tests.paths import FIXTURES
from tests.query_checkpoint import write_query_checkpoint

OFFICIAL = FIXTURES / "official_m3"
QUESTIONS = ["what color is the circle?", "how many squares are there?", "is there a star?"]


@pytest.fixture(scope="module")
def pooled():
    return LlavaBackbone("tiny_m3", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def shrunk():
    return DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu", image_batch_size=2)


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).integers(0, 256, (150, 240, 3), dtype=np.uint8)
    official = Image.open(OFFICIAL / "llava15" / "image0.png").convert("RGB")
    return [Image.fromarray(noise), official, Image.new("RGB", (9, 70), "red")]


def test_the_finest_scale_is_that_of_pooling(pooled, shrunk, images):
    finest = pooled.scales[-1]
    answers = [b.answer(b.encode(images), QUESTIONS, finest) for b in (pooled, shrunk)]
    assert [dataclasses.asdict(a) for a in answers[0]] == [dataclasses.asdict(a) for a in answers[1]]
    tokens = [b.visual_tokens(b.encode(images), finest) for b in (pooled, shrunk)]
    torch.testing.assert_close(torch.stack(tokens[0]), torch.stack(tokens[1]))


@torch.no_grad()
def test_the_tower_sees_the_shrunk_image(shrunk, images):
    """Against transformers' own interpolation of position embeddings, image by image."""
    tower, side, patch = shrunk.model.model.vision_tower, 3, shrunk.processor.images.patch_size
    image = images[0].crop((0, 0, 150, 150))  # a square, which needs no padding
    small = np.asarray(image.resize((side * patch, side * patch), Image.Resampling.BICUBIC))
    images_of = shrunk.processor.images
    pixels = (small / 255 - np.array(images_of.mean)) / np.array(images_of.std)
    pixels = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
    outputs = tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    features = outputs.hidden_states[shrunk.checkpoint.config.vision_feature_layer][:, 1:]
    expected = shrunk.model.model.multi_modal_projector(features)[0]
    (tokens,) = shrunk.visual_tokens(shrunk.encode([image]), side**2)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_enlarged_images_are_encoded_whole_and_pooled(pooled, shrunk, images):
    """Against Pillow and the pooled backbone; at the finest scale nothing is lost."""
    enlarged = DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu", downsampling="enlarged")
    square = images[0].crop((0, 0, 150, 150))  # needs no padding
    size, patch = shrunk.processor.images.image_size, shrunk.processor.images.patch_size
    for scale, side in ((9, 3), (144, 12)):
        small = square.resize((side * patch, side * patch), Image.Resampling.BICUBIC)
        (expected,) = pooled.visual_tokens(
            pooled.encode([small.resize((size, size), Image.Resampling.BICUBIC)]), scale
        )
        (tokens,) = enlarged.visual_tokens(enlarged.encode([square]), scale)
        torch.testing.assert_close(tokens, expected)
    finest = [b.visual_tokens(b.encode(images), 144) for b in (pooled, enlarged)]
    torch.testing.assert_close(torch.stack(finest[0]), torch.stack(finest[1]))
    costs = {enlarged.vision_flops((9, 70), scale) for scale in enlarged.scales}
    assert costs == {pooled.vision_flops((9, 70), 1)} and enlarged.family == "native"
    assert len({b.fingerprints["prompt"] for b in (pooled, shrunk, enlarged)}) == 3
    saved = [b.saved_arguments()["downsampling"] for b in (shrunk, enlarged)]
    assert saved == ["shrunk", "enlarged"]
    former = DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu", enlarge=True)
    assert (
        former.fingerprints == enlarged.fingerprints
        and former.saved_arguments() == enlarged.saved_arguments()
    )


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("kind", ["tiles", "queries"])
def test_tiles_and_queries_encode_the_enlarged_image(kind, images, tmp_path):
    """Against the pooled backbone on Pillow's images: as many patches of pixels as visual tokens."""
    folder = (
        OFFICIAL / "llavanext" / "checkpoint" if kind == "tiles" else write_query_checkpoint(tmp_path / "q")
    )
    settings: Any = {"scales": [1, 9], "dtype": "float32", "device": "cpu", "max_new_tokens": 4}
    pooled, enlarged = (
        LlavaBackbone(folder, **settings),
        DownsampledLlavaBackbone(folder, downsampling="enlarged", **settings),
    )
    patch_size = pooled.processor.images.patch_size
    for scale in pooled.scales:
        check_downsampled(pooled, enlarged, images, scale, questions=QUESTIONS, patch_size=patch_size)
    (features,) = enlarged.compute_features(enlarged.encode(images[:1]), [1])
    assert "tower/norm_mean" in features.statistics


@pytest.mark.long
@pytest.mark.parametrize(
    "check", [vision_flops_fit_the_family, flops_are_those_of_the_counter, vision_runs_for_the_scale_alone]
)
def test_enlarged_images_conform(check):
    def open_enlarged():
        return DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu", downsampling="enlarged")

    check(Subject(open_enlarged, {"wide": draw_image((448, 320))}))


def test_each_scale_has_a_vision_pass_that_runs_once_when_it_is_needed(shrunk, images, monkeypatch):
    passes = []
    inner = shrunk.model.model
    encode = inner.encode_shrunk

    def record(pixels):
        passes.append(pixels.shape)
        return encode(pixels)

    monkeypatch.setattr(inner, "encode_shrunk", record)
    patch = shrunk.processor.images.patch_size
    encoded = shrunk.encode(images[:2])
    assert not passes
    shrunk.compute_features(encoded, shrunk.feature_scales)
    assert passes == [(2, 3, patch, patch)]
    shrunk.answer([*encoded, encoded[0]], QUESTIONS, 9)
    shrunk.answer(encoded, QUESTIONS[:2], 1)
    shrunk.answer(encoded, QUESTIONS[:2], 9, references=[["red"]] * 2)
    assert passes == [(2, 3, patch, patch), (2, 3, 3 * patch, 3 * patch)]


@pytest.mark.long
def test_batches_change_no_answer(shrunk, images):
    encoded = shrunk.encode(images)
    rows = [(i, question) for question in QUESTIONS for i in range(len(images))]
    for scale in shrunk.scales:
        answers = shrunk.answer([encoded[i] for i, _ in rows], [q for _, q in rows], scale)
        for (i, question), answer in zip(rows, answers, strict=True):
            (single,) = shrunk.answer(shrunk.encode([images[i]]), [question], scale)
            assert single.token_ids == answer.token_ids
            assert single.confidence == pytest.approx(answer.confidence, rel=1e-4)


def test_costs_and_description(pooled, shrunk, images):
    assert shrunk.family == "native" and shrunk.scales == pooled.scales
    assert shrunk.feature_scales == (1,)
    assert coinciding_scales(shrunk, (9, 70)) == {scale: scale for scale in shrunk.scales}
    flops = [shrunk.vision_flops((9, 70), scale) for scale in shrunk.scales]
    assert flops == sorted(set(flops)) and flops[-1] == pooled.vision_flops((9, 70), 1)
    for scale in shrunk.scales:
        costs = [b.prefill_flops((9, 70), QUESTIONS[0], scale) for b in (pooled, shrunk)]
        assert costs[0] == costs[1]
    (features,) = shrunk.compute_features(shrunk.encode(images[:1]), [1, 9])
    assert features.visual[9].shape == (9, shrunk.token_embeddings().shape[1])
    tower = [name for name in features.statistics if name.startswith("tower/")]
    assert tower == ["tower/norm_mean", "tower/norm_std", "tower/norm_max", "tower/neighbour_cosine"]
    fingerprints = [b.fingerprints for b in (pooled, shrunk)]
    assert {key for key in fingerprints[0] if fingerprints[0][key] != fingerprints[1][key]} == {"prompt"}


@torch.no_grad()
def test_vision_flops_are_those_of_the_counter():
    folder = FIXTURES / "reference_m3" / "grouped_query_bin" / "checkpoint"  # features of the last layer
    model, _ = load_m3(folder, scales=[1, 16], dtype=torch.float32, attn_implementation="eager")
    backbone = DownsampledLlavaBackbone(folder, scales=[1, 16, 256], device="cpu")
    for scale in backbone.scales:
        pixels = backbone.preprocessor_at(scale)(Image.new("RGB", (50, 20)))
        with FlopCounterMode(display=False) as counter:
            model.model.encode_shrunk(pixels)
        assert counter.get_total_flops() == backbone.vision_flops((50, 20), scale)


def test_scales_and_checkpoints_that_cannot_be_resized(shrunk, images):
    with pytest.raises(ValueError, match="scale 5 is not on the ladder of this backbone: choose one of 1, 9"):
        shrunk.answer(shrunk.encode(images[:1]), QUESTIONS[:1], 5)
    with pytest.raises(
        ValueError, match=r"has tiles or learned queries: .* shrunk images: give downsampling=enlarged"
    ):
        DownsampledLlavaBackbone(OFFICIAL / "llavanext" / "checkpoint")
    with pytest.raises(ValueError, match="the question is empty"):
        shrunk.answer(shrunk.encode(images[:1]), [" "], 9)
