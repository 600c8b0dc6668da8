"""Export of outcomes as a data set folder that pandas, Hugging Face `datasets` and `import_outcomes` read.

The folder has `outcomes.parquet`, one row per sample with the columns `NAME.score`, `NAME.cost`,
`NAME.answer` and `NAME.confidence` of every scale or option; `quality.parquet` and `cost.parquet`, the same
as matrices, if asked for; `images/`, if asked for; and the data card, which `reporting.data_card` writes.
"""

import hashlib
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.progress import show_progress
from experiments.tasks.base import Task, check_data
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.shards import write_atomically
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable, check_split

log = logging.getLogger(__name__)

OUTCOMES, QUALITY, COST, IMAGES = "outcomes.parquet", "quality.parquet", "cost.parquet", "images"
_IMAGE_NAME = re.compile(r"[0-9a-f]{16}\.png")
CARD = "README.md"
TOKENS = "visual tokens"


@dataclass(frozen=True, eq=False)
class ExportedOutcomes:
    """The outcomes of each exported split, and the manifest of their label folder."""

    tables: Mapping[str, OutcomeTable]
    manifest: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the scales or options, as in the columns."""
        return [str(scale) for scale in next(iter(self.tables.values())).scales]

    @property
    def cost_name(self) -> str:
        """Plural noun for the costs."""
        options = next(iter(self.tables.values())).options
        return TOKENS if options is None else options.cost


def read_exported(labels: Path, splits: list[str], recorder: EvaluationRecorder) -> ExportedOutcomes:
    """Return the outcomes of some splits. The test split is opened last, by a recorded description.

    Raises ValueError for splits without samples.
    """
    manifest = read_manifest(labels)
    for split in splits:
        check_split(manifest, split, labels)
    tables = {split: OutcomeTable.read(labels, split) for split in splits if split != HELD_OUT}
    if HELD_OUT in splits:
        tables[HELD_OUT] = recorder.open_test(labels)[0].outcomes
    return ExportedOutcomes({split: tables[split] for split in splits}, manifest)


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError for a folder with files that an export would replace, unless `overwrite`."""
    taken = [name for name in (OUTCOMES, QUALITY, COST, CARD, IMAGES) if (folder / name).exists()]
    if taken and not overwrite:
        raise ValueError(
            f"folder={folder} has {', '.join(taken)} already: give another folder, or replace them with "
            "overwrite=true"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={folder} is a file: give a folder")


def write_outcomes(
    exported: ExportedOutcomes, folder: Path, *, matrices: bool, images: Task | None
) -> list[str]:
    """Write the tables of an export into a folder, and the images of the task if it is given.

    Tables and images of an earlier export that this one does not have are deleted. Returns names and patterns
    of the written files. Raises ValueError if the task is not that of the labels.
    """
    if images is not None:
        check_data(images, exported.manifest, folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {} if images is None else write_images(exported, folder, images)
    _delete_other_images(folder, paths.values())
    tables = [tabulate(split, table, paths) for split, table in exported.tables.items()]
    _write(folder / OUTCOMES, pa.concat_tables(tables))
    if matrices:
        for name, part in ((QUALITY, "score"), (COST, "cost")):
            whole = pa.concat_tables(tables)
            columns = [f"{option}.{part}" for option in exported.names]
            matrix = whole.select(["sample_id", "split", *columns])
            _write(folder / name, matrix.rename_columns(["sample_id", "split", *exported.names]))
    else:
        for name in (QUALITY, COST):
            (folder / name).unlink(missing_ok=True)
    return [OUTCOMES, *((QUALITY, COST) if matrices else ()), *((f"{IMAGES}/*",) if images else ())]


def tabulate(split: str, table: OutcomeTable, images: Mapping[str, str]) -> pa.Table:
    """Return the outcomes of a split with a column per scale and part; `images` are paths by image id."""
    columns: dict[str, Any] = {
        "sample_id": table.sample_id.tolist(),
        "image_id": table.image_id.tolist(),
        "split": [split] * len(table),
        "category": table.kind.tolist(),
        "question": table.question.tolist(),
        "reference": pa.array(table.references, type=pa.list_(pa.string())),
        "metric": table.metric.tolist(),
    }
    if table.cluster_id is not table.image_id:
        columns["cluster"] = table.cluster_id.tolist()
    if images:
        columns["image"] = pa.array([images.get(image_id) for image_id in table.image_id], type=pa.string())
    costs = table.visual_tokens if table.options is None else table.cost
    has_confidence = table.options is None or table.options.has_confidence
    for column, scale in enumerate(table.scales):
        columns[f"{scale}.score"] = table.score[:, column]
        columns[f"{scale}.cost"] = costs[:, column]
        columns[f"{scale}.answer"] = [answers[column] for answers in table.answer]
        if has_confidence:
            columns[f"{scale}.confidence"] = table.confidence[:, column]
    return pa.table(columns)


def write_images(exported: ExportedOutcomes, folder: Path, task: Task) -> dict[str, str]:
    """Write every image as PNG, unless it is there; returns image id -> path in the folder.

    The name of a file is a digest of data and image id, so that images of another task are not taken for
    these. An image that cannot be read any more is left out with a warning.
    """
    (folder / IMAGES).mkdir(exist_ok=True)
    data = exported.manifest["fingerprints"]["data"]
    image_ids = list(dict.fromkeys(i for table in exported.tables.values() for i in table.image_id))
    paths: dict[str, str] = {}
    with show_progress("writing images", total=len(image_ids), unit="images") as progress:
        for image_id in image_ids:
            content = f"{data} {image_id}".encode("utf-8", "surrogatepass")
            name = f"{IMAGES}/{hashlib.sha256(content).hexdigest()[:16]}.png"
            try:
                if not (folder / name).is_file():
                    image = task.image(image_id)
                    write_atomically(folder / name, partial(image.save, format="PNG"))
                paths[image_id] = name
            except OSError as error:
                log.warning("left out: %s", error)
            progress.update(1)
    return paths


def _delete_other_images(folder: Path, kept: Collection[str]) -> None:
    """Delete the images of an earlier export, so that they are not uploaded."""
    for file in (folder / IMAGES).glob("*.png"):
        if _IMAGE_NAME.fullmatch(file.name) and f"{IMAGES}/{file.name}" not in kept:
            file.unlink()


def _write(path: Path, table: pa.Table) -> None:
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
