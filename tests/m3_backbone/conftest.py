"""The official fixtures as folders, recordings and loaded backbones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from m3_backbone.llava.backbone import LlavaBackbone
from tests.paths import FIXTURES

OFFICIAL = FIXTURES / "official_m3"


class Recording:
    """A fixture folder, its backbone, and what the official code computed on it."""

    def __init__(self, name: str) -> None:
        self.folder = OFFICIAL / name
        self.backbone = LlavaBackbone(self.folder / "checkpoint", device="cpu", max_new_tokens=12)
        self.cases: list[dict[str, Any]] = json.loads((self.folder / "expected.json").read_text())["cases"]
        self.tensors = load_file(self.folder / "expected.safetensors")
        self.images = [Image.open(file).convert("RGB") for file in sorted(self.folder.glob("image*.png"))]
        self.encoded = self.backbone.encode(self.images)

    def cases_at(self, scale: int) -> list[dict[str, Any]]:
        """One case for each image, in their order."""
        return [case for case in self.cases if case["scale"] == scale]


@pytest.fixture(scope="session")
def plain() -> Recording:
    return Recording("llava15")


@pytest.fixture(scope="session")
def tiled() -> Recording:
    return Recording("llavanext")


@pytest.fixture(params=["plain", "tiled"])
def recording(request: pytest.FixtureRequest) -> Recording:
    return request.getfixturevalue(request.param)


class EditableCheckpoint:
    """A copy of an official checkpoint whose weights and configuration a test may change."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("image*", "expected*")
        shutil.copytree(source, folder.parent, ignore=ignored)
        files = sorted(folder.glob("*.safetensors"))
        self.weights = {name: weight for file in files for name, weight in load_file(file).items()}
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        for file in [*files, folder / "model.safetensors.index.json"]:
            file.unlink()

    def save(self) -> Path:
        """One file of weights, and the configuration."""
        save_file(self.weights, self.folder / "model.safetensors", metadata={"format": "pt"})
        return self.save_config()

    def save_config(self) -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self.folder


@pytest.fixture
def editable(tmp_path: Path) -> EditableCheckpoint:
    return EditableCheckpoint(OFFICIAL / "llava15", tmp_path / "fixture" / "checkpoint")


@pytest.fixture
def editable_tiled(tmp_path: Path) -> EditableCheckpoint:
    return EditableCheckpoint(OFFICIAL / "llavanext", tmp_path / "fixture" / "checkpoint")
