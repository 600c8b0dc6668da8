"""Deviations of computed values from recorded ones."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experiments.reporting.tables import format_table

NUMBER = 1e-4  # allowed deviation of a number
EXACT = 0.0


@dataclass(frozen=True)
class Deviation:
    """Deviation of one value from its recording; `size` is 0 or 1 for values that have to be equal."""

    quantity: str
    where: str
    size: float
    allowed: float

    @classmethod
    def of_number(cls, quantity: str, where: str, computed: float, recorded: float) -> Self:
        """Return the absolute difference; infinite if one of the two is not finite."""
        size = abs(computed - recorded)
        return cls(quantity, where, size if math.isfinite(size) else math.inf, NUMBER)


def summarize(deviations: Iterable[Deviation]) -> str:
    """Return a table with a line per quantity: number of values, largest deviation and its place."""
    by_quantity: dict[str, list[Deviation]] = {}
    for deviation in deviations:
        by_quantity.setdefault(deviation.quantity, []).append(deviation)
    rows = [("quantity", "compared", "largest deviation", "allowed", "")]
    for quantity, group in by_quantity.items():
        worst = max(group, key=lambda deviation: deviation.size)
        if worst.allowed == EXACT:
            differing = sum(deviation.size > 0 for deviation in group)
            size, allowed = f"{differing} differ", "0"
        else:
            size, allowed = f"{worst.size:.1e}", f"{worst.allowed:.0e}"
        passed = worst.size <= worst.allowed
        verdict = "ok" if passed else f"FAILED, most at {worst.where}"
        rows.append((quantity, str(len(group)), size, allowed, verdict))
    return format_table(rows)


def compare_values(quantity: str, where: str, computed: object, recorded: object) -> Deviation:
    """Return a deviation of 0 for equal values, else 1."""
    return Deviation(quantity, where, float(computed != recorded), EXACT)


def compare_tensors(
    quantity: str, where: str, computed: Tensor, recorded: Tensor, allowed: float
) -> Deviation:
    """Return the largest absolute difference; infinite if shapes differ or a value is not a number."""
    size = torch.inf
    if computed.shape == recorded.shape:
        size = (computed.float().cpu() - recorded.float()).abs().nan_to_num(nan=torch.inf).max().item()
    return Deviation(quantity, where, size, allowed)


def read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give the path of a recording")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}): record it again") from error
