"""Folders of runs: the link to the latest, and finished runs that can be compared."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from experiments.results.metrics_json import METRICS, SCHEMA_VERSION
from experiments.results.resamples import Float32s, read_resamples
from m3_backbone.outcomes.manifest import unseal


def check_link(link: Path, folder: Path) -> None:
    """Raise OSError, with the way out, where `point_link` could not make `link`."""
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it, or give latest=PATH for this one")
    try:
        _make_link(link, folder).unlink()
    except OSError as error:
        raise OSError(
            f"the link {link} to the latest run cannot be made ({error.strerror or error}): give another "
            "place with latest=PATH"
        ) from error


def point_link(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, in one step: a reader finds the old one or the new one.

    The link is relative, so that both can be moved together.
    """
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it, or give latest=PATH for this one")
    _make_link(link, folder).replace(link)


def _make_link(link: Path, folder: Path) -> Path:
    """A symbolic link to `folder` beside `link`, under a name that no other process uses."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(folder.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(target, target_is_directory=True)
    return temporary


OVERRIDES = Path(".hydra") / "overrides.yaml"
# Settings that make no other policy: the seed, and where results lie.
_IRRELEVANT = ("seed", "hydra", "paths", "latest", "predictor", "runs", "gallery")
# Parts of `metrics.json` that every comparison reads.
_TYPES: Mapping[str, type] = {
    **{"task": str, "backbone": str, "fingerprints": dict, "split": dict, "bootstrap": dict},
    **{"budgets": list, "predictors": dict, "fixed": list, "oracles": dict, "budgeted_oracle": dict},
}
# What has to be the same for runs to be about the same thing, and in how they were evaluated.
_SAME = ("task", "backbone", "fingerprints", "split")
_EVALUATED = {
    "budgets": "num_budgets",
    "bootstrap": "num_resamples, confidence and bootstrap_seed",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A folder with its metrics and resamples, and the settings that tell it from others, as `key=value`."""

    folder: Path
    metrics: Mapping[str, Any]
    resamples: Mapping[str, Float32s]
    settings: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """The predictor that the run is about."""
        return str(next(iter(self.metrics["predictors"])))

    @property
    def seed(self) -> int | None:
        """The seed that this one was trained with."""
        return self.find_seed(self.about)

    def find_seed(self, name: str) -> int | None:
        """The seed that one of its predictors was trained with; None for what is not trained."""
        seed = self.metrics["predictors"][name]["seed"]
        return None if seed is None else int(seed)


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
        metrics = json.loads(path.read_bytes())
        if not isinstance(metrics, dict):
            raise ValueError("no JSON object")
        metrics = unseal(metrics)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate that run again") from error
    if "risk" in metrics:  # its former name
        metrics["guarantee"] = metrics.pop("risk")
    version = metrics.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this tokenscale reads {SCHEMA_VERSION}: evaluate that run "
            "again"
        )
    for key, kind in _TYPES.items():
        if not isinstance(metrics.get(key), kind) or not metrics[key]:
            raise ValueError(
                f"{path} is damaged ({key!r} is missing, empty or of another type): evaluate that run again"
            )
    num_resamples = metrics["bootstrap"].get("num_resamples")
    if not isinstance(num_resamples, int):
        raise ValueError(f"{path} is damaged (it names no number of resamples): evaluate that run again")
    resamples = read_resamples(folder, num_resamples)
    settings = sorted(text for text in _read_overrides(folder / OVERRIDES) if _tells_apart(text))
    return Run(folder, metrics, resamples, tuple(settings))


def _read_overrides(path: Path) -> list[str]:
    """The overrides that a run was given; none where Hydra has not written them."""
    if not path.is_file():
        return []
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, ListConfig):
            raise ValueError("no list")
        return [str(text) for text in given]
    except Exception as error:  # whatever reading YAML raises
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): evaluate that run again") from error


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
    for key, options in _EVALUATED.items():
        if first.metrics[key] != second.metrics[key]:
            raise ValueError(
                f"{first.folder} and {second.folder} were evaluated with other {key}: evaluate them with the "
                f"same {options}"
            )
