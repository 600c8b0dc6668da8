"""Division of the shards of labels into splits, with counts and mean scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.labels.blocks import Plan
from experiments.tasks.base import SPLITS, Split
from experiments.tasks.sizes import Banner, check_sizes, find_banners
from m3_backbone.outcomes.manifest import digest_samples, find_shard, list_images, read_manifest
from m3_backbone.outcomes.shards import naming, read_header, to_matrix
from m3_backbone.outcomes.table import find_cluster, parse_object

# Margin of the likeliest token over the next, in nats, below which rounding may change the answer.
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Division:
    """Images, counts and scores of each split.

    By split: `images` are (image id, name of its shard), `counts` are numbers of samples, `num_clusters`
    those of clusters of images, `digests` are those of the sample ids, `accuracy` are mean scores per scale.
    `skipped` are the samples that could not be answered. `num_near_ties` is the number of answers with a
    margin below `NEAR_TIE` nats.
    """

    images: dict[str, list[tuple[str, str]]]
    counts: dict[str, int]
    num_clusters: dict[str, int]
    digests: dict[str, str]
    accuracy: dict[str, list[float]]
    skipped: list[dict[str, Any]]
    num_near_ties: int


def divide_shards(folder: Path, shards: Iterable[str], work: Plan, scales: Sequence[int]) -> Division:
    """Assign the images of `shards` to the planned splits; images outside of the plan get no split."""
    rows: list[tuple[str, str, str]] = []  # (name of the shard, image id, sample id)
    cluster_of: dict[str, str] = {}
    scores, margins = ([np.zeros((0, len(scales)))] for _ in range(2))
    skipped: dict[str, dict[str, Any]] = {}
    for name in shards:
        path = find_shard(folder, "outcomes", name)
        header = read_header(path)
        # Imported outcomes have no margins.
        measured = () if "options" in header else ("margin",)
        table = read_columns(path, "image_id", "sample_id", "attributes", "score", *measured)
        image_ids = table["image_id"].to_pylist()
        pairs = zip(image_ids, table["sample_id"].to_pylist(), strict=True)
        rows += [(name, image_id, sample_id) for image_id, sample_id in pairs]
        cluster_of |= {
            image_id: find_cluster(image_id, parse_object(text, str(path)))
            for image_id, text in zip(image_ids, table["attributes"].to_pylist(), strict=True)
        }
        scores.append(to_matrix(table, "score", len(scales), str(path)))
        if measured:
            margins.append(to_matrix(table, "margin", len(scales), str(path)))
        else:
            margins.append(np.full((len(table), len(scales)), np.inf))
        skipped |= {row["sample_id"]: row for row in get_skipped(header)}
    score, margin = np.concatenate(scores), np.concatenate(margins)
    # An image in two shards was answered again: the later shard counts.
    shard_of = {image_id: name for name, image_id, _ in rows}
    split_of = {image_id: split for split, images in work.images.items() for image_id in images}
    owner = np.array(
        [split_of.get(image_id, "") if shard_of[image_id] == name else "" for name, image_id, _ in rows],
        dtype=object,
    )
    sample_ids = {split: [rows[row][2] for row in np.flatnonzero(owner == split)] for split in SPLITS}
    answered = {sample_id for ids in sample_ids.values() for sample_id in ids}
    return Division(
        images={
            split: [(image_id, shard_of[image_id]) for image_id in images if image_id in shard_of]
            for split, images in work.images.items()
        },
        counts={split: len(ids) for split, ids in sample_ids.items()},
        num_clusters={
            split: len({cluster_of[image_id] for image_id in images if image_id in cluster_of})
            for split, images in work.images.items()
        },
        digests={split: digest_samples(ids) for split, ids in sample_ids.items()},
        accuracy={
            split: score[owner == split].mean(axis=0, dtype=float).tolist() if ids else []
            for split, ids in sample_ids.items()
        },
        skipped=[
            *(dict(row) for row in work.skipped),
            *(
                {"split": split_of[row["image_id"]], **row}
                for sample_id, row in skipped.items()
                if sample_id not in answered and row["image_id"] in split_of
            ),
        ],
        num_near_ties=int((margin[owner != ""] < NEAR_TIE).sum()),
    )


def get_skipped(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the skipped samples in the header of a shard of outcomes, of any version."""
    return header["skipped"] if "skipped" in header else header["set_aside"]


def read_ids(path: Path) -> Iterable[tuple[str, str]]:
    """Return (image id, sample id) of each row of a shard of outcomes."""
    table = read_columns(path, "image_id", "sample_id")
    return zip(table["image_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True)


def read_columns(path: Path, *names: str) -> pa.Table:
    """Read some columns of a shard of outcomes. Raises ValueError for a damaged file."""
    with naming(path):
        return pq.read_table(path, columns=list(names))


def count_clusters(folder: Path, split: Split) -> int:
    """Return the number of images in a split of finished labels; images of one cluster count as one.

    For labels that do not store the number of clusters, images are counted.
    """
    num_clusters: Mapping[str, int] = read_manifest(folder).get("num_clusters", {})
    return num_clusters[split] if split in num_clusters else len(list_images(folder, split))


def check_labels(folder: str | Path, needed: Sequence[Split], *, allow_small: bool) -> None:
    """Raise ValueError for labels with too few images in a needed split (`tasks.sizes.check_sizes`).

    Unfinished labels are not checked: reading them raises an error anyway.
    """
    folder = Path(folder)
    if read_manifest(folder)["complete"]:
        counts = {split: count_clusters(folder, split) for split in needed}
        what, way_out = f"the labels in {folder} are about", "label more images"
        check_sizes(counts, what, way_out, allow_small=allow_small, unit=" images")


def find_label_banners(folder: str | Path, splits: Sequence[Split], task: str = "") -> list[Banner]:
    """Return the banners for the `splits` with labels in the folder; `task` is its name in the banners."""
    folder = Path(folder)
    samples = read_manifest(folder)["counts"]
    labelled = [split for split in splits if samples.get(split)]
    return find_banners(
        test_images=count_clusters(folder, "test") if "test" in labelled else None,
        calibration_images=count_clusters(folder, "calibration") if "calibration" in labelled else None,
        training_samples=samples["train"] if "train" in labelled else None,
        task=task,
    )
