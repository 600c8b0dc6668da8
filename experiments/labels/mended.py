"""Samples that were skipped for a picture that could not be read, and can be read by now."""

from pathlib import Path

from experiments.blocks import read_image
from experiments.tasks.base import SPLITS, Task
from m3_backbone.images import PREFIX
from m3_backbone.shards import find_shards, read_header


def find_mended(folder: Path, task: Task) -> set[str]:
    """Names of the shards of a label folder that lack a sample whose picture can be read by now.

    The pictures that were unreadable are tried, and no others. Any other reason to skip a sample holds for as
    long as data and backbone are the same.
    """
    mended = set()
    for path in (path for split in SPLITS for path in find_shards(folder, "outcomes", split)):
        try:
            skipped = read_header(path)["set_aside"]
        except (OSError, ValueError):
            continue  # not whole, so made again anyway
        image_ids = dict.fromkeys(row["image_id"] for row in skipped if row["reason"].startswith(PREFIX))
        if any(not isinstance(read_image(task, image_id), str) for image_id in image_ids):
            mended.add(path.stem)
    return mended
