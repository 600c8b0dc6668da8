"""The tables and figures of a paper in one place, and the page that shows them."""

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line.running import Provenance
from experiments.paper.running import StepState
from experiments.paper.steps import Step
from experiments.reporting.numbers import format_duration
from experiments.reporting.page import write_page
from experiments.reporting.tables import Table, format_table
from m3_backbone.outcomes.shards import write_bytes

PAGE = "index.html"


@dataclass(frozen=True)
class Result:
    """What a step shows: tables, figures (name and base64-encoded SVG), and what its run lacks of both."""

    tables: Sequence[Table]
    figures: Sequence[tuple[str, str]]
    missing: Sequence[str]


def write_paper(
    folder: Path, steps: Sequence[Step], states: Mapping[str, StepState], provenance: Provenance
) -> Path:
    """Copy the tables and figures of all steps that are done, and write the page; return its path."""
    shown = []
    for step in steps:
        state = states.get(step.name)
        if state is None or not step.title:
            continue
        result = collect(folder, step) if state.status == "done" else Result((), (), ())
        shown.append((step, state, result))
    path = folder / PAGE
    write_page(
        path,
        "paper.html.j2",
        title="Paper",
        shown=shown,
        states=tabulate_states(states),
        provenance=provenance,
        charts=[],
    )
    return path


def collect(folder: Path, step: Step) -> Result:
    """Copy tables and figures of a finished step to `tables/` and `figures/`, and return them.

    Files are called `STEP-NAME`, with the suffixes `.csv` and `.tex` or `.pdf` and `.svg`.
    """
    run = find_run(folder / "steps" / step.name)
    tables, figures, missing = [], [], []
    for name in step.tables:
        copies = _copy(run / "tables" / name, ("csv", "tex"), folder / "tables" / f"{step.name}-{name}")
        if not copies:
            missing.append(f"table {name}")
            continue
        with copies[0].open(encoding="utf-8", newline="") as file:
            header, *rows = map(tuple, csv.reader(file))
        tables.append(Table(name, header, tuple(rows), name))
    for name in step.figures:
        copies = _copy(run / name, ("svg", "pdf"), folder / "figures" / f"{step.name}-{name}")
        if not copies:
            missing.append(f"figure {name}")
            continue
        figures.append((name, base64.b64encode(copies[0].read_bytes()).decode("ascii")))
    return Result(tables, figures, missing)


def _copy(source: Path, kinds: Sequence[str], target: Path) -> list[Path]:
    """Copy `source.KIND` to `target.KIND` for each of `kinds`, and return the copies; none if one lacks."""
    # The names have no dots, or `with_suffix` would cut them.
    sources = [source.with_name(f"{source.name}.{kind}") for kind in kinds]
    if not all(path.is_file() for path in sources):
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    copies = [target.with_name(f"{target.name}.{kind}") for kind in kinds]
    for path, copy in zip(sources, copies, strict=True):
        write_bytes(copy, path.read_bytes())
    return copies


def find_run(outputs: Path) -> Path:
    """Return the folder of the latest run or sweep of a step; `outputs` itself if it has none."""
    runs = [*outputs.glob("runs/*/"), *outputs.glob("multirun/*/")]
    return max(runs, key=lambda run: run.name, default=outputs)


def tabulate_states(states: Mapping[str, StepState]) -> Table:
    """Tabulate outcome, duration and command of each step."""
    rows = tuple(
        (name, state.status, format_duration(state.seconds), state.reason or state.command)
        for name, state in states.items()
    )
    total = format_duration(sum(state.seconds for state in states.values()))
    return Table(f"Steps, {total} in all", ("step", "outcome", "time", "command or reason"), rows, "steps")


def format_states(states: Mapping[str, StepState], folder: Path) -> str:
    """Return a line for each step, and time and disk of all."""
    lines = [
        (
            name,
            "done before" if state.was_done else state.status,
            format_duration(state.seconds),
            state.reason,
        )
        for name, state in states.items()
    ]
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    total = format_duration(sum(state.seconds for state in states.values()))
    return f"{format_table([('step', 'outcome', 'time', 'reason'), *lines])}\n\n{total}, {disk:.1f} GB"
