"""State of a label folder, also while processes write into it: which blocks are done, running or to do again.

Nothing is locked, written or answered. Blocks are known from the records of the processes that work or have
worked on the folder (`labels.records`), and are done if their files are there.
"""

import itertools
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from experiments.labels.records import WORK, WorkRecord, clean, clean_command, read_records, replace_part
from experiments.labels.resampled import locate_resampled
from experiments.tasks.base import SPLITS
from m3_backbone.outcomes.manifest import MANIFEST, find_shard, read_manifest
from m3_backbone.outcomes.shards import is_intact, read_header
from m3_backbone.outcomes.table import HELD_OUT

BlockState = Literal["done", "running", "failed", "missing"]
BLOCK_STATES: tuple[BlockState, ...] = ("done", "running", "failed", "missing")


@dataclass(frozen=True)
class BlockStatus:
    """State of a block; `detail` is the process that works on it, or the reason why it failed."""

    name: str
    state: BlockState
    num_samples: int
    part: str
    detail: str = ""


@dataclass(frozen=True)
class PartStatus:
    """State of the process on a part of the blocks; "" if it never began."""

    part: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class WorkStatus:
    """State of the labelling of a folder, or of its sampled answers.

    `is_known` is False if the folder does not say how many blocks it will have. `commands` do the rest of the
    work, in `directory`.
    """

    work: str
    folder: Path
    is_complete: bool
    blocks: list[BlockStatus] = field(default_factory=list)
    parts: list[PartStatus] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    directory: str = ""
    is_known: bool = True

    def count(self, part: str | None = None) -> Counter[str]:
        """Return the number of blocks in each state, of one part or of all."""
        return Counter(block.state for block in self.blocks if part in (None, block.part))


def is_label_folder(folder: Path) -> bool:
    """Return whether a labelling was begun in this folder."""
    return (folder / MANIFEST).is_file() or (folder / WORK).is_dir()


def read_label_status(folder: Path, *, verify: bool = False) -> list[WorkStatus]:
    """Return the state of the labelling, and that of sampled answers if there are any.

    With `verify`, the files of a finished labelling are read and compared with their digests. Raises
    ValueError for a damaged manifest.
    """
    has_manifest = (folder / MANIFEST).is_file()
    manifest: dict[str, Any] = read_manifest(folder) if has_manifest else {"complete": False, "shards": {}}
    status = [_read_labelling(folder, manifest, verify)]
    for split in SPLITS:
        sampled = locate_resampled(folder, split)
        if sampled.is_dir() and (any(sampled.glob("*.safetensors")) or (sampled / WORK).is_dir()):
            work = "sampled answers" if split == HELD_OUT else f"sampled answers of {split}"
            status.append(_read_sampled(sampled, work))
    return status


def _read_labelling(folder: Path, manifest: Mapping[str, Any], verify: bool) -> WorkStatus:
    """Return the state of the labelling.

    In a finished folder, damaged or missing files are failed or missing blocks of no part.
    """
    earlier = []
    for name, shard in manifest["shards"].items():
        paths = {kind: find_shard(folder, kind, name) for kind in ("outcomes", "features")}
        state: BlockState = "done" if all(path.is_file() for path in paths.values()) else "missing"
        if state == "done" and verify and not all(is_intact(paths[kind], shard[kind]) for kind in paths):
            state = "failed"
        earlier.append(BlockStatus(name, state, 0, "", "damaged" if state == "failed" else ""))

    def is_done(name: str, digest: str, num_samples: int) -> bool:
        try:
            header = read_header(find_shard(folder, "outcomes", name))
        except (OSError, ValueError):
            return False
        return header.get("digest") == digest and find_shard(folder, "features", name).is_file()

    records = _read_parts(folder)
    if not manifest["complete"]:
        return _find_states("labels", folder, records, is_done, earlier)
    is_whole = all(block.state == "done" for block in earlier)
    last = max(records, key=lambda record: record.started, default=None)
    return WorkStatus(
        work="labels",
        folder=folder,
        is_complete=is_whole,
        blocks=earlier,
        commands=[] if is_whole or last is None else [clean_command(last.command)],
        directory="" if last is None else last.directory,
    )


def _read_sampled(folder: Path, work: str) -> WorkStatus:
    def is_done(name: str, num_runs: str, num_samples: int) -> bool:
        try:
            with safe_open(folder / f"{name}.safetensors", "np") as file:
                stored = json.loads((file.metadata() or {})["samples"])
                return len(stored) >= num_samples and file.get_slice("score").get_shape()[0] >= int(num_runs)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
            return False

    records = _read_parts(folder)
    if records:
        return _find_states(work, folder, records, is_done, [])
    # Sampled by a version without records, which wrote a file when it was complete.
    done = [BlockStatus(path.stem, "done", 0, "") for path in sorted(folder.glob("*.safetensors"))]
    return WorkStatus(work, folder, True, done, is_known=False)


def _read_parts(folder: Path) -> list[WorkRecord]:
    """Return the records of the parts that were planned with the newest of them, in order."""
    records = [record for record in read_records(folder / WORK, "part-*.json").values() if record.part]
    newest = max(records, key=lambda record: record.started, default=None)
    if newest is None:
        return []
    count = _count(newest)
    same = [record for record in records if record.blocks == newest.blocks and _count(record) == count]
    return sorted(same, key=_index)


def _index(record: WorkRecord) -> int:
    return _parse(record)[0]


def _count(record: WorkRecord) -> int:
    return _parse(record)[1]


def _parse(record: WorkRecord) -> tuple[int, int]:
    index, _, count = (record.part or "").partition("/")
    return (int(index), int(count)) if index.isdecimal() and count.isdecimal() and int(count) else (0, 1)


def _find_states(
    work: str,
    folder: Path,
    records: list[WorkRecord],
    is_done: Callable[[str, str, int], bool],
    earlier: list[BlockStatus],
) -> WorkStatus:
    """Return the state of unfinished work from the records of its parts and blocks."""
    if not records:
        return WorkStatus(work, folder, False, earlier, is_known=False)
    newest = max(records, key=lambda record: record.started)
    count = _count(newest)
    in_work = read_records(folder / WORK, "block-*.json")
    blocks = list(earlier)
    for (name, (digest, num_samples)), index in zip(
        newest.blocks.items(), itertools.cycle(range(count)), strict=False
    ):
        state, detail = _find_state(in_work.get(f"block-{name}"))
        if is_done(name, digest, num_samples):
            state, detail = "done", ""
        blocks.append(BlockStatus(name, state, num_samples, f"{index}/{count}", detail))
    by_part = {record.part: record for record in records}
    parts = []
    to_do = []
    for part in (f"{index}/{count}" for index in range(count)):
        record = by_part.get(part)
        states = {block.state for block in blocks if block.part == part}
        if record is None:
            parts.append(PartStatus(part, "done" if states <= {"done"} else "not begun"))
        else:
            detail = record.outcome
            parts.append(PartStatus(part, record.state, detail))
        if states - {"done"} and (record is None or record.state != "running"):
            to_do.append(part)
    is_running = any(record.state == "running" for record in records)
    is_complete = work != "labels" and all(block.state == "done" for block in blocks) and not is_running
    if not is_complete and not to_do and not is_running:
        to_do = [parts[-1].part]  # all blocks are done, and the last step is missing
    commands = _write_commands(newest, to_do, count)
    return WorkStatus(work, folder, is_complete, blocks, parts, commands, clean(newest.directory))


def _find_state(record: WorkRecord | None) -> tuple[BlockState, str]:
    if record is None:
        return "missing", ""
    return "running" if record.state == "running" else "failed", record.outcome


def _write_commands(record: WorkRecord, to_do: list[str], count: int) -> list[str]:
    """Return the command lines that do the parts `to_do`; one sweep if they were the jobs of a sweep."""
    command = clean_command(record.command)
    if not command or not to_do:
        return []
    if count == 1:
        return [command]
    if not record.launcher:
        return [replace_part(command, part) for part in to_do]
    words = shlex.split(replace_part(command, ",".join(to_do)))
    num_program = 3 if words[:2] == ["python", "-m"] else 2
    return [shlex.join([*words[:num_program], "-m", *words[num_program:], *record.launcher])]
