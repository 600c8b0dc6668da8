"""Batches as large as the memory of the device allows."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class Capacity:
    """Size of the batches of one kind of work: the sum of the sizes of their items, such as tokens.

    It is `limit` until a batch does not fit on the device; what did not fit is remembered, and later batches
    are at most half of it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def shrink(self, size: int) -> None:
        """Remember that a batch of this size did not fit."""
        smaller = max(1, (size + 1) // 2)
        if smaller < self.limit:
            log.warning(
                "a batch of %d does not fit on the device: batches have at most %d now", size, smaller
            )
            self.limit = smaller

    def fill(self, sizes: Sequence[int], owners: Sequence[int], limit: int | None = None) -> int:
        """Return how many of the first items form the next batch: as many as fit, and at least one.

        Adjacent items of one owner are not divided unless they exceed a batch. `limit` replaces that of the
        object if it is smaller.
        """
        limit = self.limit if limit is None else min(limit, self.limit)
        total = 0
        for number, size in enumerate(sizes):
            total += size
            if total > limit and number:
                return find_boundary(owners, number)
        return len(sizes)


def find_boundary(owners: Sequence[int], end: int) -> int:
    """Return the last index up to `end` at which the owner changes; `end` if there is none but 0."""
    start = end
    while 0 < start < len(owners) and owners[start - 1] == owners[start]:
        start -= 1
    return start or end


def run_batches(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    capacity: Capacity,
    device: torch.device,
    sizes: Sequence[int] | None = None,
    owners: Sequence[int] | None = None,
) -> list[tuple[Sequence[Item], list[Result]]]:
    """Return (batch, `work(batch)`) for batches within `capacity`; `sizes` of the items are 1 by default.

    Adjacent items with equal `owners` share work, and are in one batch if they fit.

    On a CPU, several smaller batches of together at most the capacity run at the same time: PyTorch's own
    threads wait for each other after every operation, which is slow when other processes use the cores.
    `work` is called from several threads. Raises torch.OutOfMemoryError if a single item does not fit.
    """
    item_sizes = [1] * len(items) if sizes is None else list(sizes)
    owners = range(len(items)) if owners is None else owners
    num_threads = torch.get_num_threads()
    num_parts = 1
    if device.type == "cpu":
        num_parts = min(num_threads, _MAX_AT_ONCE, 2 * sum(item_sizes) // capacity.limit, len(items))
    if num_parts <= 1:
        return list(halve_until_it_fits(work, items, item_sizes, owners, capacity))

    @torch.no_grad()
    def run(part: slice) -> list[tuple[Sequence[Item], list[Result]]]:
        torch.set_num_threads(num_threads // num_parts)
        limit = max(1, capacity.limit // num_parts)
        return list(halve_until_it_fits(work, items[part], item_sizes[part], owners[part], capacity, limit))

    length = math.ceil(len(items) / num_parts)
    ends = [find_boundary(owners, end) for end in range(length, len(items), length)]
    try:
        with ThreadPoolExecutor(num_parts) as pool:
            parts = pool.map(run, map(slice, [0, *ends], [*ends, len(items)]))
            return [batch for part in parts for batch in part]
    finally:
        torch.set_num_threads(num_threads)


def halve_until_it_fits(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    sizes: Sequence[int],
    owners: Sequence[int],
    capacity: Capacity,
    limit: int | None = None,
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Yield (batch, `work(batch)`) for batches within `capacity`, which shrinks if one does not fit.

    Raises torch.OutOfMemoryError if a single item does not fit on the device.
    """
    start = 0
    while start < len(items):
        end = start + capacity.fill(sizes[start:], owners[start:], limit)
        try:
            results = work(items[start:end])
        except torch.OutOfMemoryError:
            if end - start == 1:
                raise
        else:
            yield items[start:end], results
            start = end
            continue
        # Outside of the except block, the exception no longer holds the tensors of the failed attempt.
        torch.cuda.empty_cache()
        capacity.shrink(sum(sizes[start:end]))
