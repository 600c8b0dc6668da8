"""Folders of runs: the link to the latest run, and finished runs to compare."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from experiments.evaluation.costs import TOKENS, CostMeasure, count_costs
from experiments.results.metrics_json import METRICS, SCHEMA_VERSION
from experiments.results.resamples import Float32s, read_resamples
from m3_backbone.outcomes.manifest import unseal


def check_link(link: Path, folder: Path) -> None:
    """Raise OSError, with advice, if `point_link` could not create `link`."""
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is not a symbolic link: move it, or set latest=PATH to another place")
    try:
        _make_link(link, folder).unlink()
    except OSError as error:
        raise OSError(
            f"the link {link} to the latest run cannot be created ({error.strerror or error}): set "
            "latest=PATH to another place"
        ) from error


def point_link(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, atomically: readers see the old link or the new one.

    The link is relative, so that both can be moved together. Raises FileExistsError if `link` exists and is
    not a symbolic link.
    """
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is not a symbolic link: move it, or set latest=PATH to another place")
    _make_link(link, folder).replace(link)


def _make_link(link: Path, folder: Path) -> Path:
    """Create a symbolic link to `folder` next to `link`, under a unique name."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(folder.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(target, target_is_directory=True)
    return temporary


Content = TypeVar("Content", list[Any], dict[str, Any])

OVERRIDES, CONFIG = Path(".hydra") / "overrides.yaml", Path(".hydra") / "config.yaml"
# Settings that do not change a policy: the seed, and paths of results.
_IRRELEVANT = ("seed", "hydra", "paths", "latest", "predictor", "runs", "gallery")
# Types of the parts of `metrics.json` that every comparison reads.
_TYPES: Mapping[str, type] = {
    **{"task": str, "backbone": str, "fingerprints": dict, "split": dict, "bootstrap": dict},
    **{"budgets": list, "predictors": dict, "fixed": list, "oracles": dict, "budgeted_oracle": dict},
}
# Parts of `metrics.json` that must be equal in all compared runs: on what, and with which settings (by the
# options of `evaluate` that set them), policies were evaluated.
_SAME = ("task", "backbone", "fingerprints", "split")
_EVALUATED = {
    "budgets": "num_budgets",
    "bootstrap": "num_resamples, confidence and bootstrap_seed",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: folder, metrics, resamples, and the settings that were given, as `key=value`.

    `config` has all settings, without resolved interpolations; it is empty if Hydra has not written it.
    """

    folder: Path
    metrics: Mapping[str, Any]
    resamples: Mapping[str, Float32s]
    settings: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """Name of the main predictor of the run."""
        return str(next(iter(self.metrics["predictors"])))

    @property
    def measure(self) -> CostMeasure:
        """Cost measure of the costs in the metrics: visual tokens, or that of imported outcomes."""
        return count_costs(str(self.metrics.get("cost_name", TOKENS.noun)))

    @property
    def scales(self) -> list[str]:
        """Names of the scales or options, from coarse to fine."""
        return [str(fixed.get("name", fixed["scale"])) for fixed in self.metrics["fixed"]]

    @property
    def seed(self) -> int | None:
        """Training seed of the main predictor; None if it is not trained."""
        return self.find_seed(self.about)

    def find_seed(self, name: str) -> int | None:
        """Return the training seed of one of the predictors; None if it is not trained."""
        seed = self.metrics["predictors"][name]["seed"]
        return None if seed is None else int(seed)


def list_distinguishing(runs: Sequence[Run]) -> dict[Path, tuple[str, ...]]:
    """Return by folder the settings of each run, as `key=value`, that not all of the runs have.

    A setting that one run was given, and that is the default of another one, is a setting of both.
    """

    def holds(setting: str, giver: Run, run: Run) -> bool:
        # Of a config group, the part of the configuration that it fills.
        key = setting.lstrip("+~").partition("=")[0].rpartition("@")[2].replace("/", ".")
        value = _look_up(giver.config, key)
        return setting in run.settings or (value is not None and _look_up(run.config, key) == value)

    givers = {setting: run for run in runs for setting in run.settings}
    held = {
        run.folder: {setting for setting, giver in givers.items() if holds(setting, giver, run)}
        for run in runs
    }
    shared = set(givers).intersection(*held.values())
    return {folder: tuple(sorted(settings - shared)) for folder, settings in held.items()}


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, or in their immediate subfolders.

    Raises FileNotFoundError if a folder has no run, and ValueError if a run is damaged or the runs differ in
    labels or in settings of the evaluation.
    """
    run_folders: list[Path] = []
    for folder in folders:
        below = sorted(folder.glob(f"*/{METRICS}"), key=lambda path: (len(path.parent.name), path))
        paths = [folder / METRICS] if (folder / METRICS).is_file() else below
        if not paths:
            raise FileNotFoundError(
                f"no {METRICS} in {folder} or in a folder below it: name folders of finished runs with "
                "runs=[FOLDER,...]"
            )
        run_folders += [path.parent for path in paths]
    runs = [_read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in run_folders)]
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
    if "risk" in metrics:  # the key in earlier versions
        metrics["guarantee"] = metrics.pop("risk")
    version = metrics.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this tokenscale reads {SCHEMA_VERSION}: evaluate that run "
            "again"
        )
    for key, expected_type in _TYPES.items():
        if not isinstance(metrics.get(key), expected_type) or not metrics[key]:
            raise ValueError(
                f"{path} is damaged ({key!r} is missing, empty or of another type): evaluate that run again"
            )
    num_resamples = metrics["bootstrap"].get("num_resamples")
    if not isinstance(num_resamples, int):
        raise ValueError(f"{path} is damaged (num_resamples is missing): evaluate that run again")
    resamples = read_resamples(folder, num_resamples)
    overrides = map(str, _read_yaml(folder / OVERRIDES, list))
    settings = sorted(text for text in overrides if _is_relevant(text))
    return Run(folder, metrics, resamples, tuple(settings), _read_yaml(folder / CONFIG, dict))


def _read_yaml(path: Path, expected_type: type[Content]) -> Content:
    """Return the content of a file that Hydra has written; empty if it has not."""
    if not path.is_file():
        return expected_type()
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(content, expected_type):
            raise ValueError(f"no {expected_type.__name__}")
        return content
    except Exception as error:  # whatever reading YAML raises
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): evaluate that run again") from error


def _is_relevant(override: str) -> bool:
    key = override.lstrip("+~").split("=")[0]
    return key not in _IRRELEVANT and not key.startswith(("hydra.", "hydra/", "paths.", "predictor@"))


def _check_same(first: Run, second: Run) -> None:
    for key in _SAME:
        one, other = first.metrics[key], second.metrics[key]
        if one != other:
            parts = [part for part in one if one[part] != other.get(part)] if isinstance(one, dict) else []
            description = f"{key} ({', '.join(parts)})" if parts else f"{key} ({one}, {other})"
            raise ValueError(
                f"{first.folder} and {second.folder} differ in {description}: runs can be compared only on "
                "the same labels of the same backbone and task"
            )
    for key, options in _EVALUATED.items():
        if first.metrics[key] != second.metrics[key]:
            raise ValueError(
                f"{first.folder} and {second.folder} were evaluated with different {key}: evaluate them with "
                f"the same {options}"
            )
