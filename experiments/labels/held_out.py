"""Access to the test split: only this module opens it, after the evaluation has been recorded.

Reading the test split of a label folder takes a `HeldOutAccess` (`m3_backbone.outcomes.table`), and only an
`EvaluationRecorder` makes one. Records are kept in a folder of their own (`paths.evaluations`), so that they
survive a new labelling and can be written even if the labels are read-only.

`BACKBONE/TASK.jsonl` has one line for each time that a test split was opened: time, command, digest of the
configuration, predictors (name and digest), and images (digest of a list in a folder beside it). An
evaluation is **new** if one of its predictors has not been evaluated on this data before: evaluating a subset
again is not new, and a description of the data evaluates no predictor. A split that was evaluated forty times
while predictors were changed is no longer a test split, so the report states the number of the evaluation.
After another division of the same images into splits, it also states how many test images were evaluated
before, and how many of the other images were once test images.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.labels.files import to_file_name
from m3_backbone.outcomes.labels import SPLITS, Labels, read_labels
from m3_backbone.outcomes.manifest import list_images, read_manifest, seal, unseal
from m3_backbone.outcomes.shards import write_bytes
from m3_backbone.outcomes.table import HELD_OUT, HeldOutAccess, check_split

log = logging.getLogger(__name__)

# File of records in label folders of tokenscale 0.1; these records still count.
OLD_RECORDS = "test_reads.jsonl"


@dataclass(frozen=True)
class EvaluationRecord:
    """One opening of a test split: the `number`-th for its data.

    `predictors` are names, `configuration` is a digest. `evaluation` is the number of evaluations of new
    predictors on this data so far, this one included if it `is_new`; 0 if no predictor was ever evaluated.
    `num_evaluated_before` of the test images were evaluated under another division into splits,
    `num_once_test` of the train and calibration images were test images there; `num_unread` lists of images
    could not be read, and are not counted. `path` is the file of
    records; `is_recorded` is False if it could not be written and `allow_unrecorded` was set.
    """

    time: str
    command: str
    predictors: tuple[str, ...]
    configuration: str
    number: int
    evaluation: int
    is_new: bool
    num_evaluated_before: int
    num_once_test: int
    path: Path
    num_unread: int = 0
    is_recorded: bool = True


@dataclass(frozen=True)
class EvaluationRecorder:
    """Opens the test splits that a command evaluates, after it has recorded each evaluation.

    `records` is the folder of all records (`paths.evaluations`), `configuration` the configuration of the
    command as text. With `allow_unrecorded`, a record that cannot be written is only logged.
    """

    records: Path
    command: str
    configuration: str = ""
    allow_unrecorded: bool = False

    def open_test(
        self, labels: Path, predictors: Mapping[str, str] | None = None
    ) -> tuple[Labels, EvaluationRecord]:
        """Return the test split of the folder `labels`, and the record of this evaluation, written first.

        `predictors` maps names to digests of what is evaluated; empty for a description of the data. Raises
        ValueError if the record cannot be written, unless `allow_unrecorded`.
        """
        manifest = read_manifest(labels)
        check_split(manifest, HELD_OUT, labels)
        log_of_task = EvaluationLog.of(self.records, manifest)
        images = {split: list_images(labels, split) for split in SPLITS if manifest["counts"].get(split)}
        for split, ids in images.items():
            if split != HELD_OUT and (shared := set(ids) & set(images[HELD_OUT])):
                raise ValueError(
                    f"image {min(shared)!r} is in {split} and in {HELD_OUT}: move the labels away and label "
                    "again"
                )
        line: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "configuration": hashlib.sha256(self.configuration.encode()).hexdigest()[:16],
            "predictors": dict(predictors or {}),
            "data": identify_data(manifest),
            "image_set": str(manifest.get("image_set") or manifest.get("task", "")),
        }
        try:
            line["images"] = log_of_task.write_images(images[HELD_OUT])
            log_of_task.append(line)
            is_recorded = True
        except OSError as error:
            if not self.allow_unrecorded:
                raise ValueError(
                    f"this evaluation cannot be recorded in {log_of_task.path} ({error.strerror or error}), "
                    "and the test split is not read without a record: choose another folder with "
                    "paths.evaluations=FOLDER, or set allow_unrecorded=true, which the report will state"
                ) from error
            log.warning("this evaluation is not recorded: %s", error)
            is_recorded = False
        access = HeldOutAccess(labels.resolve(), line["id"])
        record = _describe(log_of_task, self.records, labels, line, images, is_recorded)
        return read_labels(labels, HELD_OUT, access), record


def identify_data(manifest: Mapping[str, Any]) -> str:
    """Return a digest of the data of labels and of their division into splits.

    For labels migrated from tokenscale 0.1 (`labels.migration`), as long as their division is unchanged, it
    is the former fingerprint of the data, so that earlier evaluations still count.
    """
    former = manifest.get("former")
    if former is not None and former["splits"] == manifest["splits"]:
        return str(former["labels"]["fingerprints"]["data"])
    content = json.dumps([manifest["fingerprints"]["data"], manifest.get("division")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class EvaluationLog:
    """Records of one backbone and task: the lines of `path`, and lists of images in a folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path.with_suffix(".images")

    @classmethod
    def of(cls, records: Path, manifest: Mapping[str, Any]) -> "EvaluationLog":
        """Return the log for the backbone and task of a label manifest, in the folder `records`."""
        backbone, task = (to_file_name(str(manifest.get(key, ""))) for key in ("backbone", "task"))
        return cls(records / backbone / f"{task}.jsonl")

    def read(self) -> list[dict[str, Any]]:
        """Return all records, oldest first; an incomplete line is skipped with a warning."""
        return _read_lines(self.path)

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line in a single write, so that concurrent commands do not mix their lines."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(seal(line), ensure_ascii=False) + "\n"
        if self.path.is_file() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            text = f"\n{text}"  # the last line is incomplete, after a kill
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, text.encode("utf-8"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write_images(self, image_ids: Iterable[str]) -> str:
        """Store a list of images, once for all records that use it; returns its digest."""
        content = json.dumps(sorted(image_ids), ensure_ascii=False).encode("utf-8", "surrogatepass")
        digest = _digest_images(content)
        path = self.images / f"{digest}.json"
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        return digest

    def read_images(self, digest: str) -> set[str] | None:
        """Return the list of images with this digest; None, with a warning, if it is missing or damaged."""
        path = self.images / f"{digest}.json"
        try:
            content = path.read_bytes()
            if _digest_images(content) != digest:
                raise ValueError("its content does not have the digest in its name")
            return set(json.loads(content.decode("utf-8", "surrogatepass")))
        except (OSError, ValueError) as error:
            log.warning("images of an earlier evaluation are not counted: %s (%s)", path, error)
            return None


def _digest_images(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _list_other_divisions(records: Path, line: Mapping[str, Any]) -> list[tuple[EvaluationLog, str]]:
    """Return (log, digest of the list) of test images of the same image set under other divisions.

    All logs count: the same images may have been evaluated with another backbone.
    """
    log_of: dict[tuple[Path, str], EvaluationLog] = {}
    for path in sorted(records.glob("*/*.jsonl")):
        other_log = EvaluationLog(path)
        for other in other_log.read():
            is_other = other.get("data") != line["data"] and other.get("image_set") == line["image_set"]
            if is_other and other.get("predictors") and other.get("images"):
                log_of[path, str(other["images"])] = other_log
    return [(other_log, digest) for (_, digest), other_log in log_of.items()]


def _describe(
    log_of_task: EvaluationLog,
    records: Path,
    labels: Path,
    line: Mapping[str, Any],
    images: Mapping[str, list[str]],
    is_recorded: bool,
) -> EvaluationRecord:
    """Return the `EvaluationRecord` of `line`, from all records of its backbone and task."""
    lines = [*_read_lines(labels / OLD_RECORDS), *log_of_task.read()]
    if is_recorded:
        own = next(number for number, record in enumerate(lines) if record.get("id") == line["id"])
        lines = lines[: own + 1]
    else:
        lines.append(dict(line))
    same_data = [record for record in lines if record.get("data") == line["data"]]
    known: set[str] = set()
    evaluation, is_new = 0, False
    for record in same_data:
        digests = set((record.get("predictors") or {}).values())
        is_new = not digests <= known
        evaluation += is_new
        known |= digests
    once_test: set[str] = set()
    num_unread = 0
    for other_log, digest in _list_other_divisions(records, line):
        image_ids = other_log.read_images(digest)
        num_unread += image_ids is None
        once_test |= image_ids or set()
    others = {image for split, ids in images.items() if split != HELD_OUT for image in ids}
    return EvaluationRecord(
        time=line["time"],
        command=line["command"],
        predictors=tuple(line["predictors"]),
        configuration=line["configuration"],
        number=len(same_data),
        evaluation=evaluation,
        is_new=is_new,
        num_evaluated_before=len(once_test & set(images[HELD_OUT])),
        num_once_test=len(once_test & others),
        num_unread=num_unread,
        path=log_of_task.path,
        is_recorded=is_recorded,
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    # Not `splitlines`, which also divides at separators that JSON may have in a text.
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        try:
            content = json.loads(text) if text else None
            content = unseal(content) if isinstance(content, dict) else content
        except (ValueError, RecursionError):
            content = text
        if isinstance(content, dict):
            lines.append(content)
        elif content is not None:
            log.warning("line %d of %s is not a record and does not count", number, path)
    return lines
