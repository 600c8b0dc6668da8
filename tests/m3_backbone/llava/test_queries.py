"""Learned queries: the authors' module by its recording, and a small random checkpoint in their layout."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel

from m3_backbone.ladder import coinciding_scales
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.llava.queries import QueryTransformer, describe_queries, query_scales
from m3_backbone.loading.checkpoint import Checkpoint, load_m3
from tests.paths import FIXTURES
from tests.query_checkpoint import GROUPED, PREFIX, write_query_checkpoint

LADDER = (2, 4, 8, 16, 36, 64, 144, 256)
QUESTIONS = ["What color is the circle?", "How many?", "Why"]
COUNTS = (1, 2, 4, 8, 16, 36, 64, 144, 256)


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "mqt_abstractor.safetensors")


@pytest.fixture(scope="module")
def transformer(recorded):
    module = QueryTransformer(64, 96)
    prefix = "query_abstractor."
    state = {name.removeprefix(prefix): x for name, x in recorded.items() if name.startswith(prefix)}
    module.load_state_dict(state)
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_query_checkpoint(tmp_path_factory.mktemp("mqt") / "mqt")


@pytest.fixture(scope="module")
def backbone(folder):
    return LlavaBackbone(folder, dtype="float32", device="cpu", max_new_tokens=6)


@pytest.fixture(scope="module")
def images():
    files = [GROUPED / "image0.png", FIXTURES / "official_m3" / "llava15" / "image1.png"]
    return [*(Image.open(file).convert("RGB") for file in files), Image.new("RGB", (30, 90), "red")]


@pytest.mark.parametrize("count", COUNTS)
@torch.no_grad()
def test_the_first_tokens_are_those_of_the_authors_code(recorded, transformer, count):
    expected = recorded[f"tokens.{count}"]
    tokens = transformer(recorded["features"])[:, :count]
    assert (tokens - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.no_grad()
def test_positions_are_interpolated_to_the_grid_of_patches(transformer):
    keys = interpolate(
        transformer.pos_embed.T.reshape(1, 64, 16, 16), size=(9, 9), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(transformer._positions(81), keys[0].flatten(1).T)
    torch.testing.assert_close(transformer._positions(256), transformer.pos_embed)
    with pytest.raises(ValueError, match="72 patch features are not a square grid"):
        transformer(torch.zeros(1, 72, 64))


def test_ladders():
    assert query_scales(256) == LADDER
    assert query_scales(64) == (2, 4, 8, 16, 36, 64)
    assert query_scales(256, [255, 1, 3, 3]) == (1, 3, 255)
    for scales, message in (([0], "scale 0"), ([257], "choose from 1 to 256"), ([], "at least one scale")):
        with pytest.raises(ValueError, match=message):
            query_scales(256, scales)


def test_statistics_of_tokens_by_hand():
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [5.0, 2.0]]])  # mean (2, 2)
    statistics = describe_queries(tokens, [1, 2, 4])
    assert statistics == pytest.approx(
        {
            "tower/prefix_cosine_1": 0.5**0.5,
            "tower/prefix_cosine_2": 1,
            "tower/norm_mean": (9 + 29**0.5) / 4,
            "tower/norm_std": 3**0.5 / 4 * (29**0.5 - 3),
            "tower/norm_max": 29**0.5,
            "tower/mean_cosine": (3 * 0.5**0.5 + 7 / 58**0.5) / 4,
        }
    )
    # Without the tokens behind the finest scale.
    assert describe_queries(torch.cat([tokens, 9 * tokens], dim=1), [1, 2, 4]) == statistics


def test_the_ladder_costs_and_features(backbone, images):
    assert backbone.scales == LADDER == backbone.model.scales
    assert backbone.feature_scales == (2, 4, 8) and backbone.family == "pooled"
    assert [backbone.num_visual_tokens((70, 90), scale) for scale in LADDER] == list(LADDER)
    assert coinciding_scales(backbone, (70, 90)) == dict(zip(LADDER, LADDER, strict=True))
    first, _, third = backbone.compute_features(backbone.encode(images), (2, 8))
    assert first.visual[8].shape == (8, 48) and (first.visual[8][:2] == first.visual[2]).all()
    names = [f"tower/prefix_cosine_{scale}" for scale in LADDER[:-1]]
    names += ["tower/norm_mean", "tower/norm_std", "tower/norm_max", "tower/mean_cosine"]
    assert [name for name in first.statistics if name.startswith("tower/")] == names
    assert first.is_finite() and first.statistics["tower/norm_mean"] != third.statistics["tower/norm_mean"]


@torch.no_grad()
def test_visual_tokens_are_the_queries_over_the_patches_of_the_tower(backbone, folder, images):
    weights = load_file(folder / "model.safetensors")
    queries = QueryTransformer(32, 48)
    queries.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)})
    tower = CLIPVisionModel(backbone.checkpoint.config.vision_config)
    prefix = "model.vision_tower.vision_tower.vision_model."
    named = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    tower.load_state_dict({k: v for k, v in named.items() if not k.endswith("position_ids")})
    pixels = backbone.processor.images(images[1])
    patches = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    for scale in (2, 36, 256):
        (tokens,) = backbone.visual_tokens(backbone.encode(images[1:2]), scale)
        torch.testing.assert_close(tokens, queries(patches)[0, :scale])


@pytest.mark.long
def test_answers_are_those_of_generate_at_every_scale_and_in_every_batch(backbone, images):
    encoded = backbone.encode(images)
    rows = [(i, question) for question in QUESTIONS for i in range(len(images))]
    for scale in LADDER:
        answers = backbone.answer([encoded[i] for i, _ in rows], [q for _, q in rows], scale)
        for (i, question), answer in zip(rows, answers, strict=True):
            (single,) = backbone.answer(backbone.encode(images[i : i + 1]), [question], scale)
            assert single.token_ids == answer.token_ids
            assert single.confidence == pytest.approx(answer.confidence, rel=1e-4)
        i, question = rows[scale % len(rows)]
        inputs = backbone.processor(images[i], backbone.processor.template.format(question), scale)
        output = backbone.model.generate(**inputs, token_scale=scale, max_new_tokens=6, do_sample=False)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == answers[scale % len(rows)].token_ids


def test_a_scale_that_is_not_on_the_ladder_is_refused(backbone, images):
    encoded = backbone.encode(images[:1])
    for scale in (0, 100, 257):
        with pytest.raises(ValueError, match="choose one of 2, 4, 8, 16, 36, 64, 144, 256"):
            backbone.visual_tokens(encoded, scale)
    pixels = backbone.processor.preprocess(images[:1])
    with pytest.raises(ValueError, match=r"one of 1, 2, \.\.\., 256"):
        backbone.model(input_ids=torch.zeros(1, 1, dtype=torch.long), **pixels)


@pytest.mark.parametrize("source", [GROUPED, FIXTURES / "official_m3" / "llava15"])
def test_the_names_of_the_weights_are_enough(tmp_path, source):
    folder = write_query_checkpoint(tmp_path / "mqt", source, query_abstractor_type=None)
    assert Checkpoint.open(folder).scales == LADDER
    backbone = LlavaBackbone(folder, scales=[256, 7, 7, 1])
    assert backbone.scales == (1, 7, 256) == backbone.model.scales == backbone.feature_scales
    (answer,) = backbone.answer(backbone.encode([Image.new("RGB", (50, 40))]), ["Why?"], 7)
    assert answer.token_ids
    with pytest.raises(ValueError, match=r"backbone\.scales=\[576\]: scale 576 is not possible with 256"):
        Checkpoint.open(folder, scales=[576])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"query_abstractor_type": "qformer"}, "query_abstractor_type='qformer'; supported: 'matry_query'"),
        ({"mm_vision_select_feature": "cls_patch"}, "supported: 'patch'"),
        ({"matryoshka_vis_token_scale": [1, 300]}, r"scale 300 .* give other scales with backbone\.scales"),
        (
            {
                "mm_patch_merge_type": "spatial_unpad",
                "image_aspect_ratio": "anyres",
                "image_grid_pinpoints": [[448, 448]],
            },
            "tiles and learned queries",
        ),
    ],
)
def test_other_configurations_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint.open(write_query_checkpoint(tmp_path / "mqt", **config))


def test_wrong_weights_are_named(tmp_path):
    folder = write_query_checkpoint(tmp_path / "mqt")
    weights = load_file(folder / "model.safetensors")
    name = f"{PREFIX}attn.in_proj_weight"
    weight = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing: {name}$"):
        load_m3(folder)
    weights[name] = weight[:-1].contiguous()
    weights["model.mm_projector.0.bias"] = torch.zeros(48)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_m3(folder)
    assert f"wrongly shaped: {name}" in str(error.value)
    assert "unexpected: model.mm_projector.0.bias" in str(error.value)


def test_the_fingerprint_depends_on_the_queries(tmp_path, backbone):
    folder = write_query_checkpoint(tmp_path / "mqt")
    assert LlavaBackbone(folder, dtype="float32", max_new_tokens=6).fingerprints == backbone.fingerprints
    weights = load_file(folder / "model.safetensors")
    weights[f"{PREFIX}query"][-1] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint.open(folder).fingerprint != backbone.checkpoint.fingerprint


def test_it_survives_saving_in_our_own_layout(backbone, images, tmp_path):
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.query_abstractor.query" in stored and not any("projector" in name for name in stored)
    reloaded = LlavaBackbone(tmp_path, dtype="float32", device="cpu", max_new_tokens=6)
    assert reloaded.processor.images == backbone.processor.images and reloaded.scales == LADDER
    assert reloaded.fingerprints["prompt"] == backbone.fingerprints["prompt"]
    for scale in (2, 144):
        answers = [b.answer(b.encode(images), QUESTIONS, scale) for b in (backbone, reloaded)]
        assert [dataclasses.asdict(a) for a in answers[0]] == [dataclasses.asdict(a) for a in answers[1]]
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("num_query_heads", 5, "width 32 cannot have 5 heads"),
        ("num_queries", 200, "200 queries are not a square"),
        ("num_queries", -1, "num_queries is -1 but should be a whole number from 1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ValueError, match=message):
            Checkpoint.open(tmp_path)


def test_its_images_cannot_be_shrunk(folder):
    with pytest.raises(ValueError, match="tiles or learned queries"):
        DownsampledLlavaBackbone(folder)
