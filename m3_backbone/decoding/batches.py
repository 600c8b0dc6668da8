"""Batches as large as the memory of the device allows."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

# Largest number of batches that run at the same time on a CPU.
_MAX_AT_ONCE = 4

Item = TypeVar("Item")
Other = TypeVar("Other")
Result = TypeVar("Result")


def group_indices(first: Sequence[Item], second: Sequence[Other]) -> list[list[int]]:
    """Indices grouped by equal (first[i], second[i]); groups with equal `first` are adjacent."""
    groups: dict[Item, dict[Other, list[int]]] = {}
    for index, (outer, inner) in enumerate(zip(first, second, strict=True)):
        groups.setdefault(outer, {}).setdefault(inner, []).append(index)
    return [indices for subgroups in groups.values() for indices in subgroups.values()]


def run_batches(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    batch_size: int,
    device: torch.device,
) -> list[tuple[Sequence[Item], list[Result]]]:
    """Return (batch, `work(batch)`) for batches of at most `batch_size` items.

    On a CPU, several smaller batches of together `batch_size` items run at the same time: PyTorch's own
    threads wait for each other after every operation, which is slow when other processes use the cores.
    `work` is called from several threads. Raises torch.OutOfMemoryError if a single item does not fit.
    """
    num_threads = torch.get_num_threads()
    num_parts = min(num_threads, _MAX_AT_ONCE, 2 * len(items) // batch_size) if device.type == "cpu" else 1
    if num_parts <= 1:
        return list(halve_until_it_fits(work, items, batch_size))

    @torch.no_grad()
    def run(part: Sequence[Item]) -> list[tuple[Sequence[Item], list[Result]]]:
        torch.set_num_threads(num_threads // num_parts)
        return list(halve_until_it_fits(work, part, max(1, batch_size // num_parts)))

    size = math.ceil(len(items) / num_parts)
    try:
        with ThreadPoolExecutor(num_parts) as pool:
            parts = pool.map(run, [items[start : start + size] for start in range(0, len(items), size)])
            return [batch for part in parts for batch in part]
    finally:
        torch.set_num_threads(num_threads)


def halve_until_it_fits(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], batch_size: int
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Yield (batch, `work(batch)`) for batches of `batch_size` items; a batch that does not fit is halved.

    Raises torch.OutOfMemoryError if a single item does not fit on the device.
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
        # Outside of the except block, the exception no longer holds the tensors of the failed attempt.
        torch.cuda.empty_cache()
        _warn_once(len(batch))
        yield from halve_until_it_fits(work, batch, (len(batch) + 1) // 2)


@cache
def _warn_once(size: int) -> None:
    log.warning("a batch of %d does not fit on the device: batches that do not fit are halved", size)
