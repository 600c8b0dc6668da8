"""Adds the FLOPs of the vision pass to labels of an earlier version, which lack them."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.label_folder import LabelFolder
from m3_backbone.backbone import Backbone
from m3_backbone.shards import OUTCOME_SCHEMA, naming, read_header, read_shard, write_shard

log = logging.getLogger(__name__)

COLUMN = "vision_flops"


def lacks_vision_flops(folder: LabelFolder) -> bool:
    """Whether a finished folder has a shard of outcomes without FLOPs of the vision pass."""
    return any(_lacks_column(path) for path in folder.outcome_shards())


def _lacks_column(path: Path) -> bool:
    with naming(path):
        return COLUMN not in pq.read_schema(path).names


def add_vision_flops(folder: LabelFolder, backbone: Backbone, names: Iterable[str] | None = None) -> int:
    """Add the column to the shards `names` that lack it (without names: to all shards of a finished folder).

    Returns the number of rewritten shards. Nothing is answered and no image is read: the FLOPs follow from
    the stored image sizes. Each shard is rewritten atomically, with the same header. The caller holds the
    lock of the folder.
    """
    lacking = [path for path in folder.outcome_shards(names) if _lacks_column(path)]
    # Calibration last: an evaluation reads it first, and the column there means that all shards have it.
    for path in sorted(lacking, key=lambda path: (path.name.startswith("calibration"), path.name)):
        table = read_shard(path, OUTCOME_SCHEMA)
        flops_of = {
            image_id: [backbone.vision_flops(size, scale) for scale in folder.scales]
            for image_id, size in _read_sizes(folder.path / "features" / path.name).items()
        }
        column = [flops_of[image_id] for image_id in table["image_id"].to_pylist()]
        field = OUTCOME_SCHEMA.field(COLUMN)
        with folder.writing():
            write_shard(
                path, table.append_column(field, pa.array(column, type=field.type)), read_header(path)
            )
    if lacking:
        log.info("added the FLOPs of the vision pass to %d shards in %s", len(lacking), folder.path)
    return len(lacking)


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Image id -> (width, height) in pixels, from a shard of features; their tokens are not read."""
    with naming(path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=["image_id", "statistics"])
    statistics = [dict(row) for row in table["statistics"].to_pylist()]
    sizes = [(int(row["image/width"]), int(row["image/height"])) for row in statistics]
    return dict(zip(table["image_id"].to_pylist(), sizes, strict=True))
