"""What training leaves beside a predictor: `manifest.json`, and the table printed from several of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.reporting.text_table import format_table

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


# Metrics that a sweep may optimise, by the names of `optimized_metric`: on validation, never on test.
VALIDATION_METRICS = {
    "validation/gap_share": lambda record: record.recovered,
    "validation/value": lambda record: record.value,
}


def check_metric(name: str) -> str:
    """Return `name` if it is one of `VALIDATION_METRICS`; else raise a ValueError that lists them."""
    if name not in VALIDATION_METRICS:
        raise ValueError(
            f"optimized_metric={name} is none of {', '.join(VALIDATION_METRICS)}: a sweep optimises a "
            "metric of validation"
        )
    return name


def read_record(folder: Path) -> TrainingRecord | None:
    """The record of a finished training in `folder`; None when there is none, or one of another version."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return TrainingRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def format_records(records: list[TrainingRecord]) -> str:
    """A table of trainings on the same labels, the references below them."""
    first = records[0]
    has_gap = first.oracle_value > first.mix_value + 1e-9
    rows = [["predictor", "value", "of the gap", "tokens", "score", "parameters", "MFLOPs", "seconds"]]
    for record in records:
        rows.append(
            [
                record.name,
                f"{record.value:.4f}",
                f"{record.recovered:.1%}" if has_gap else "-",
                f"{record.default_cost:.1f}",
                f"{record.default_score:.4f}",
                f"{record.num_parameters:,}",
                f"{record.flops / 1e6:.2f}",
                f"{record.seconds:.1f}",
            ]
        )
    rows.append(["budgeted oracle", f"{first.oracle_value:.4f}", "100.0%" if has_gap else "-", *[""] * 5])
    fixed = ", ".join(
        f"{scale}: {score:.4f}" for scale, score in zip(first.scales, first.fixed_score, strict=True)
    )
    return "\n".join(
        [
            format_table(rows),
            f"fixed scales on validation: {fixed}",
            f"value: mean score over log-spaced budgets on {first.num_validation} validation samples, on "
            "which epochs, shares, trees and neighbours were chosen too: values and ranking are optimistic",
            "tokens and score: calibration split, default price",
        ]
    )
