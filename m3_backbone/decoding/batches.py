"""Batches as large as fits on the device."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

# Batches that run at once on a CPU, at most.
_MAX_AT_ONCE = 4

Item = TypeVar("Item")
Other = TypeVar("Other")
Result = TypeVar("Result")


def group_rows(first: Sequence[Item], second: Sequence[Other]) -> list[list[int]]:
    """Numbers of rows, grouped by both keys; groups with the same first key are adjacent."""
    groups: dict[Item, dict[Other, list[int]]] = {}
    for row, (outer, inner) in enumerate(zip(first, second, strict=True)):
        groups.setdefault(outer, {}).setdefault(inner, []).append(row)
    return [rows for subgroups in groups.values() for rows in subgroups.values()]


def run_batches(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    batch_size: int,
    device: torch.device,
) -> list[tuple[Sequence[Item], list[Result]]]:
    """(batch, `work(batch)`) for batches of at most `batch_size` items.

    On a CPU several smaller batches, together of that size, run at once: PyTorch's own threads wait for each
    other after every operation, for long where other processes want the cores too. `work` has to allow calls
    from several threads.
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
