"""Pictures that could not be read at first are tried again by the same label command."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.labels.labelling import label
from experiments.training.trained import identify_labels
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.manifest import OLD_SKIPPED_FILE, SKIPPED_FILE, find_shard, read_manifest
from m3_backbone.outcomes.shards import digest_file, read_header, write_shard
from tests.experiments.tasks.question_files import make_task
from tests.label_folders import open_label_folder
from tests.paths import FIXTURES

CHECKPOINT = FIXTURES / "official_m3" / "llava15" / "checkpoint"
SPLITS = {"train": "abcd", "calibration": "e", "test": "f"}
MISSING = "cannot read image 'b.png': no such file in the image folder"
LONG = "the question is too long"


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone(CHECKPOINT, name="small", dtype="float32", device="cpu", max_new_tokens=1)


@pytest.fixture
def task(tmp_path):
    """Six pictures of which b is missing, and one question that is too long."""
    rows = [
        {
            "question_id": name,
            "image": f"{name}.png",
            "text": "word " * 3500 if name == "d" else "What?",
            "answer": "it",
            "split": split,
        }
        for split, names in SPLITS.items()
        for name in names
    ]
    task = make_task(tmp_path, rows)
    for name in "acdef":
        draw(tmp_path, name)
    return task


def draw(folder: Path, name: str) -> None:
    pixels = np.random.default_rng(ord(name)).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png")


def run(task, backbone, folder, **arguments):
    settings = {"shard_size": 2, "num_workers": 0, **arguments}
    return label(task=task, backbone=backbone, folder=folder, **settings)


def test_a_picture_that_was_missing_is_answered_once_it_is_there(task, backbone, tmp_path, monkeypatch):
    folder = tmp_path / "labels"
    summary = run(task, backbone, folder)
    assert summary.counts == {"train": 2, "calibration": 1, "test": 1}
    assert summary.skipped.keys() == {MISSING, next(key for key in summary.skipped if LONG in key)}
    first, identity = read_manifest(folder), identify_labels(read_manifest(folder))

    # Still missing: nothing is done again, and no weights are loaded.
    with monkeypatch.context() as patch:
        patch.setattr(LlavaBackbone, "encode", None)
        assert run(task, backbone, folder) == summary
    assert read_manifest(folder) == first

    draw(tmp_path, "b")
    before = {path: path.stat().st_mtime_ns for path in (folder / "outcomes").iterdir()}
    mended = run(task, backbone, folder)
    assert mended.counts == {"train": 3, "calibration": 1, "test": 1}
    assert all(LONG in reason for reason in mended.skipped)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # What was trained on fewer samples is another training.
    assert identify_labels(read_manifest(folder)) != identity
    whole = run(task, backbone, tmp_path / "at_once")
    assert (whole.counts, whole.accuracy, whole.skipped) == (
        mended.counts,
        mended.accuracy,
        mended.skipped,
    )
    with monkeypatch.context() as patch:
        patch.setattr(LlavaBackbone, "encode", None)
        assert run(task, backbone, folder) == mended


def test_a_part_of_the_work_tries_again_too(task, backbone, tmp_path):
    folder = tmp_path / "labels"
    for part in ("0/2", "1/2"):
        run(task, backbone, folder, shard=part)
    draw(tmp_path, "b")
    for part in ("0/2", "1/2"):
        summary = run(task, backbone, folder, shard=part)
    assert summary.counts == {"train": 3, "calibration": 1, "test": 1}


def test_an_unfinished_labelling_tries_again_too(task, backbone, tmp_path):
    folder = tmp_path / "labels"
    run(task, backbone, folder)
    (folder / "outcomes" / "00003.parquet").unlink()
    draw(tmp_path, "b")
    assert run(task, backbone, folder).counts == {"train": 3, "calibration": 1, "test": 1}


def test_a_changed_list_of_skipped_samples_is_refused_by_name_and_made_again(task, backbone, tmp_path):
    folder = tmp_path / "labels"
    summary = run(task, backbone, folder)
    path = folder / SKIPPED_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(MISSING.encode(), MISSING.encode()[::-1]))
    assert path.read_bytes() != whole
    target = open_label_folder(folder)
    with pytest.raises(ValueError, match=r"skipped.jsonl does not have the digest that the manifest gives"):
        target.read_skipped()
    assert run(task, backbone, folder) == summary
    assert path.read_bytes() == whole and open_label_folder(folder).read_skipped()


def test_a_folder_with_the_former_names_is_read_and_completed(task, backbone, tmp_path):
    folder = tmp_path / "labels"
    summary = run(task, backbone, folder)
    use_former_names(folder)
    former = run(task, backbone, folder)
    assert (former.counts, former.skipped) == (summary.counts, summary.skipped)
    assert str(folder / OLD_SKIPPED_FILE) in str(former) and not (folder / SKIPPED_FILE).exists()
    draw(tmp_path, "b")
    completed = run(task, backbone, folder)
    assert completed.counts == {"train": 3, "calibration": 1, "test": 1}
    assert all(LONG in reason for reason in completed.skipped)
    assert str(folder / SKIPPED_FILE) in str(completed) and not (folder / OLD_SKIPPED_FILE).exists()


def use_former_names(folder: Path) -> None:
    """Give the skipped samples the file name and the key in shards that tokenscale 0.1 wrote."""
    target = open_label_folder(folder)
    (folder / SKIPPED_FILE).rename(folder / OLD_SKIPPED_FILE)
    target.manifest["files"][OLD_SKIPPED_FILE] = target.manifest["files"].pop(SKIPPED_FILE)
    for name, shard in target.manifest["shards"].items():
        path = find_shard(folder, "outcomes", name)
        header = {key: value for key, value in read_header(path).items() if key != "schema"}
        header["set_aside"] = header.pop("skipped")
        write_shard(path, pq.read_table(path), header)
        shard["outcomes"] = digest_file(path)
    target.write_manifest()
