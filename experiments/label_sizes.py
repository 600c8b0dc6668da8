"""Numbers of images in a label folder, counted without reading outcomes."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from experiments.tasks.base import Split
from experiments.tasks.sizes import Banner, check_sizes, find_banners
from m3_backbone.shards import find_shards, naming, read_manifest


def count_labelled_images(folder: str | Path, split: Split) -> int:
    """Return the number of images of a split that have answers: each has one row of features."""
    shards = find_shards(Path(folder), "features", split)
    num_images = 0
    for path in shards:
        with naming(path):
            num_images += pq.read_metadata(path).num_rows
    return num_images


def check_labels(folder: str | Path, needed: Sequence[Split], *, allow_small: bool) -> None:
    """Refuse labels with too few images in a split that will be used (`tasks.sizes.check_sizes`).

    Unfinished labels are not checked here: reading them raises an error.
    """
    if read_manifest(Path(folder))["complete"]:
        counts = {split: count_labelled_images(folder, split) for split in needed}
        what, way_out = f"the labels in {folder} are about", "label more images"
        check_sizes(counts, what, way_out, allow_small=allow_small, unit=" images")


def find_label_banners(folder: str | Path, splits: Sequence[Split], task: str = "") -> list[Banner]:
    """Return the banners for the `splits` with labels in the folder; `task` is its name in the banners."""
    samples = read_manifest(Path(folder))["counts"]
    there = [split for split in splits if samples.get(split)]
    return find_banners(
        test_images=count_labelled_images(folder, "test") if "test" in there else None,
        calibration_images=count_labelled_images(folder, "calibration") if "calibration" in there else None,
        training_samples=samples["train"] if "train" in there else None,
        task=task,
    )
