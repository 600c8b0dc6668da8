"""How far what we compute is from what somebody else recorded."""

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
    """How far one value is from its recording; `size` is 1 for things that are either equal or not."""

    quantity: str
    where: str
    size: float
    allowed: float

    @classmethod
    def of_number(cls, quantity: str, where: str, found: float, recorded: float) -> Self:
        """Infinite where one of the two is not a number."""
        size = abs(found - recorded)
        return cls(quantity, where, size if math.isfinite(size) else math.inf, NUMBER)


def summarize(deviations: Iterable[Deviation]) -> str:
    """One line per quantity: how many values, the largest deviation, and where that is."""
    by_quantity: dict[str, list[Deviation]] = {}
    for deviation in deviations:
        by_quantity.setdefault(deviation.quantity, []).append(deviation)
    rows = [("quantity", "compared", "largest deviation", "allowed", "")]
    for quantity, of_quantity in by_quantity.items():
        worst = max(of_quantity, key=lambda deviation: deviation.size)
        if worst.allowed == EXACT:
            differing = sum(deviation.size > 0 for deviation in of_quantity)
            size, allowed = f"{differing} differ", "0"
        else:
            size, allowed = f"{worst.size:.1e}", f"{worst.allowed:.0e}"
        passed = worst.size <= worst.allowed
        verdict = "ok" if passed else f"FAILED, most at {worst.where}"
        rows.append((quantity, str(len(of_quantity)), size, allowed, verdict))
    return format_table(rows)


def compare_values(quantity: str, where: str, found: object, recorded: object) -> Deviation:
    return Deviation(quantity, where, float(found != recorded), EXACT)


def compare_tensors(quantity: str, where: str, found: Tensor, recorded: Tensor, allowed: float) -> Deviation:
    """Largest difference; infinite where shapes differ or a value is not a number."""
    size = torch.inf
    if found.shape == recorded.shape:
        size = (found.float() - recorded.float()).abs().nan_to_num(nan=torch.inf).max().item()
    return Deviation(quantity, where, size, allowed)


def read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
