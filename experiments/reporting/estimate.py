"""Table of an estimate."""

from experiments.estimates.steps import Estimate, Step, check_memory
from experiments.reporting.tables import format_table

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def format_number(value: float, unit: str) -> str:
    """Return a number with three digits and a decimal prefix, as 12.3 GB; "" for 0."""
    if not value:
        return ""
    for prefix in _PREFIXES:
        if value < 999.5 or prefix == _PREFIXES[-1]:
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration as text; "" for 0."""
    if not seconds:
        return ""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:,.3g} h"


def format_estimate(estimate: Estimate) -> str:
    """Return the steps of an estimate as a table, their totals, and the assumptions."""
    rows = [["estimate", "FLOPs", "time", "memory", "disk"]]
    total = Step(
        "label, all",
        sum(step.flops for step in estimate.steps),
        3600 * estimate.device_hours,
        estimate.memory,
        estimate.disk,
    )
    later = Step("train, evaluate", memory=estimate.training_memory)
    for step in (*estimate.steps, total, later):
        rows.append(
            [
                step.name,
                format_number(step.flops, "FLOP"),
                format_seconds(step.seconds),
                format_number(step.memory, "B"),
                format_number(step.disk, "B"),
            ]
        )
    device = "core" if estimate.device == "cpu" else estimate.device
    lines = [
        f"label {estimate.task} with {estimate.backbone}: {estimate.num_samples:,} samples about "
        f"{estimate.num_images:,} images, in {estimate.dtype}",
        format_table(rows),
        f"estimate, not measured: {format_seconds(3600 * estimate.device_hours)} of one {device}; "
        f"{format_seconds(3600 * estimate.wall_hours)} on {estimate.num_devices}",
    ]
    if warning := check_memory(estimate):
        lines.append(f"memory: {warning}")
    if estimate.label_curve:
        lines.append(estimate.label_curve)
    return "\n".join([*lines, "assumptions:", *(f"- {text}" for text in estimate.assumptions)])
