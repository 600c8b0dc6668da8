"""Labels of an earlier version, without FLOPs of the vision pass: they are read, and get the column later."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from experiments.labelling import label
from experiments.tasks.base import SPLITS
from m3_backbone.costs import vision_flops
from m3_backbone.labels import read_labels
from m3_backbone.llava import LlavaBackbone
from m3_backbone.outcomes import OutcomeTable
from m3_backbone.shards import read_header
from tests.held_out import read_outcomes

OLD = Path(__file__).parents[1] / "fixtures" / "labels_v3"
SHARDS = [f"{split}-00000.parquet" for split in SPLITS]


class LabelledTask:
    """A task that is known by its fingerprint alone: nothing may be read of it."""

    def __init__(self) -> None:
        self.name = "scenes"
        self.fingerprint = json.loads((OLD / "manifest.json").read_text())["fingerprints"]["data"]
        self.set_aside: list[dict[str, Any]] = []

    def samples(self, split):
        raise AssertionError("samples were read")

    def image(self, image_id):
        raise AssertionError("an image was read")


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone("tiny_m3", dtype="float32", attn_implementation="sdpa")


@pytest.fixture
def old(tmp_path, backbone):
    folder = shutil.copytree(OLD, tmp_path / "labels")
    save_file(
        {"token_embeddings": backbone.token_embeddings().contiguous()},
        folder / "token_embeddings.safetensors",
    )
    return folder


def label_again(folder: Path, backbone: LlavaBackbone):
    return label(task=LabelledTask(), backbone=backbone, folder=folder, feature_scales=[1])


def test_old_labels_are_read_without_the_column(old):
    labels = read_labels(old, "calibration")
    assert len(labels) == 6 and labels.outcomes.vision_flops is None
    assert labels.select([4, 1]).outcomes.vision_flops is None
    both = OutcomeTable.concat([labels.outcomes, read_labels(old, "train").outcomes])
    assert len(both) == 15 and both.vision_flops is None


def test_labelling_again_adds_the_column_and_answers_nothing(old, backbone, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("m3_backbone.checkpoint.Checkpoint.load_model", refuse)
    before = {name: (old / "outcomes" / name).read_bytes() for name in SHARDS}
    headers = {name: read_header(old / "outcomes" / name) for name in SHARDS}
    other_files = {path: path.stat().st_mtime_ns for path in (old / "features").iterdir()}
    fresh = LlavaBackbone("tiny_m3", dtype="float32", attn_implementation="sdpa")
    assert label_again(old, fresh).counts == {"train": 9, "calibration": 6, "test": 6}

    # Pictures of one tile, one vision pass for all scales.
    expected = vision_flops(backbone.checkpoint.config)
    for split, name in zip(SPLITS, SHARDS, strict=True):
        table = read_outcomes(old, split)
        assert table.vision_flops is not None
        assert np.array_equal(table.vision_flops, np.full((len(table), 4), expected))
        assert table.vision_flops.dtype == np.int64
        assert read_header(old / "outcomes" / name) == headers[name]
        (old / "before.parquet").write_bytes(before[name])
        without = pq.read_table(old / "outcomes" / name).drop_columns("vision_flops")
        assert without.equals(pq.read_table(old / "before.parquet"))
    assert {path: path.stat().st_mtime_ns for path in other_files} == other_files

    # Once more there is nothing to do.
    made = {name: (old / "outcomes" / name).stat().st_mtime_ns for name in SHARDS}
    label_again(old, fresh)
    assert {name: (old / "outcomes" / name).stat().st_mtime_ns for name in SHARDS} == made


def test_a_table_of_old_and_new_shards_has_no_column(old, backbone):
    """As a kill between two shards leaves it; the next labelling adds the rest."""
    table = read_outcomes(old, "train")
    label_again(old, backbone)
    new = read_outcomes(old, "test")
    assert OutcomeTable.concat([table, new]).vision_flops is None
    shutil.copy(OLD / "outcomes" / SHARDS[0], old / "outcomes" / SHARDS[0])
    assert read_outcomes(old, "train").vision_flops is None
    label_again(old, backbone)
    assert read_outcomes(old, "train").vision_flops is not None


def test_a_folder_that_cannot_be_written_stays_as_it_is(old, backbone, monkeypatch, caplog):
    def refuse(*args: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("experiments.labels.vision_costs.write_shard", refuse)
    label_again(old, backbone)
    assert "without FLOPs of the vision pass" in caplog.text
    assert "Read-only file system" in caplog.text
    assert read_outcomes(old, "train").vision_flops is None
