"""The test split: read here and nowhere else by what predictors are judged with, and every read is recorded.

`test_reads.jsonl` beside the labels has a line for each read: when, by which command with which configuration
(a digest), and which predictors (name and digest). A read of predictors that were judged before shows
nothing new; one of any others is another **look**, and one of none (a description of the data) is no look. A
split that has been looked at forty times while predictors were changed is not a test split any more, so the
report says which look it is.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from m3_backbone.labels import Labels, read_labels

log = logging.getLogger(__name__)

TEST_READS = "test_reads.jsonl"


@dataclass(frozen=True)
class HeldOutRead:
    """One read of a test split: the `number`-th of its data, the `look`-th that was a new look (0: none).

    `configuration` is a digest. `is_recorded` is False where the folder could not be written to; the numbers
    are then those that it would have had.
    """

    time: str
    command: str
    predictors: tuple[str, ...]
    configuration: str
    number: int
    look: int
    is_recorded: bool = True


def read_test(
    labels: Path,
    *,
    command: str,
    configuration: str,
    predictors: Mapping[str, str] | None = None,
) -> tuple[Labels, HeldOutRead]:
    """The test split of a label folder, after its read has been recorded.

    `configuration` is that of the command, as text; `predictors` are name -> digest of those that are judged.
    """
    split = read_labels(labels, "test")
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "configuration": hashlib.sha256(configuration.encode()).hexdigest()[:16],
        "predictors": dict(predictors or {}),
        "data": split.outcomes.fingerprints["data"],
    }
    earlier = [each for each in list_reads(labels) if each["data"] == line["data"]]
    looks: list[Mapping[str, str]] = []
    for each in (*earlier, line):
        if each["predictors"] and each["predictors"] not in looks:
            looks.append(each["predictors"])
    return split, HeldOutRead(
        time=line["time"],
        command=command,
        predictors=tuple(line["predictors"]),
        configuration=line["configuration"],
        number=len(earlier) + 1,
        look=looks.index(line["predictors"]) + 1 if line["predictors"] else 0,
        is_recorded=_append(labels / TEST_READS, line),
    )


def list_reads(labels: Path) -> list[dict[str, Any]]:
    """All reads recorded beside the labels, the oldest first; a line that a kill cut short is left out."""
    path = labels / TEST_READS
    if not path.is_file():
        return []
    reads = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            reads.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("line %d of %s is no JSON and does not count", number, path)
    return reads


def digest_folder(folder: Path, *names: str) -> str:
    """A digest of the named files of a folder, those that exist."""
    content = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            content.update(f"{name}\0".encode() + (folder / name).read_bytes())
    return content.hexdigest()[:16]


def _append(path: Path, line: Mapping[str, Any]) -> bool:
    """Add a line in one write, so that two commands at the same time leave two lines."""
    text = json.dumps(line, ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode("utf-8"))
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("this read of the test split is not recorded: %s", error)
        return False
    return True
