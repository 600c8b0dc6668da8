"""The record of a training, `manifest.json` beside the predictor."""

import itertools
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from m3_backbone.outcomes.manifest import DIGEST, unseal
from predictor.files import FolderError, check_keys, damaged, read_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TrainingRecord:
    """What a trained predictor was made from, and its worth on the validation part.

    `value`, `mix_value` and `oracle_value` are `policy.policy_value` of the predictor, of the mix and of the
    budgeted oracle; training stopped where `value` was highest, so it flatters. `default_cost` and
    `default_score` are the calibration split's, at the price that is used by default. `flops` are per sample.
    `identity` is everything that determines it (`experiments.training.trained`), `files` the SHA-256 of each
    file that was written; empty for a record of tokenscale 0.1.
    """

    name: str
    value: float
    mix_value: float
    oracle_value: float
    scales: list[int]
    fixed_cost: list[float]
    fixed_score: list[float]
    default_cost: float
    default_score: float
    num_train: int
    num_validation: int
    num_parameters: int
    flops: float
    seconds: float
    identity: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def recovered(self) -> float:
        """Share of the mix-to-budgeted-oracle gap, averaged over log budget."""
        gap = self.oracle_value - self.mix_value
        return (self.value - self.mix_value) / gap if gap > 0 else 0.0


_NUMBERS = (
    *("value", "mix_value", "oracle_value", "default_cost", "default_score"),
    *("num_train", "num_validation", "num_parameters", "flops", "seconds"),
)

# Metrics that a sweep may optimise, by the names of `optimized_metric`: on validation, never on test.
VALIDATION_METRICS = {
    "validation/gap_share": lambda record: record.recovered,
    "validation/value": lambda record: record.value,
}


def read_record(folder: Path) -> TrainingRecord | None:
    """The record of a finished training in `folder`; None when there is none, or one of another version."""
    try:
        return load_record(folder)
    except (FileNotFoundError, FolderError):
        return None


def load_record(folder: Path) -> TrainingRecord:
    """The record of a finished training in `folder`.

    FileNotFoundError where there is none, FolderError where it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"no finished training in {folder}: run `python -m experiments.train`")
    required = {column.name for column in fields(TrainingRecord) if column.default_factory is MISSING}
    content = check_keys(path, read_json(path), frozenset(required), frozenset({"files", DIGEST}))
    try:
        record = TrainingRecord(**unseal(content))
    except ValueError as error:
        raise damaged(path, error) from error
    numbers = [getattr(record, name) for name in _NUMBERS]
    lists: tuple[list[Any], ...] = (record.scales, record.fixed_cost, record.fixed_score)
    is_typed = isinstance(record.name, str) and isinstance(record.identity, dict)
    if not is_typed or not isinstance(record.files, dict):
        raise damaged(path, "name, identity or files are of another type")
    if not all(isinstance(column, list) for column in lists) or len(set(map(len, lists))) != 1:
        raise damaged(path, "scales, fixed_cost and fixed_score are no lists of one length")
    if not all(map(_is_finite, [*numbers, *itertools.chain.from_iterable(lists)])):
        raise damaged(path, "one of the numbers is none")
    if not isinstance(record.identity.get("seed"), int | None):
        raise damaged(path, "the seed is no whole number")
    return record


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
