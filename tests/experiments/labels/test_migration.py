"""Labels of tokenscale 0.1 are brought up to date by the label command, which answers nothing again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from experiments.labels import migration
from experiments.labels.folder import KeptInputs
from experiments.labels.held_out import identify_data
from experiments.labels.label_summary import LabelSummary
from experiments.labels.labelling import label
from experiments.labels.resampled import Part, read_resampled
from experiments.tasks.scenes import Scenes
from experiments.training.trained import identify_labels
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.outcomes.labels import read_labels
from m3_backbone.outcomes.manifest import read_manifest
from tests.held_out import read_outcomes, read_split
from tests.paths import FIXTURES

OLD = FIXTURES / "labels_v3"
NUM_IMAGES = {"train": 3, "calibration": 2, "test": 2}


def make_task(**arguments: Any) -> Scenes:
    return Scenes(**{"num_images": NUM_IMAGES, "questions_per_image": 3, **arguments})


@pytest.fixture(scope="module")
def tiny_m3() -> LlavaBackbone:
    return LlavaBackbone("tiny_m3", dtype="float32", attn_implementation="sdpa")


@pytest.fixture
def unloadable() -> LlavaBackbone:
    """The backbone that labelled, for work that must not load the model."""
    backbone = LlavaBackbone("tiny_m3", dtype="float32", attn_implementation="sdpa")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    object.__setattr__(backbone.checkpoint, "load_model", refuse)
    return backbone


@pytest.fixture
def old(tmp_path, tiny_m3) -> Path:
    folder = shutil.copytree(OLD, tmp_path / "labels")
    embeddings = tiny_m3.token_embeddings().contiguous()
    save_file({"token_embeddings": embeddings}, folder / "token_embeddings.safetensors")
    return folder


def label_again(folder: Path, backbone: LlavaBackbone, **arguments: Any) -> LabelSummary:
    return label(task=make_task(**arguments), backbone=backbone, folder=folder, kept=KeptInputs((1,)))


def test_reading_says_what_to_do(old):
    with pytest.raises(
        ValueError, match=r"version 3, .*run `tokenscale label`.*without answering anything again"
    ):
        read_labels(old, "train")


def test_every_answer_is_kept(old, tiny_m3, unloadable):
    before = {
        split: pq.read_table(old / "outcomes" / f"{split}-00000.parquet").to_pydict() for split in NUM_IMAGES
    }
    features = {path: path.stat().st_mtime_ns for path in (old / "features").iterdir()}
    summary = label_again(old, unloadable)
    assert summary.counts == {"train": 9, "calibration": 6, "test": 6} and summary.replaced is None
    assert "test" not in summary.accuracy and "test" not in read_manifest(old)["accuracy"]
    expected = vision_flops(tiny_m3.checkpoint.config)  # pictures of one tile, one pass for all scales
    for split, columns in before.items():
        labels = read_split(old, split)
        table = labels.outcomes.to_arrow().to_pydict()
        assert table.pop("vision_flops") == [[expected] * 4] * len(labels)
        assert columns.pop("split") == [split] * len(labels)
        assert table == columns
        assert list(labels.inputs.visual) == [1]
    assert {path: path.stat().st_mtime_ns for path in features} == features
    # Once more there is nothing to do.
    stamps = {path: path.stat().st_mtime_ns for path in old.rglob("*.parquet")}
    label_again(old, unloadable)
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*.parquet")} == stamps


def test_predictors_and_records_of_test_evaluations_stay_those_of_the_labels(old, unloadable):
    """Until the images are divided anew; then they are those of other labels."""
    manifest = json.loads((old / "manifest.json").read_text())
    label_again(old, unloadable)
    keys = ("fingerprints", "scales", "feature_scales", "shards")
    assert identify_labels(read_manifest(old)) == {"labels": {key: manifest[key] for key in keys}}
    assert identify_data(read_manifest(old)) == manifest["fingerprints"]["data"]
    label_again(old, unloadable, num_images={**NUM_IMAGES, "train": 2})
    assert len(read_labels(old, "train")) == 6
    assert "shards" not in identify_labels(read_manifest(old))["labels"]
    assert identify_data(read_manifest(old)) != manifest["fingerprints"]["data"]
    label_again(old, unloadable)
    assert identify_labels(read_manifest(old)) == {"labels": {key: manifest[key] for key in keys}}


def test_a_kill_in_between_loses_nothing(old, unloadable, monkeypatch):
    write_shard = migration.write_shard
    written: list[Path] = []

    def die(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_shard(path, *rest)

    before = [pq.read_table(old / "outcomes" / f"{split}-00000.parquet") for split in NUM_IMAGES]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(migration, "write_shard", die)
        label_again(old, unloadable)
    label_again(old, unloadable)
    for split, table in zip(NUM_IMAGES, before, strict=True):
        assert read_outcomes(old, split).answer == table["answer"].to_pylist()
    assert "shards" in identify_labels(read_manifest(old))["labels"]


def test_images_with_padded_references_are_answered_again(old, tiny_m3):
    """Likelihoods were those of the reference with its space; all other answers are kept."""
    path = old / "outcomes" / "train-00000.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    images = dict.fromkeys(columns["image_id"])
    padded = next(iter(images))
    columns["references"] = [
        [f"{text} " for text in references] if image_id == padded else references
        for references, image_id in zip(columns["references"], columns["image_id"], strict=True)
    ]
    columns["nll"] = [[9.0] * 4 for _ in columns["nll"]]
    pq.write_table(pa.table(columns, schema=table.schema), path)
    assert label_again(old, tiny_m3).counts == {"train": 9, "calibration": 6, "test": 6}
    labels = read_labels(old, "train").outcomes
    assert labels.sample_id.tolist() == columns["sample_id"]
    assert (labels.nll == 9).all(axis=1).tolist() == [image_id != padded for image_id in labels.image_id]
    assert not any(text.endswith(" ") for texts in labels.references for text in texts)
    # The answers that were not taken over are kept beside the labels.
    (copied,) = old.parent.glob("labels.replaced-*/outcomes/train-00000.parquet")
    assert pq.read_table(copied)["nll"].to_pylist() == columns["nll"]


def test_resampled_answers_are_kept(old, unloadable):
    fingerprints = json.loads((old / "manifest.json").read_text())["fingerprints"]
    samples = pq.read_table(old / "outcomes" / "test-00000.parquet")["sample_id"].to_pylist()
    score = (np.arange(48).reshape(2, 6, 4) % 2).astype(np.float64)
    (old / "resampled").mkdir()
    Part(fingerprints, {"temperature": 1.0}, samples, score).write(
        old / "resampled" / "test-00000.safetensors"
    )
    label_again(old, unloadable)
    resampled = read_resampled(old, read_outcomes(old, "test"))
    assert resampled is not None and np.array_equal(resampled.score, score)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"seed": 2}, "is not that of task scenes"),
        ({"look": "shifted"}, "is not that of task scenes"),
        ({"image_size": 384}, "is not that of task scenes|is another picture"),
    ],
)
def test_labels_of_other_data_are_refused_unchanged(arguments, reason, old, unloadable):
    before = {path: path.read_bytes() for path in old.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"({reason}).*task\.name=NAME.*paths\.labels=FOLDER"):
        label_again(old, unloadable, **arguments)
    assert {path: path.read_bytes() for path in before} == before


def test_labels_without_any_sample_of_the_task_are_refused(old, unloadable):
    path = old / "outcomes"
    for name in ("calibration", "test"):
        (path / f"{name}-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"no sample 'train-.*, nor any other of .*task\.name=NAME"):
        label_again(old, unloadable, num_images={"test": 2})


def test_another_picture_under_the_same_questions_is_refused(old, unloadable, monkeypatch):
    picture = make_task().image("train-000001")
    monkeypatch.setattr(Scenes, "image", lambda self, image_id: picture)
    with pytest.raises(ValueError, match="image 'calibration-000000' of task scenes is another picture"):
        label_again(old, unloadable)


def test_other_weights_are_refused(old):
    backbone = LlavaBackbone("tiny_m3", dtype="bfloat16", attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r"made with other (weights|decoding|prompt)"):
        label_again(old, backbone)


def test_a_folder_that_cannot_be_written_stays_as_it_is(old, unloadable, monkeypatch):
    def refuse(*args: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(migration, "write_shard", refuse)
    before = (old / "manifest.json").read_bytes()
    with pytest.raises(OSError, match=r"cannot write to .*labels: Read-only file system"):
        label_again(old, unloadable)
    assert (old / "manifest.json").read_bytes() == before
