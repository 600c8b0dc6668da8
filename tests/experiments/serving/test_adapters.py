"""Requests to engines: what they contain gives the image the tokens of the scale in the engine's own code.

An engine hands `mm_processor_kwargs` to the image processor of transformers, which runs here too. vLLM and
LMDeploy give `min_pixels` and `max_pixels` to it as `size`: see `_get_vision_info` and `get_override_size`.
"""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.serving.adapters import (
    ImageArguments,
    ImageArgumentsByModality,
    ImageEmbeddings,
    ResizedImage,
)
from experiments.serving.limits import Limits, decode_data_url, open_image
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from tests.m3_backbone.native.reference import draw_noise
from tests.paths import FIXTURES

IMAGES = draw_noise([(640, 480), (100, 300), (90, 80)])


@pytest.fixture(scope="module")
def qwen():
    return open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[4, 16, 64], device="cpu")


@pytest.fixture(scope="module")
def gemma():
    return open_random_backbone(model_type="gemma4", name="gemma", scales=[70, 140, 280], device="cpu")


@pytest.fixture(scope="module")
def smol():
    return open_random_backbone(model_type="smolvlm", name="smol", device="cpu")


def check_pixels(backbone, image, scale, **arguments):
    """The image processor makes the same pixels from these arguments as for an answer at the scale."""
    made = backbone.checkpoint.image_processor(images=[image], return_tensors="pt", **arguments)
    expected = backbone.preprocess([image], scale)
    torch.testing.assert_close(made["pixel_values"], expected["pixel_values"], atol=0, rtol=0)


def as_size(arguments):
    assert arguments.keys() == {"min_pixels", "max_pixels"}
    return {"shortest_edge": arguments["min_pixels"], "longest_edge": arguments["max_pixels"]}


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.size))
def test_areas_for_qwen(qwen, image):
    for scale in qwen.scales:
        flat = ImageArguments().adapt(qwen, image, scale)
        assert flat.part is None
        check_pixels(qwen, image, scale, size=as_size(flat.arguments))
        by_modality = ImageArgumentsByModality().adapt(qwen, image, scale)
        assert by_modality.arguments == {"image": flat.arguments}
        assert all(type(value) is int for value in flat.arguments.values())


def test_budgets_for_gemma(gemma):
    for scale in gemma.scales:
        arguments = ImageArguments().adapt(gemma, IMAGES[0], scale).arguments
        assert arguments == {"max_soft_tokens": scale}
        check_pixels(gemma, IMAGES[0], scale, **arguments)


def test_longest_edges_for_tiles(smol):
    for scale in smol.scales:
        arguments = ImageArguments().adapt(smol, IMAGES[0], scale).arguments
        assert arguments.keys() == {"size", "do_image_splitting"}
        made = smol.checkpoint.image_processor(images=[[IMAGES[0]]], return_tensors="pt", **arguments)
        assert len(made["pixel_values"][0]) * smol._tokens_per_tile == smol.num_visual_tokens(
            (640, 480), scale
        )


def test_numbers_of_tiles_for_internvl():
    internvl = open_random_backbone(model_type="internvl", name="internvl", device="cpu")
    for scale, most in zip(internvl.scales, (1, 2, 4, 12), strict=True):
        arguments = ImageArguments().adapt(internvl, IMAGES[0], scale).arguments
        assert arguments == {"crop_to_patches": True, "max_patches": most}
        check_pixels(internvl, IMAGES[0], scale, **arguments)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.size))
def test_a_resized_image_has_the_pixels_of_its_scale(qwen, image):
    for scale in qwen.scales:
        part = dict(ResizedImage().adapt(qwen, image, scale).part or {})
        assert part.keys() == {"type", "image_url"}
        resized = open_image(decode_data_url(part["image_url"]["url"]), Limits())
        expected = qwen.preprocess([image], scale)["pixel_values"]
        # An engine that was started with a smallest area of one token.
        limits = {"shortest_edge": 32**2, "longest_edge": qwen.scales[-1] * 32**2}
        made = qwen.checkpoint.image_processor(images=[resized], size=limits, return_tensors="pt")
        torch.testing.assert_close(made["pixel_values"], expected, atol=0, rtol=0)


def test_a_resized_image_as_jpeg_has_the_size_of_its_scale_and_nearly_its_pixels(qwen):
    exact, written = (
        (ResizedImage(quality).adapt(qwen, IMAGES[0], 16).part or {})["image_url"]["url"]
        for quality in (None, 95)
    )
    assert written.startswith("data:image/jpeg;base64,")
    first, second = (open_image(decode_data_url(url), Limits()) for url in (exact, written))
    assert first.size == second.size
    assert np.abs(np.asarray(first, dtype=float) - np.asarray(second)).mean() < 4
    with pytest.raises(ValueError, match="jpeg_quality"):
        ResizedImage(101)


def test_embeddings_are_the_visual_tokens():
    backbone = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    encoded = backbone.encode(IMAGES[:2])
    for scale in backbone.scales:
        part = dict(ImageEmbeddings().adapt(backbone, encoded[1], scale).part or {})
        content = base64.b64decode(part["image_embeds"], validate=True)
        tensor = torch.load(io.BytesIO(content), weights_only=True)  # as vLLM reads it
        (tokens,) = backbone.visual_tokens(encoded[1:], scale)
        assert tensor.shape == (1, scale, backbone.hidden_size) and part["type"] == "image_embeds"
        np.testing.assert_array_equal(tensor[0], tokens)
        assert len(content) < tensor.nbytes + 5000  # and not the storage that it is a view of


@pytest.mark.parametrize("adapter", [ImageArguments, ImageArgumentsByModality, ResizedImage, ImageEmbeddings])
def test_a_backbone_that_an_engine_cannot_scale_so_is_refused(adapter, qwen, gemma, smol):
    m3 = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    tiled = LlavaBackbone(FIXTURES / "official_m3" / "llavanext" / "checkpoint", name="tiled", device="cpu")
    accepted = {
        ImageArguments: {"qwen", "gemma", "smol"},
        ImageArgumentsByModality: {"qwen"},
        ResizedImage: {"qwen"},
        ImageEmbeddings: {"tiny_m3"},
    }
    for backbone in (qwen, gemma, smol, m3, tiled):
        if backbone.name in accepted[adapter]:
            adapter().check_backbone(backbone)
        else:
            with pytest.raises(ValueError, match=backbone.name):
                adapter().check_backbone(backbone)


def test_sizes_stay_within_the_image():
    """A small image is not enlarged: its scales coincide."""
    backbone = open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[64, 1024], device="cpu")
    small = Image.new("RGB", (64, 64))
    assert backbone.resized_size(small.size, 64) == backbone.resized_size(small.size, 1024) == (64, 64)
