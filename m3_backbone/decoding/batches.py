"""Batches as large as fits on the device."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Other = TypeVar("Other")
Result = TypeVar("Result")


def group_rows(first: Sequence[Item], second: Sequence[Other]) -> list[list[int]]:
    """Numbers of rows, grouped by both keys; groups with the same first key are adjacent."""
    groups: dict[Item, dict[Other, list[int]]] = {}
    for row, (outer, inner) in enumerate(zip(first, second, strict=True)):
        groups.setdefault(outer, {}).setdefault(inner, []).append(row)
    return [rows for subgroups in groups.values() for rows in subgroups.values()]


def halve_until_it_fits(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], batch_size: int
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """(batch, `work(batch)`) for batches of `batch_size` items, halved where one does not fit on the device.

    Raises torch.OutOfMemoryError where a single item does not fit.
    """
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        try:
            results = work(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            yield batch, results
            continue
        # Out here, the failed attempt's tensors are no longer held by the exception.
        torch.cuda.empty_cache()
        _say_once(len(batch))
        yield from halve_until_it_fits(work, batch, (len(batch) + 1) // 2)


@cache
def _say_once(size: int) -> None:
    log.warning("a batch of %d does not fit on the device: halved, as any other that does not fit", size)
