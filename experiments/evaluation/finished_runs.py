"""Finished runs, read from their `metrics.json`, and their policies over several seeds.

**Several seeds of one policy.** Policies of the same name whose runs were given the same settings but for the
seed are one policy: a figure is the mean over its seeds, its interval the mean of the seeds' own bounds (over
test images, with the seed held fixed), and `spread` the standard deviation over the seeds (n - 1), which is
what another training would change.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from experiments.evaluation.metrics import SCHEMA_VERSION
from experiments.evaluation.statistics import Estimate

METRICS = "metrics.json"
OVERRIDES = Path(".hydra") / "overrides.yaml"
# Settings that make no other policy: the seed, and where results lie.
_IRRELEVANT = ("seed", "hydra", "paths", "latest", "predictor", "runs", "gallery")
# What has to be the same for runs to be about the same thing.
_SAME = ("task", "backbone", "fingerprints", "split")


@dataclass(frozen=True, eq=False)
class Run:
    """A folder with its metrics, and the settings it was given that tell it from others, as `key=value`."""

    folder: Path
    metrics: Mapping[str, Any]
    settings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        return int(self.metrics["bootstrap"]["seed"])


@dataclass(frozen=True, eq=False)
class Combined:
    """A figure over the seeds of a policy: mean with its interval, and the spread, nan for a single seed."""

    estimate: Estimate
    spread: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One policy of the comparison: `metrics["predictors"][name]` of each of its runs, one a seed."""

    label: str
    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def find(self, *path: str) -> Combined | None:
        """The figure at a path below the predictor; None where a seed does not have it."""
        return self._combine(["predictors", self.name, *path])

    def find_in(self, part: str, *path: str) -> Combined | None:
        """The same below another part of the metrics that lists predictors, as `flops` or `risk`."""
        return self._combine([part, "predictors", self.name, *path])

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean cost and mean score at the budgets, `[num_budgets]` each."""
        rows = [run.metrics["predictors"][self.name]["at_budgets"] for run in self.runs]
        cost = np.mean([[at["cost"] for at in each] for each in rows], axis=0)
        score = np.mean([[at["score"]["value"] for at in each] for each in rows], axis=0)
        return cost, score

    def _combine(self, path: Sequence[str]) -> Combined | None:
        found = []
        for run in self.runs:
            figure: Any = run.metrics
            for key in path:
                figure = None if figure is None else figure.get(key)
            if figure is None or figure["value"] is None:
                return None
            found.append([figure["value"], figure["low"], figure["high"]])
        values = np.array(found, dtype=np.float64)
        value, low, high = values.mean(axis=0)
        spread = float(values[:, 0].std(ddof=1)) if len(values) > 1 else float("nan")
        return Combined(Estimate(value, low, high), spread)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, or right below them. ValueError where they are not about the same thing."""
    found: list[Path] = []
    for folder in folders:
        below = sorted(folder.glob(f"*/{METRICS}"), key=lambda path: (len(path.parent.name), path))
        paths = [folder / METRICS] if (folder / METRICS).is_file() else below
        if not paths:
            raise FileNotFoundError(
                f"no {METRICS} in {folder} or in a folder below it: name folders of finished runs with "
                "runs=[FOLDER,...]"
            )
        found += [path.parent for path in paths]
    runs = [_read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in found)]
    for run in runs[1:]:
        _check_same(runs[0], run)
    return runs


def _read_run(folder: Path) -> Run:
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): evaluate that run again") from error
    version = metrics.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this tokenscale reads {SCHEMA_VERSION}: evaluate that run "
            "again"
        )
    overrides = folder / OVERRIDES
    given: Iterable[Any] = OmegaConf.load(overrides) if overrides.is_file() else []
    return Run(folder, metrics, tuple(sorted(str(text) for text in given if _tells_apart(str(text)))))


def _tells_apart(override: str) -> bool:
    key = override.lstrip("+~").split("=")[0]
    return key not in _IRRELEVANT and not key.startswith(("hydra.", "hydra/", "paths.", "predictor@"))


def _check_same(first: Run, second: Run) -> None:
    for key in _SAME:
        one, other = first.metrics[key], second.metrics[key]
        if one != other:
            parts = [part for part in one if one[part] != other.get(part)] if isinstance(one, dict) else []
            what = f"{key} ({', '.join(parts)})" if parts else f"{key} ({one}, {other})"
            raise ValueError(
                f"{first.folder} and {second.folder} differ in {what}: runs are compared on the same labels "
                "of the same backbone and task"
            )
    if first.metrics["budgets"] != second.metrics["budgets"]:
        raise ValueError(
            f"{first.folder} and {second.folder} were evaluated at other budgets: evaluate them with the "
            "same num_budgets"
        )


def list_entries(runs: Sequence[Run]) -> list[Entry]:
    """Policies over their seeds: first what the runs are about, in their order, then their baselines.

    Of runs that agree in seed and settings the first one counts. Settings that are the same in all runs are
    left out of the labels.
    """
    common = set(runs[0].settings).intersection(*(run.settings for run in runs))
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    baselines: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        for position, name in enumerate(run.metrics["predictors"]):
            own = tuple(text for text in run.settings if text not in common) if position == 0 else ()
            group = (groups if position == 0 else baselines).setdefault((name, own), [])
            if run.seed not in [each.seed for each in group]:
                group.append(run)
    # What one run is about may be another's baseline.
    about = {name for name, _ in groups}
    groups |= {key: group for key, group in baselines.items() if key[0] not in about}
    return [Entry(", ".join((name, *own)), name, group) for (name, own), group in groups.items()]
