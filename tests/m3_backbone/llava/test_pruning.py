"""Rankings of visual tokens against other code, and backbones that keep the first of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from m3_backbone.conformance.answers import batches_change_nothing
from m3_backbone.conformance.costs import flops_are_those_of_the_counter
from m3_backbone.conformance.inputs import unknown_scales_are_refused
from m3_backbone.conformance.state import features_are_well_formed
from m3_backbone.conformance.subject import Subject, draw_image
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.pruned import PrunedLlavaBackbone
from m3_backbone.llava.pruning import (
    PruningMethod,
    count_contextual,
    keep,
    merge,
    rank_at_random,
    rank_by_attention,
    rank_by_diversity,
)
from tests.paths import FIXTURES
from tests.query_checkpoint import write_query_checkpoint

METHODS = ("class_attention", "patch_attention", "diversity", "random", "visionzip")
PLAIN = FIXTURES / "official_m3" / "llava15" / "checkpoint"  # features of the last layer but one
TILED = FIXTURES / "official_m3" / "llavanext" / "checkpoint"
QUESTIONS = ["what color is the circle?", "how many squares are there?"]


def open_pruned(checkpoint="tiny_m3", **arguments):
    return PrunedLlavaBackbone(
        checkpoint, **{"dtype": "float32", "device": "cpu", "max_new_tokens": 3, **arguments}
    )


@pytest.fixture(scope="module", params=METHODS)
def pruned(request):
    return open_pruned(pruning=request.param)


@pytest.fixture(scope="module")
def subject(pruned):
    pictures = {"wide": draw_image((448, 320)), "tall": draw_image((160, 360))}
    return Subject(lambda: open_pruned(pruning=pruned.pruning), pictures)


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).integers(0, 256, (150, 240, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.fromarray(noise[:90, :40])]


@pytest.mark.parametrize("name", ["square", "small"])
def test_diversity_is_what_the_authors_select(name):
    """Against the selections of the authors' function, as it returns them for every number of tokens."""
    fixture = load_file(FIXTURES / "divprune.safetensors")
    (order,) = rank_by_diversity([fixture[f"{name}.features"]])
    prefix = f"{name}.selected."
    sizes = [int(key.removeprefix(prefix)) for key in fixture if key.startswith(prefix)]
    assert len(sizes) >= 4
    for size in sizes:
        assert order[:size].tolist() == fixture[f"{prefix}{size}"].tolist()
    assert sorted(order.tolist()) == list(range(len(order)))


def test_diversity_by_hand():
    """Directions of 0, 10, 90 and 200 degrees.

    The nearest other direction of 200 is 110 degrees away, farther than that of any other; 10 is farthest
    from 200, and 90 is 80 degrees from 10, while 0 is 10 degrees from it.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 200.0]))
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [2.0], [9.0]])
    longer = torch.zeros(5, 2)  # equal tokens, of another number
    orders = rank_by_diversity([tokens, longer, tokens.flip(0)])
    assert orders[0].tolist() == [3, 1, 2, 0] and orders[2].tolist() == [0, 2, 1, 3]
    assert sorted(orders[1].tolist()) == [0, 1, 2, 3, 4]
    assert keep(tokens, torch.tensor([3, 1, 2, 0]), 2).tolist() == tokens[[1, 3]].tolist()


def test_ties_of_attention_keep_the_order_of_the_grid():
    assert rank_by_attention(torch.tensor([[0.1, 0.4, 0.1, 0.4]]), torch.arange(4)).tolist() == [1, 3, 0, 2]


def test_tiles_take_turns_and_newlines_come_last():
    """Three tiles of two patches; the last patch is padding, and a newline is in between."""
    attention = torch.tensor([[0.1, 0.9], [0.01, 0.02], [0.5, 0.6]])
    places = torch.tensor([0, 1, 2, 3, -1, 4])
    ranked = [places[position].item() for position in rank_by_attention(attention, places)]
    assert ranked == [1, 3, 4, 0, 2, -1]


def test_random_orders_depend_on_the_pixels_alone(images):
    first, other = (rank_at_random(image, 144).tolist() for image in images)
    assert first == rank_at_random(images[0].copy(), 144).tolist() != other
    assert sorted(first) == sorted(other) == list(range(144))
    assert (
        rank_at_random(Image.new("RGB", (4, 6)), 144).tolist()
        != rank_at_random(Image.new("RGB", (6, 4)), 144).tolist()
    )


@torch.no_grad()
@pytest.mark.parametrize("checkpoint", ["tiny_m3", PLAIN])
@pytest.mark.parametrize("method", METHODS[:2])
def test_attention_is_that_of_transformers(checkpoint, method, images):
    """Against the attention weights that the tower returns with eager attention."""
    backbone = open_pruned(checkpoint, pruning=method, attn_implementation="sdpa")
    encoded = backbone.encode(images)
    tower = backbone.model.model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = backbone.processor.preprocess(images)["pixel_values"]
    attentions = tower(pixels, output_attentions=True).attentions
    layer = backbone.checkpoint.config.vision_feature_layer
    weights = attentions[layer]  # counted from the end, as the features are
    for image, weight in zip(encoded, weights, strict=True):
        if method == "class_attention":
            received = weight[:, 0, 1:].sum(dim=0)
        else:
            between = weight.mean(dim=0)[1:, 1:].clone().fill_diagonal_(0)
            received = between.sum(dim=0) / (len(between) - 1)
        ranked = received[image.order]
        # Close values may change places by rounding.
        torch.testing.assert_close(ranked, received.sort(descending=True).values, rtol=1e-4, atol=1e-7)


def test_contextual_tokens_by_hand():
    """Of six patches, 4 and 1 are dominant. Among 0, 2, 3 and 5, every second one starts a group: 0 and 3."""
    features = torch.tensor([[1.0], [9.0], [3.0], [5.0], [9.0], [7.0]])
    keys = torch.tensor([[1.0, 0], [0, 0], [0.1, 2], [0, 1], [0, 0], [3, 0.1]])
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    # Patch 2 is closer in direction to 3, patch 5 to 0.
    assert merge(features, keys, order, 2, 2).tolist() == [[4.0], [4.0]]
    assert merge(features, keys, order, 2, 1).tolist() == [[4.0]]
    assert [count_contextual(scale, 576) for scale in (1, 3, 4, 9, 36, 64, 128, 192, 576)] == [
        0, 0, 1, 1, 6, 10, 20, 30, 0
    ]  # fmt: skip


def test_visionzip_adds_means_of_the_other_patches(images):
    merged, dominant = (open_pruned(pruning=method) for method in ("visionzip", "class_attention"))
    tokens, kept = (
        [b.visual_tokens(b.encode(images), scale)[0] for scale in (9, 36)] for b in (merged, dominant)
    )
    grid = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    (mean,) = grid.visual_tokens(grid.encode(images[:1]), 1)
    for own, others, count in zip(tokens, kept, (1, 6), strict=True):
        assert len(own) == len(others)
        # The dominant tokens are among those that are kept without contextual ones.
        assert all((others == token).all(dim=1).any() for token in own[:-count])
        assert not any((others == token).all(dim=1).any() for token in own[-count:])
    # The one contextual token of nine is nearly the mean of all patches; the projector is not linear.
    assert torch.cosine_similarity(tokens[0][-1], mean[0], dim=0) > 0.9


@pytest.mark.parametrize("method", METHODS[:4])
def test_a_coarser_set_is_part_of_the_finer_one_and_in_the_order_of_the_grid(method, images):
    pruned = open_pruned(pruning=method)
    grid = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    whole = grid.visual_tokens(grid.encode(images), 144)
    encoded = pruned.encode(images)
    finer = [range(144)] * 2
    for scale in reversed(pruned.scales):
        kept = []
        for tokens, all_tokens, allowed in zip(
            pruned.visual_tokens(encoded, scale), whole, finer, strict=True
        ):
            distance, position = (tokens[:, None] - all_tokens).abs().amax(dim=2).min(dim=1)
            assert float(distance.max()) < 1e-3
            assert position.tolist() == sorted(set(position.tolist())) and len(position) == scale
            assert set(position.tolist()) <= set(allowed)
            kept.append(position.tolist())
        finer = kept
    with pytest.raises(ValueError, match="scale 5 is not on the ladder of this backbone: choose one of 1, 9"):
        pruned.visual_tokens(encoded, 5)


@pytest.mark.long
def test_answers_are_those_of_generate(pruned, images):
    for scale in (9, 144):
        answers = pruned.answer(pruned.encode(images), QUESTIONS, scale)
        inputs = pruned.generate_inputs(images, QUESTIONS, scale)
        assert len(inputs["input_ids"][1]) >= scale
        generated = pruned.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        new = [row[-generated.shape[1] + inputs["input_ids"].shape[1] :].tolist() for row in generated]
        for answer, ids in zip(answers, new, strict=True):
            assert ids[: len(answer.token_ids)] == answer.token_ids


def test_flops_of_the_ranking_by_hand():
    """tiny_m3 has 144 patches, 192 wide in the tower and in the decoder."""
    num_patches, width = 144, 192
    expected: dict[PruningMethod, int] = {
        "class_attention": 2 * 146 * width**2 + 2 * 145 * width,
        "patch_attention": 4 * 145 * width**2 + 2 * 145**2 * width,
        "diversity": 2 * num_patches**2 * width,
        "random": 0,
    }
    # One contextual token of 9 from 136 patches, and 6 of 36 from 114; a head has a size of 64.
    similarities = 2 * 64 * (1 * 136 + 6 * 114)
    expected["visionzip"] = expected["class_attention"] + similarities + 2 * 7 * 2 * width**2
    for method, flops in expected.items():
        backbone = open_pruned(pruning=method)
        assert backbone.vision_flops((9, 70), 1) == vision_flops(backbone.checkpoint.config) + flops


@pytest.mark.long
@pytest.mark.parametrize(
    "check",
    [
        flops_are_those_of_the_counter,
        batches_change_nothing,
        features_are_well_formed,
        unknown_scales_are_refused,
    ],
)
def test_pruned_backbones_conform(check, subject):
    check(subject)


def test_settings_and_fingerprints():
    diverse, random = (open_pruned(pruning=method) for method in ("diversity", "random"))
    pooled = LlavaBackbone("tiny_m3", dtype="float32", device="cpu", max_new_tokens=3)
    assert len({backbone.fingerprints["prompt"] for backbone in (diverse, random, pooled)}) == 3
    for key in ("weights", "decoding"):
        assert diverse.fingerprints[key] == random.fingerprints[key] == pooled.fingerprints[key]
    assert diverse.family == "pooled" and diverse.scales == pooled.scales
    other = open_pruned(pruning="random", scales=[100, 5, 5])
    assert other.scales == (5, 100) == tuple(other.saved_arguments()["scales"])
    assert other.saved_arguments()["pruning"] == "random"
    assert [other.num_visual_tokens((9, 70), scale) for scale in other.scales] == [5, 100]


def test_what_cannot_be_pruned(tmp_path):
    with pytest.raises(ValueError, match="pruning=best: give one of class_attention, visionzip, patch_att"):
        open_pruned(pruning="best")
    with pytest.raises(ValueError, match="scale 145 is not possible with 144 tokens: choose from 1 to 144"):
        open_pruned(pruning="random", scales=[9, 145])
    queries = write_query_checkpoint(tmp_path / "mqt")
    with pytest.raises(
        ValueError, match="learned queries: only a checkpoint whose visual tokens are patches"
    ):
        open_pruned(queries, pruning="diversity")


@pytest.fixture(scope="module", params=METHODS)
def tiled(request):
    return open_pruned(TILED, pruning=request.param)


# Of the second image, half of the tiles is padding at the grid that is chosen for it.
SIZES = [(300, 300), (400, 40)]


@pytest.fixture(scope="module")
def tiled_images():
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return [Image.fromarray(noise[:height, :width]) for width, height in SIZES]


def test_a_scale_of_a_tiled_checkpoint_is_a_number_of_tokens_of_each_tile(tiled, tiled_images):
    """The finest scale is that without pruning, and no coarser scale has more tokens."""
    pooled = LlavaBackbone(TILED, dtype="float32", device="cpu")
    encoded, grid = tiled.encode(tiled_images), tiled.scales[-1]
    counts = [tiled.processor.images.num_tiles(size) for size in SIZES]
    assert min(counts) > 2
    for scale in tiled.scales[:-1]:
        for tokens, size, count in zip(tiled.visual_tokens(encoded, scale), SIZES, counts, strict=True):
            assert len(tokens) == tiled.num_visual_tokens(size, scale)
            assert len(tokens) == min(scale * count, pooled.num_visual_tokens(size, grid))
    finest = zip(
        tiled.visual_tokens(encoded, grid),
        pooled.visual_tokens(pooled.encode(tiled_images), grid),
        strict=True,
    )
    for own, expected in finest:
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    for size in SIZES:
        numbers = [tiled.processor.images.num_visual_tokens(size, scale) for scale in range(1, grid + 1)]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("method", METHODS[:4])
def test_kept_tokens_of_tiles_are_nested_and_in_order(method, tiled_images):
    backbone = open_pruned(TILED, pruning=method)
    for image in backbone.encode(tiled_images):
        assert sorted(image.order.tolist()) == list(range(len(image.packed)))
        for scale in backbone.scales:
            number = backbone.num_visual_tokens(image.size, scale)
            (tokens,) = backbone.visual_tokens([image], scale)
            assert torch.equal(tokens, image.packed[sorted(image.order[:number].tolist())])


@torch.no_grad()
def test_every_tile_keeps_its_patches_with_the_most_attention(tiled_images):
    """Against the attention weights of the tower, as VisionZip reads them, tile by tile."""
    backbone = open_pruned(TILED, pruning="class_attention")
    encoded = backbone.encode(tiled_images)
    model = backbone.model.model
    model.vision_tower.set_attn_implementation("eager")
    layer = backbone.checkpoint.config.vision_feature_layer
    for image, picture in zip(encoded, tiled_images, strict=True):
        pixels = backbone.processor.images(picture)
        attention = model.vision_tower(pixels, output_attentions=True).attentions[layer][:, :, 0, 1:].sum(1)
        places = backbone.processor.images.places(image.size)
        scale, grid = 9, attention.shape[1]
        kept = places[image.order[: scale * len(pixels)]]
        for tile, received in enumerate(attention):
            candidates = [place % grid for place in places.tolist() if place >= 0 and place // grid == tile]
            best = sorted(candidates, key=lambda patch: -received[patch])[:scale]
            own = [place % grid for place in kept.tolist() if place // grid == tile]
            assert set(own) == set(best)


def test_views_of_tiles_have_no_cells(tiled, tiled_images):
    panels = tiled.view_image(tiled_images[0], tiled.scales[0])
    assert [panel.grid for panel in panels] == [None, None]
