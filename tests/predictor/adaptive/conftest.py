"""A small random checkpoint in the authors' layout, with two images."""

import pytest
from PIL import Image

from m3_backbone.llava.backbone import LlavaBackbone
from tests.paths import FIXTURES

FIXTURE = FIXTURES / "official_m3" / "llava15"


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=4)


@pytest.fixture(scope="module")
def images():
    return [Image.open(FIXTURE / f"image{i}.png").convert("RGB") for i in range(2)]
