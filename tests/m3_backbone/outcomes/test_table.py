"""The outcome table: what is written is what is read, and nothing false is read."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes.labels import VisualTokens, read_labels
from m3_backbone.outcomes.manifest import write_splits
from m3_backbone.outcomes.shards import (
    METADATA_KEY,
    OUTCOME_SCHEMA,
    SCHEMA_VERSION,
    digest_file,
    dump_header,
    read_features,
    read_header,
    read_shard,
    to_feature_table,
    write_atomically,
    write_shard,
)
from m3_backbone.outcomes.table import OutcomeTable
from tests.held_out import grant, read_outcomes, read_split
from tests.label_folders import write_label_folder

SCALES = (1, 9, 36)
FINGERPRINTS = {"weights": "aa", "data": "bb", "prompt": "cc", "decoding": "dd"}


def make_table(num_rows: int = 6, split: str = "test", **changes: Any) -> OutcomeTable:
    generator = np.random.default_rng(0)
    text = {
        name: np.array([f"{name} {row}" for row in range(num_rows)], dtype=object)
        for name in ("task", "kind", "question", "metric")
    }
    columns = {
        "sample_id": np.array([f"{split}-{row}" for row in range(num_rows)], dtype=object),
        "image_id": np.array([f"{split}-image-{row // 2}" for row in range(num_rows)], dtype=object),
        "references": [["ja", 'ein "Wort"\n'][: 1 + row % 2] for row in range(num_rows)],
        "attributes": [{"kind": "count", "num_items": row} for row in range(num_rows)],
        "question_ids": [np.arange(row + 1, dtype=np.int32) for row in range(num_rows)],
        "answer": [[f"{row} at {scale}" for scale in SCALES] for row in range(num_rows)],
        "score": generator.random((num_rows, 3), dtype=np.float32),
        "nll": 5 * generator.random((num_rows, 3), dtype=np.float32),
        "reference_tokens": np.array([[2, 3, 3]] * num_rows, dtype=np.int32),
        "confidence": generator.random((num_rows, 3), dtype=np.float32),
        "margin": generator.random((num_rows, 3), dtype=np.float32),
        "visual_tokens": np.array([SCALES] * num_rows, dtype=np.int32),
        "prefill_flops": 10**10 * np.array([SCALES] * num_rows, dtype=np.int64),
        "vision_flops": np.full((num_rows, 3), 10**11, dtype=np.int64),
        "entropy": np.full((num_rows, 3), 0.5, dtype=np.float32),
    }
    return OutcomeTable(scales=SCALES, fingerprints=FINGERPRINTS, **{**text, **columns, **changes})


def assert_equal(first: OutcomeTable, second: OutcomeTable) -> None:
    assert first.scales == second.scales
    assert first.fingerprints == second.fingerprints
    assert first.to_arrow().equals(second.to_arrow())


def replace_in_row(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row, 1] = value
    return changed


def write_labels(folder: Path, **manifest: Any) -> None:
    """A label folder of two test shards and one training shard; image tokens hold the image's number."""
    test, train = make_table(6), make_table(2, split="train")
    tables = {
        "00000": ("test", test.select(slice(4))),
        "00001": ("test", test.select(slice(4, 6))),
        "00002": ("train", train),
    }
    shards = {}
    for name, (split, table) in tables.items():
        visual = {
            image_id: ImageFeatures(
                {9: np.full((2 + int(image_id[-1]), 4), int(image_id[-1]), dtype=np.float16)},
                {"image/width": 10.0 + int(image_id[-1])},
            )
            for image_id in table.image_id
        }
        shards[name] = (split, table, visual)
    write_label_folder(folder, shards, torch.eye(4), manifest)


def test_arrow_round_trip_keeps_every_value():
    table = make_table()
    arrow = table.to_arrow()
    assert arrow.schema.equals(OUTCOME_SCHEMA)
    assert_equal(OutcomeTable.from_arrow(arrow), table)


def test_parquet_round_trip_keeps_every_value(tmp_path):
    table = make_table()
    write_shard(tmp_path / "shard.parquet", table.to_arrow(), {**table.header, "note": 3})
    assert read_header(tmp_path / "shard.parquet")["note"] == 3
    again = OutcomeTable.from_arrow(read_shard(tmp_path / "shard.parquet", OUTCOME_SCHEMA))
    assert_equal(again, table)
    assert again.score.dtype == np.float32
    assert again.visual_tokens.dtype == np.int32


@pytest.mark.parametrize("name", ["vision_flops", "entropy"])
def test_a_table_without_an_optional_column_keeps_being_one(name, tmp_path):
    lacking: dict[str, Any] = {name: None}
    table = make_table(**lacking)
    assert name not in table.to_arrow().column_names
    write_shard(tmp_path / "shard.parquet", table.to_arrow(), table.header)
    again = OutcomeTable.from_arrow(read_shard(tmp_path / "shard.parquet", OUTCOME_SCHEMA))
    assert getattr(again, name) is None
    assert_equal(again.select([1, 0]).select([1, 0]), table.select([0, 1]))
    joined = OutcomeTable.concat([make_table(), make_table(split="train", **lacking)])
    assert getattr(joined, name) is None


def test_select_takes_masks_indices_and_slices():
    table = make_table()
    mask = np.array([False, True, False, False, True, False])
    assert list(table.select(mask).sample_id) == ["test-1", "test-4"]
    assert list(table.select([4, 1]).sample_id) == ["test-4", "test-1"]
    assert_equal(OutcomeTable.concat([table.select(slice(2)), table.select(slice(2, None))]), table)
    with pytest.raises(ValueError, match="mask of 2 values cannot select from 6 rows"):
        table.select(np.array([True, False]))


@pytest.mark.parametrize("key", ["weights", "data", "prompt", "decoding"])
def test_tables_of_different_origin_are_not_mixed(key):
    other = dataclasses.replace(make_table(split="train"), fingerprints={**FINGERPRINTS, key: "other"})
    with pytest.raises(ValueError, match=f"different {key}: their outcomes cannot be mixed"):
        OutcomeTable.concat([make_table(), other])


def test_tables_of_different_ladders_are_not_mixed():
    train = make_table(split="train")
    with pytest.raises(ValueError, match=r"scales \(1, 9, 144\)"):
        OutcomeTable.concat([make_table(), dataclasses.replace(train, scales=(1, 9, 144))])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", float("nan"), "'score' of sample 'test-2' is not a finite number"),
        ("score", 1.5, r"'score' of sample 'test-2' is outside \[0, 1\]"),
        ("score", -0.1, "'score' of sample 'test-2' is outside"),
        ("confidence", 1.1, "'confidence' of sample 'test-2' is outside"),
        ("nll", float("inf"), "'nll' of sample 'test-2' is not a finite number"),
        ("visual_tokens", 0, "'visual_tokens' of sample 'test-2' is not a positive count"),
        ("vision_flops", -1, "'vision_flops' of sample 'test-2' is a negative count"),
        ("entropy", -0.1, "'entropy' of sample 'test-2' is not a finite number of at least 0"),
    ],
)
def test_impossible_outcomes_are_refused(column, value, message):
    table = make_table()
    changes: dict[str, Any] = {column: replace_in_row(getattr(table, column), 2, value)}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(table, **changes)


def test_misshapen_columns_are_refused():
    with pytest.raises(ValueError, match=r"'score' has shape \(6, 2\)"):
        make_table(score=make_table().score[:, :2])
    with pytest.raises(ValueError, match="'references' has 1 rows, 'sample_id' 6"):
        make_table(references=[["a"]])
    with pytest.raises(ValueError, match="'answer' of sample 'test-0' is not one per scale"):
        make_table(answer=[["a"]] * 6)


def test_a_doubled_sample_is_refused():
    with pytest.raises(ValueError, match="sample_id 'test-1' occurs more than once"):
        make_table().select([0, 1, 2, 1])


def test_wrong_columns_are_refused_by_name():
    arrow = make_table().to_arrow()
    renamed = arrow.rename_columns(["marks" if name == "score" else name for name in arrow.column_names])
    renamed = renamed.replace_schema_metadata(arrow.schema.metadata)
    with pytest.raises(ValueError, match="x: missing column 'score'; unexpected column 'marks'"):
        OutcomeTable.from_arrow(renamed, origin="x")
    position = arrow.schema.get_field_index("nll")
    doubles = arrow.set_column(position, "nll", arrow["nll"].cast(pa.list_(pa.float64())))
    with pytest.raises(ValueError, match=r"column 'nll' is list<.*double>"):
        OutcomeTable.from_arrow(doubles)
    nulls = arrow.set_column(0, "sample_id", pa.array(["a", None, *"cdef"]))
    with pytest.raises(ValueError, match="column 'sample_id' holds nulls"):
        OutcomeTable.from_arrow(nulls)


def test_lists_shorter_than_the_ladder_are_refused():
    arrow = make_table().to_arrow()
    position = arrow.schema.get_field_index("score")
    short = pa.array([[0.5] * 3] * 3 + [[0.5] * 2] + [[0.5] * 3] * 2, type=pa.list_(pa.float32()))
    with pytest.raises(ValueError, match="'score' of sample 'test-3' has 2 values, the ladder has 3 scales"):
        OutcomeTable.from_arrow(arrow.set_column(position, "score", short))
    holes = pa.array([[0.5, None, 0.5]] * 6, type=pa.list_(pa.float32()))
    with pytest.raises(ValueError, match="column 'score' holds nulls"):
        OutcomeTable.from_arrow(arrow.set_column(position, "score", holes))


def test_another_schema_version_is_refused():
    arrow = make_table().to_arrow()
    header = json.loads(arrow.schema.metadata[METADATA_KEY])
    other = arrow.replace_schema_metadata({METADATA_KEY: json.dumps({**header, "schema": 99})})
    with pytest.raises(
        ValueError, match=f"schema version 99, this tokenscale reads {SCHEMA_VERSION}: read it with the"
    ):
        OutcomeTable.from_arrow(other)


def test_files_that_are_no_shards_are_refused(tmp_path):
    path = tmp_path / "shard.parquet"
    table = make_table(2000)
    write_shard(path, table.to_arrow(), table.header)
    whole = path.read_bytes()
    for content in (
        b"",
        b"not Parquet at all",
        whole[: len(whole) // 2],
        whole[:2000] + bytes(1000) + whole[3000:],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard\.parquet is not a whole Parquet file"):
            read_shard(path, OUTCOME_SCHEMA)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="was not written by tokenscale"):
        read_shard(path, OUTCOME_SCHEMA)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_labels_join_outcomes_and_features_row_by_row(tmp_path):
    write_labels(tmp_path)
    labels = read_split(tmp_path, "test")
    assert_equal(labels.outcomes, make_table(6))
    inputs = labels.inputs
    assert inputs.question == labels.outcomes.question.tolist()
    visual = inputs.visual_at(9)
    assert visual.tokens.shape == (3, 4, 4)
    assert visual.mask.sum(axis=1).tolist() == [2, 3, 4]
    assert [visual.tokens[row, 0, 0] for row in inputs.image_row] == [0, 0, 1, 1, 2, 2]
    assert not visual.tokens[~visual.mask].any()
    assert inputs.statistic_names == ("image/width",)
    assert inputs.statistics[inputs.image_row, 0].tolist() == [10, 10, 11, 11, 12, 12]
    with pytest.raises(ValueError, match=r"scale 36 were not kept .*kept: 9"):
        inputs.visual_at(36)
    assert inputs.token_embeddings.tensor.shape == (4, 4)

    some = labels.select([5, 0])
    assert list(some.outcomes.sample_id) == ["test-5", "test-0"]
    assert [visual.tokens[row, 0, 0] for row in some.inputs.image_row] == [2, 0]
    assert [len(ids) for ids in some.inputs.question_ids] == [6, 1]
    assert len(some) == len(some.inputs) == 2


def test_the_test_split_takes_access_to_that_very_folder(tmp_path):
    write_labels(tmp_path / "labels")
    write_labels(tmp_path / "other")
    for access in (None, grant(tmp_path / "other")):
        with pytest.raises(ValueError, match=r"read by recorded evaluations only.*calibration split"):
            OutcomeTable.read(tmp_path / "labels", "test", access)
        with pytest.raises(ValueError, match="read by recorded evaluations only"):
            read_labels(tmp_path / "labels", "test", access)
    assert len(OutcomeTable.read(tmp_path / "labels", "test", grant(tmp_path / "labels"))) == 6
    assert len(OutcomeTable.read(tmp_path / "labels", "train")) == 2


@pytest.mark.parametrize("split", [None, "", "everything"])
def test_no_split_is_read_by_default(tmp_path, split):
    write_labels(tmp_path)
    with pytest.raises(ValueError, match=rf"no samples of split {split!r} in"):
        OutcomeTable.read(tmp_path, split)


def test_reading_what_is_not_there_names_what_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make them with `tokenscale label`"):
        read_outcomes(tmp_path / "nowhere", "test")
    write_labels(tmp_path / "labels")
    with pytest.raises(ValueError, match=r"no samples of split 'calibration' in .* test \(6\)"):
        read_outcomes(tmp_path / "labels", "calibration")
    (tmp_path / "labels" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a manifest of labels"):
        read_outcomes(tmp_path / "labels", "test")


def test_unfinished_or_mixed_up_folders_are_refused(tmp_path):
    write_labels(tmp_path / "unfinished", complete=False)
    with pytest.raises(ValueError, match="not finished: run the same label command again"):
        read_split(tmp_path / "unfinished", "test")
    write_labels(tmp_path / "mixed", fingerprints={**FINGERPRINTS, "weights": "other"})
    with pytest.raises(ValueError, match="different weights"):
        read_split(tmp_path / "mixed", "test")
    write_labels(tmp_path / "scales", scales=[1, 9, 144])
    with pytest.raises(ValueError, match=r"00000\.parquet has scales \(1, 9, 36\), .*\[1, 9, 144\]"):
        read_split(tmp_path / "scales", "test")
    write_labels(tmp_path / "counts", counts={"train": 2, "calibration": 0, "test": 7})
    with pytest.raises(ValueError, match="hold 6 samples of test, the manifest counts 7"):
        read_split(tmp_path / "counts", "test")


FILES = ("outcomes/00001.parquet", "features/00001.parquet", "splits.parquet", "token_embeddings.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_labels_is_bound_to_its_place(name, tmp_path):
    """Missing, with one bit flipped anywhere, or another file of the same kind: refused, with its name."""
    write_labels(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, 8 * len(content), 40):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=re.escape(f"{path} does not have the digest")):
            read_split(tmp_path, "test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path} is missing: run the same label command")):
        read_split(tmp_path, "test")
    if path.stem.isdecimal():
        shutil.copy(path.with_name("00000.parquet"), path)
        with pytest.raises(ValueError, match=re.escape(f"{path} does not have the digest")):
            read_split(tmp_path, "test")


def test_features_that_are_no_numbers_are_refused(tmp_path):
    tokens = np.zeros((3, 4), dtype=np.float16)
    tokens[1, 2] = np.nan
    images = {"fine": ImageFeatures({9: tokens[:1]}, {}), "bad": ImageFeatures({9: tokens}, {})}
    write_shard(tmp_path / "shard.parquet", to_feature_table(images), {})
    with pytest.raises(
        ValueError, match=r"shard\.parquet: a feature of image 'bad' is not a finite number: label again"
    ):
        read_features(tmp_path / "shard.parquet")
    assert list(read_features(tmp_path / "shard.parquet", image_ids={"fine"})) == ["fine"]


def test_images_are_read_by_their_split_whatever_shard_they_are_in(tmp_path):
    """Another division of the same shards: the rows come in the order of the images."""
    write_labels(tmp_path)
    test_images = [("test-image-2", "00001"), ("train-image-0", "00002")]
    write_splits(tmp_path, {"test": test_images, "train": [("test-image-1", "00000")]})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["splits.parquet"] = digest_file(tmp_path / "splits.parquet")
    manifest["counts"] = {"train": 2, "calibration": 0, "test": 4}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_outcomes(tmp_path, "test").sample_id.tolist() == ["test-4", "test-5", "train-0", "train-1"]
    labels = read_split(tmp_path, "train")
    assert labels.outcomes.sample_id.tolist() == ["test-2", "test-3"]
    assert labels.inputs.visual_at(9).tokens[:, 0, 0].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shards": {"00000": {}}}, "shard '00000' lacks one of samples, outcomes, features"),
        ({"shards": {"../00000": {}}}, "shard '../00000' is not a file name"),
        ({"files": []}, "'files' is missing or of another type"),
        ({"complete": "yes"}, "'complete' is missing or of another type"),
        ({"files": {"splits.parquet": 1}}, "it lacks the digest of splits.parquet"),
        ({"files": {"splits.parquet": "0"}}, "it lacks the digest of token_embeddings.safetensors"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_name(changes, reason, tmp_path):
    write_labels(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'manifest.json'} is damaged ({reason})")):
        read_outcomes(tmp_path, "train")


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(3, 2)},
        {"token_embeddings": torch.zeros(3)},
        {"token_embeddings": torch.full((3, 2), float("nan"))},
    ],
)
def test_token_embeddings_that_are_none_are_refused_even_if_the_manifest_agrees(tensors, tmp_path):
    write_labels(tmp_path)
    path = tmp_path / "token_embeddings.safetensors"
    save_file(tensors, path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"][path.name] = digest_file(path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=re.escape(f"{path} has no token embeddings [vocab, hidden]")):
        _ = read_split(tmp_path, "test").inputs.token_embeddings.tensor


@pytest.mark.parametrize("attributes", ["{", "[1]", "[" * 100_000])
def test_attributes_that_are_no_object_are_refused(attributes):
    table = make_table(2).to_arrow()
    place = table.schema.get_field_index("attributes")
    wrong = table.set_column(place, "attributes", pa.array([attributes] * len(table)))
    with pytest.raises(ValueError, match=r"^here: attributes of a sample cannot be read \("):
        OutcomeTable.from_arrow(wrong, "here")


@pytest.mark.parametrize("change", [{"scales": 3}, {"scales": None}, {"fingerprints": []}])
def test_metadata_of_other_types_are_refused(change):
    table = make_table(2)
    wrong = table.to_arrow().replace_schema_metadata(dump_header(table.header | change))
    with pytest.raises(ValueError, match=r"^here: scales or fingerprints are missing in its metadata"):
        OutcomeTable.from_arrow(wrong, "here")


def test_padding_masks_what_is_not_there():
    visual = VisualTokens.pad([np.ones((1, 2), dtype=np.float16), np.ones((3, 2), dtype=np.float16)])
    assert visual.tokens.dtype == np.float16
    assert visual.mask.tolist() == [[True, False, False], [True, True, True]]
    assert visual.tokens.sum() == 8
