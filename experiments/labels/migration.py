"""Conversion of labels of tokenscale 0.1 to the current schema, without answering anything again.

Labels of tokenscale 0.1 have version 3 of the schema. Their shards belong to one split, which is in the file
name and in every row, and may lack the FLOPs of the vision pass. Their data fingerprint includes the division
into splits and therefore differs; the samples themselves are compared with those of the task instead.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.labels.files import RESAMPLED, copy_aside
from experiments.labels.folder import LabelFolder
from experiments.labels.resampled import Part
from experiments.tasks.base import SPLITS, Sample, Task
from m3_backbone.backbone import Backbone
from m3_backbone.features import describe_image
from m3_backbone.images import UnreadableImage
from m3_backbone.outcomes.manifest import MANIFEST, digest_samples, find_shard, load_manifest
from m3_backbone.outcomes.shards import (
    MIGRATED_VERSION,
    OPTIONAL_COLUMNS,
    OUTCOME_SCHEMA,
    SCHEMA_VERSION,
    check_columns,
    digest_file,
    naming,
    parse_header,
    read_features,
    write_shard,
)

log = logging.getLogger(__name__)

_VISION_FLOPS = "vision_flops"
# Image statistics that identify a picture and do not depend on the backbone.
_STATISTICS = ("image/width", "image/height", "image/entropy")


def is_of_earlier_version(folder: Path) -> bool:
    """Whether a folder has labels of tokenscale 0.1."""
    return (folder / MANIFEST).is_file() and load_manifest(folder)["schema"] == MIGRATED_VERSION


def migrate(target: LabelFolder, task: Task, backbone: Backbone) -> None:
    """Convert the labels in a folder to the current schema; labelling then adds missing samples.

    Each shard of outcomes is rewritten atomically, and the manifest last, so that the same command resumes
    after a kill. The caller holds the lock of the folder. Raises ValueError if backbone or samples are not
    those of the labels.
    """
    manifest = load_manifest(target.path)
    if manifest["schema"] != MIGRATED_VERSION:
        return  # another process has migrated them meanwhile
    target.refuse_other(manifest, ignored=("data",))
    samples = {sample.sample_id: sample for split in SPLITS for sample in task.samples(split)}
    names = [path.stem for path in sorted((target.path / "outcomes").glob("*.parquet"))]
    tables = {name: _read_outcomes(target, backbone, name) for name in names}
    labelled = [sample_id for table in tables.values() for sample_id in table["sample_id"].to_pylist()]
    if labelled and samples.keys().isdisjoint(labelled):
        raise _refuse(target, task, f"the task has no sample {labelled[0]!r}, nor any other of the labels")
    kept = {name: _keep_same(task, table, samples, name, target) for name, table in tables.items()}
    reduced = [name for name, table in kept.items() if len(table) < len(tables[name])]
    with target.writing():
        originals = copy_aside(target.path, [find_shard(target.path, "outcomes", name) for name in reduced])
    if originals is not None:
        log.info("answers that cannot be migrated are kept in %s", originals)
    shards: dict[str, dict[str, str]] = {}
    sample_ids: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, table in kept.items():
        path = find_shard(target.path, "outcomes", name)
        header = _read_metadata(path)
        features = digest_file(find_shard(target.path, "features", name))
        with target.writing():
            write_shard(
                path,
                table,
                {"unreadable": [], **header, "fingerprints": target.fingerprints, "features": features},
            )
        shards[name] = {"samples": header["digest"], "outcomes": digest_file(path), "features": features}
        sample_ids[name.rpartition("-")[0]] += table["sample_id"].to_pylist()
    _migrate_resampled(target)
    keys = ("fingerprints", "scales", "feature_scales", "shards")
    former = {
        "labels": {key: manifest.get(key) for key in keys},
        "splits": {split: digest_samples(ids) for split, ids in sample_ids.items()},
    }
    target.manifest = {
        **{
            key: manifest[key]
            for key in ("backbone", "task", "scales", "feature_scales", "limit", "shard_size")
        },
        "schema": SCHEMA_VERSION,
        "fingerprints": target.fingerprints,
        "data": target.data,
        "division": target.division,
        **({"former": former} if manifest["complete"] else {}),
        "shards": shards,
        "complete": False,
    }
    target.write_manifest()
    log.info("the labels in %s, made by tokenscale 0.1, were migrated", target.path)


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read the header of a shard of either version: an interrupted migration leaves both."""
    with naming(path):
        metadata = pq.read_schema(path).metadata
    try:
        header = parse_header(metadata, str(path), MIGRATED_VERSION)
    except ValueError:
        header = parse_header(metadata, str(path), SCHEMA_VERSION)
    return {key: value for key, value in header.items() if key != "schema"}


def _read_outcomes(target: LabelFolder, backbone: Backbone, name: str) -> pa.Table:
    """Read the rows of a shard, with the current columns."""
    path = find_shard(target.path, "outcomes", name)
    with naming(path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    if "split" in table.column_names:
        table = table.drop_columns("split")
    if _VISION_FLOPS not in table.column_names:
        features = read_features(find_shard(target.path, "features", name))
        flops_of = {}
        for image_id, image in features.items():
            size = (int(image.statistics["image/width"]), int(image.statistics["image/height"]))
            flops_of[image_id] = [backbone.vision_flops(size, scale) for scale in target.scales]
        column = [flops_of[image_id] for image_id in table["image_id"].to_pylist()]
        field = OUTCOME_SCHEMA.field(_VISION_FLOPS)
        table = table.append_column(field, pa.array(column, type=field.type))
    check_columns(table, OUTCOME_SCHEMA, str(path), OPTIONAL_COLUMNS)
    return table


def _keep_same(
    task: Task, table: pa.Table, samples: Mapping[str, Sample], name: str, target: LabelFolder
) -> pa.Table:
    """Return the rows of samples that the task still has unchanged, and of images that it does not have.

    Likelihoods of tokenscale 0.1 include white space around references, which is now stripped: images with
    such a reference are dropped and answered again. Raises ValueError for any other difference.
    """
    images = {sample.image_id for sample in samples.values()}
    again: set[str] = set()
    dropped: set[str] = set()
    columns = ("sample_id", "image_id", "question", "references", "metric")
    for sample_id, image_id, question, references, metric in zip(
        *(table[column].to_pylist() for column in columns), strict=True
    ):
        sample = samples.get(sample_id)
        if sample is None:
            if image_id in images:
                dropped.add(sample_id)
            continue
        is_same = (sample.image_id, sample.question, sample.metric) == (image_id, question, metric)
        if not is_same or [text.strip() for text in references] != [
            text.strip() for text in sample.references
        ]:
            raise _refuse(target, task, f"sample {sample_id!r} of {name} is not that of task {task.name}")
        if references != list(sample.references):
            again.add(image_id)
    _check_picture(task, table, target, name)
    if again:
        log.info("%d images of shard %s have padded references and are answered again", len(again), name)
    pairs = zip(table["image_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True)
    keep = [image_id not in again and sample_id not in dropped for image_id, sample_id in pairs]
    return table.filter(pa.array(keep, type=pa.bool_()))


def _check_picture(task: Task, table: pa.Table, target: LabelFolder, name: str) -> None:
    """Raise ValueError if the first image of a shard is a different picture now."""
    for image_id in table["image_id"].to_pylist()[:1]:
        stored = read_features(find_shard(target.path, "features", name), image_ids={image_id})[image_id]
        try:
            statistics = describe_image(task.image(image_id))
        except UnreadableImage:
            return
        before, now = ([values[key] for key in _STATISTICS] for values in (stored.statistics, statistics))
        if not np.allclose(before, now, rtol=1e-4):
            raise _refuse(target, task, f"image {image_id!r} of task {task.name} is another picture")


def _refuse(target: LabelFolder, task: Task, reason: str) -> ValueError:
    """Return the error for labels that were made from data other than those of the task."""
    return ValueError(
        f"the labels in {target.path}, made by tokenscale 0.1, are of other data than task {task.name} "
        f"({reason}): give these data another name with task.name=NAME, or label into another folder with "
        "paths.labels=FOLDER"
    )


def _migrate_resampled(target: LabelFolder) -> None:
    """Write the current fingerprints of the labels into the files of resampled answers."""
    for path in sorted((target.path / RESAMPLED).glob("*.safetensors")):
        part = Part.read(path)
        with target.writing():
            Part(target.fingerprints, part.variation, part.samples, part.score).write(path)
