"""Numbers of images in a label folder, counted without reading outcomes."""

from collections.abc import Sequence
from pathlib import Path

from experiments.tasks.base import Split
from experiments.tasks.sizes import Banner, check_sizes, find_banners
from m3_backbone.outcomes.manifest import list_images, read_manifest


def check_labels(folder: str | Path, needed: Sequence[Split], *, allow_small: bool) -> None:
    """Refuse labels with too few images in a split that will be used (`tasks.sizes.check_sizes`).

    Unfinished labels are not checked here: reading them raises an error.
    """
    folder = Path(folder)
    if read_manifest(folder)["complete"]:
        counts = {split: len(list_images(folder, split)) for split in needed}
        what, way_out = f"the labels in {folder} are about", "label more images"
        check_sizes(counts, what, way_out, allow_small=allow_small, unit=" images")


def find_label_banners(folder: str | Path, splits: Sequence[Split], task: str = "") -> list[Banner]:
    """Return the banners for the `splits` with labels in the folder; `task` is its name in the banners."""
    folder = Path(folder)
    samples = read_manifest(folder)["counts"]
    there = [split for split in splits if samples.get(split)]
    return find_banners(
        test_images=len(list_images(folder, "test")) if "test" in there else None,
        calibration_images=len(list_images(folder, "calibration")) if "calibration" in there else None,
        training_samples=samples["train"] if "train" in there else None,
        task=task,
    )
