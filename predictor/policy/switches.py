"""Where a policy leaves one scale for a cheaper one as its price rises: all that it does, at every price."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Rows at once, so that what is computed of them stays in the cache.
_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Switches:
    """Choices of a policy that maximises `estimate - price * cost` for each sample alone.

    `first` `[num_samples]` are the columns chosen at price 0. Of the switches, all `[num_switches]`, `row`
    leaves column `before` for `after` once the price reaches `slope` (estimate lost per cost saved). Those of
    one row are in order, and their slopes rise: its scales are the upper concave hull of its points
    (cost, estimate), walked down.
    """

    first: NDArray[np.int8]
    row: NDArray[np.int64]
    before: NDArray[np.int8]
    after: NDArray[np.int8]
    slope: Floats


def find_switches(estimates: Floats, cost: Floats) -> Switches:
    """The switches of estimates and costs `[num_samples, num_scales]`.

    Among equal estimates, or slopes, the cheapest scale is chosen, among equally cheap ones the coarsest.
    """
    first, parts = [], []
    for start in range(0, len(cost), _BLOCK):
        stop = start + _BLOCK
        # Scale by scale, as reducing over a short last axis is slow.
        block = np.ascontiguousarray(estimates[start:stop].T), np.ascontiguousarray(cost[start:stop].T)
        choice = _choose_best(*block)
        first.append(choice.astype(np.int8))
        parts += [(start + row, *part) for row, *part in _walk_down(*block, choice)]
    if not parts:
        none = np.empty(0, dtype=np.int8)
        return Switches(np.concatenate(first), np.empty(0, dtype=np.int64), none, none, np.empty(0))
    row, before, after, slope = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Switches(np.concatenate(first), row, before, after, slope)


def _choose_best(estimates: Floats, cost: Floats) -> NDArray[np.int64]:
    """The cheapest column of highest estimate; `estimates` and `cost` are `[num_scales, num_rows]`."""
    return np.where(estimates == estimates.max(axis=0), cost, np.inf).argmin(axis=0)


def _walk_down(
    estimates: Floats, cost: Floats, choice: NDArray[np.int64]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Rounds of (row, before, after, slope); in each, every row that can goes to its next cheaper column."""
    every = np.arange(cost.shape[1])
    current, previous = choice, np.zeros(cost.shape[1])
    for _ in range(len(cost) - 1):
        saved = cost[current, every] - cost
        slope = np.full(cost.shape, np.inf)
        np.divide(estimates[current, every] - estimates, saved, out=slope, where=saved > 0)
        lowest = slope.min(axis=0)
        row = np.flatnonzero(lowest < np.inf)
        if not row.size:
            return
        target = np.where(slope == lowest, cost, np.inf).argmin(axis=0)
        # They rise but for rounding, and what reads them relies on it.
        previous = np.maximum(lowest, previous)
        yield row, current[row].astype(np.int8), target[row].astype(np.int8), previous[row]
        current = target
