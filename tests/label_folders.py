"""Label folders written without a backbone, for tests of what reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from experiments.labels.folder import KeptInputs, LabelFolder
from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes.manifest import (
    EMBEDDINGS,
    SPLITS,
    SPLITS_FILE,
    digest_samples,
    find_shard,
    read_manifest,
    write_splits,
)
from m3_backbone.outcomes.shards import SCHEMA_VERSION, digest_file, to_feature_table, write_shard
from m3_backbone.outcomes.table import OutcomeTable

# Split, outcomes and features of one shard.
Shard = tuple[str, OutcomeTable, Mapping[str, ImageFeatures]]


def write_label_folder(
    folder: Path, shards: Mapping[str, Shard], embeddings: Tensor, manifest: Mapping[str, Any] | None = None
) -> None:
    """A finished label folder of these shards, by name; `manifest` replaces parts of its manifest."""
    for room in ("outcomes", "features"):
        (folder / room).mkdir(parents=True)
    listed = {}
    images: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    samples: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, (split, table, features) in shards.items():
        outcome_file = find_shard(folder, "outcomes", name)
        feature_file = find_shard(folder, "features", name)
        write_shard(feature_file, to_feature_table(features), table.header)
        header = {**table.header, "digest": split, "features": digest_file(feature_file), "skipped": []}
        write_shard(outcome_file, table.to_arrow(), header)
        listed[name] = {
            "samples": split,
            "outcomes": digest_file(outcome_file),
            "features": digest_file(feature_file),
        }
        images[split] += [(image_id, name) for image_id in dict.fromkeys(table.image_id)]
        samples[split] += list(table.sample_id)
    save_file({"token_embeddings": embeddings}, folder / EMBEDDINGS)
    write_splits(folder, images)
    first = next(iter(shards.values()))[1]
    content = {
        **first.header,
        "schema": SCHEMA_VERSION,
        "division": {},
        "feature_scales": list(next(iter(next(iter(shards.values()))[2].values())).visual),
        "counts": {split: len(ids) for split, ids in samples.items()},
        "splits": {split: digest_samples(ids) for split, ids in samples.items()},
        "shards": listed,
        "files": {name: digest_file(folder / name) for name in (SPLITS_FILE, EMBEDDINGS)},
        "complete": True,
    }
    (folder / "manifest.json").write_text(json.dumps(content | dict(manifest or {})), encoding="utf-8")


def open_label_folder(path: Path) -> LabelFolder:
    """The writer of an existing label folder, opened."""
    manifest = read_manifest(path)
    scales, feature_scales = (tuple(manifest[key]) for key in ("scales", "feature_scales"))
    target = LabelFolder(
        path, fingerprints=manifest["fingerprints"], scales=scales, kept=KeptInputs(feature_scales)
    )
    assert target.open()
    return target
