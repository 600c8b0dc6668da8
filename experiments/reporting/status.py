"""Tables of the state of label folders, runs and sweeps."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.labels.status import BLOCK_STATES, BlockStatus, WorkStatus
from experiments.reporting.tables import format_table
from experiments.results.jobs import JobStatus

# Largest number of blocks of one state that are listed with their process or reason.
_MOST_BLOCKS = 10


def format_work(status: WorkStatus) -> str:
    """Return a table of the parts of the work on a label folder, its unfinished blocks, and what to run."""
    counts = status.count()
    total = len(status.blocks)
    lines = [f"{status.work}: {status.folder}"]
    if status.parts:
        rows = [["part", "process", *BLOCK_STATES, "samples done"]]
        earlier = status.count("")
        if earlier:
            rows.append(["earlier", "", *(str(earlier[state]) for state in BLOCK_STATES), ""])
        for part in status.parts:
            own = status.count(part.part)
            blocks = [block for block in status.blocks if block.part == part.part]
            done = sum(block.num_samples for block in blocks if block.state == "done")
            samples = f"{done:,} of {sum(block.num_samples for block in blocks):,}"
            rows.append([part.part, part.state, *(str(own[state]) for state in BLOCK_STATES), samples])
        lines.append(format_table(rows))
    lines += [f"part {part.part}: {part.detail}" for part in status.parts if part.detail]
    lines += _describe_blocks(status.blocks)
    numbers = ", ".join(f"{counts[state]:,} {state}" for state in BLOCK_STATES if counts[state])
    if status.is_complete:
        lines.append(f"complete: {total:,} files")
    elif status.is_known:
        lines.append(f"not complete: {numbers or 'no file'}, of {total:,} files")
    else:
        lines.append(
            f"not complete: {numbers or 'no file'}; how many are to come is not recorded here: run the "
            "`tokenscale` command again that began this folder"
        )
    return "\n".join([*lines, *_list_commands([(status.directory, text) for text in status.commands])])


def _describe_blocks(blocks: Sequence[BlockStatus]) -> list[str]:
    lines = []
    for state in ("running", "failed"):
        chosen = [block for block in blocks if block.state == state]
        lines += [f"{state} {block.name}: {block.detail}" for block in chosen[:_MOST_BLOCKS]]
        if len(chosen) > _MOST_BLOCKS:
            lines.append(f"{state}: {len(chosen) - _MOST_BLOCKS:,} more")
    missing = [block.name for block in blocks if block.state == "missing"]
    return [*lines, f"missing {join_names(missing)}"] if missing else lines


def join_names(names: Sequence[str]) -> str:
    """Return names as text, in which three or more consecutive numbers are a range, as 00003 to 00007."""
    texts: list[str] = []
    position_of = {name: position for position, name in enumerate(names)}

    def offset(name: str) -> str:
        digits = name[-5:]
        return f"{name[:-5]}{int(digits) - position_of[name]}" if digits.isdecimal() else name

    for _, group in itertools.groupby(names, key=offset):
        run = list(group)
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
    return ", ".join(texts)


def format_jobs(jobs: Sequence[JobStatus]) -> str:
    """Return a table of jobs, the reasons of failures, and the commands that do the rest."""
    rows = [["folder", "state", "options"]]
    rows += [[str(job.folder), job.state, job.overrides] for job in jobs]
    lines = [format_table(rows)]
    lines += [f"{job.state} {job.folder}: {job.detail}" for job in jobs if job.detail]
    counts = Counter(job.state for job in jobs)
    lines.append(", ".join(f"{count:,} {state}" for state, count in sorted(counts.items())))
    lines += _list_commands([(job.directory, job.command) for job in jobs if job.command])
    return "\n".join(lines)


def _list_commands(commands: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines with the commands to run again; those from another directory are named with it."""
    lines = []
    for directory, command in dict.fromkeys(commands):
        is_elsewhere = directory and directory != str(Path.cwd())
        lines.append(f"run again: {command}" + (f"   # in {directory}" if is_elsewhere else ""))
    return lines


def to_json(work: Sequence[WorkStatus], jobs: Sequence[JobStatus], *, is_complete: bool) -> dict[str, Any]:
    """Return all that `status` knows, as JSON types."""
    return {
        "complete": is_complete,
        "work": [{**dataclasses.asdict(status), "folder": str(status.folder)} for status in work],
        "jobs": [{**dataclasses.asdict(job), "folder": str(job.folder)} for job in jobs],
    }
