"""Tables of finished runs in cost measures other than visual tokens: means over the runs, with their range.

Operations come from `metrics.json`, milliseconds from `milliseconds.json`. Milliseconds of two runs were
measured at different times, perhaps on different machines, so they have a range over runs and no interval.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.numbers import MISSING, format_percent, format_small, write_number
from experiments.reporting.tables import Table
from experiments.results.entries import Entry
from experiments.results.metrics_json import MILLISECONDS
from experiments.results.run_folders import Run
from m3_backbone.outcomes.manifest import unseal

log = logging.getLogger(__name__)

# Costs and differences of one run in another measure, as `metrics_json.collect_measure` writes them.
Measured = Mapping[str, Any]


def tabulate_run_costs(entries: Sequence[Entry], runs: Sequence[Run]) -> list[Table]:
    """Return a table for each cost measure that all of these runs have, visual tokens left out."""
    readers: dict[str, Callable[[Run], Measured | None]] = {
        "flops": lambda run: run.metrics.get("flops"),
        "milliseconds": read_milliseconds,
    }
    tables = []
    for key, read in readers.items():
        measured = {run.folder: content for run in runs if (content := read(run)) is not None}
        if len(measured) == len(runs):
            of_entries = [[measured[run.folder] for run in entry.runs] for entry in entries]
            tables.append(_tabulate(key, entries, of_entries, list(measured.values())))
    return tables


def read_milliseconds(run: Run) -> Measured | None:
    """Return the content of `milliseconds.json` of a run; None without timings, or if it is damaged."""
    path = run.folder / MILLISECONDS
    try:
        content: Measured = unseal(json.loads(path.read_bytes()))
        if not {"unit", "fixed", "predictors"} <= content.keys():
            raise ValueError("it has other content")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is left out: %s", path, error)
        return None
    return content


def _tabulate(
    key: str, entries: Sequence[Entry], of_entries: Sequence[Sequence[Measured]], of_runs: Sequence[Measured]
) -> Table:
    unit = str(of_runs[0]["unit"])
    scales = [fixed["scale"] for fixed in entries[0].runs[0].metrics["fixed"]]
    blank = (MISSING,) * 4
    rows: list[tuple[str, ...]] = [
        (f"scale {scale}", _write([content["fixed"][column] for content in of_runs], format_small), *blank)
        for column, scale in enumerate(scales)
    ]
    for entry, contents in zip(entries, of_entries, strict=True):
        predictors = [content["predictors"][entry.name] for content in contents]
        rows.append(
            (
                entry.label,
                _write(list(_take(predictors, "default", "cost")), format_small),
                _write([predictor["own"] for predictor in predictors], format_small),
                _write(list(_take(predictors, "default", "score")), format_percent),
                _write(
                    list(_take(predictors, "mean_to_mix")), lambda value: write_number(100 * value, "+.1f")
                ),
                _write(list(_take(predictors, "mean_gap_share")), lambda value: f"{value:.0%}"),
            )
        )
    caption = (
        f"Costs in {unit}: mean at the default price, overhead of the predictor in it, score there; and, "
        f"at matched {unit} over log-spaced budgets, points above the mix and share of the gap. Means over "
        "runs, with their range in brackets"
    )
    header = ("policy", unit, "overhead", "score", f"to mix, {unit}", "share of gap")
    return Table(caption, header, tuple(rows), name=f"costs_{key}")


def _take(predictors: Sequence[Measured], *steps: str) -> Iterator[float | None]:
    """Yield the value of a metric of each of these predictors; None where it does not exist."""
    for predictor in predictors:
        metric: Any = predictor
        for step in steps:
            metric = metric and metric.get(step)
        yield metric and metric["value"]


def _write(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """Return the mean, and the range if it is seen in the format; a dash if a value does not exist."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not values:
        return MISSING
    low, high = form(min(known)), form(max(known))
    mean = form(float(np.mean(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"
