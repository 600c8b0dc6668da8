"""Prices at which each sample switches to a cheaper scale: the choices of a policy at every price."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Rows computed at once, so that intermediate values stay in the cache.
_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Switches:
    """Choices, at every price, of a policy that maximises `estimate - price * cost` for each sample.

    `first` `[num_samples]` are the columns chosen at price 0. In each switch (all arrays `[num_switches]`),
    sample `row` switches from column `before` to `after` when the price reaches `slope` (estimate lost per
    cost saved). The switches of a row are in order of increasing slopes: its scales are the vertices of the
    upper concave hull of its points (cost, estimate), by decreasing cost.
    """

    first: NDArray[np.int16]
    row: NDArray[np.int64]
    before: NDArray[np.int16]
    after: NDArray[np.int16]
    slope: Floats


def find_switches(estimates: Floats, cost: Floats) -> Switches:
    """Return the switches of estimates and costs, both `[num_samples, num_scales]`.

    Ties of estimates or slopes go to the cheapest scale, then to the coarsest.
    """
    first, parts = [], []
    for start in range(0, len(cost), _BLOCK):
        stop = start + _BLOCK
        # Scales come first, since reductions over a short last axis are slow.
        block = np.ascontiguousarray(estimates[start:stop].T), np.ascontiguousarray(cost[start:stop].T)
        choice = _choose_best(*block)
        first.append(choice.astype(np.int16))
        parts += [(start + row, *part) for row, *part in _iterate_switches(*block, choice)]
    if not parts:
        empty = np.empty(0, dtype=np.int16)
        return Switches(np.concatenate(first), np.empty(0, dtype=np.int64), empty, empty, np.empty(0))
    row, before, after, slope = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Switches(np.concatenate(first), row, before, after, slope)


def _choose_best(estimates: Floats, cost: Floats) -> NDArray[np.int64]:
    """Return the cheapest column with the highest estimate, from arrays `[num_scales, num_rows]`."""
    return np.where(estimates == estimates.max(axis=0), cost, np.inf).argmin(axis=0)


def _iterate_switches(
    estimates: Floats, cost: Floats, choice: NDArray[np.int64]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield (row, before, after, slope) in rounds; in a round, each row switches at most once."""
    all_rows = np.arange(cost.shape[1])
    current, previous = choice, np.zeros(cost.shape[1])
    for _ in range(len(cost) - 1):
        saved = cost[current, all_rows] - cost
        slope = np.full(cost.shape, np.inf)
        np.divide(estimates[current, all_rows] - estimates, saved, out=slope, where=saved > 0)
        lowest = slope.min(axis=0)
        row = np.flatnonzero(lowest < np.inf)
        if not row.size:
            return
        target = np.where(slope == lowest, cost, np.inf).argmin(axis=0)
        # Slopes increase except for rounding errors, which are removed because callers rely on the order.
        previous = np.maximum(lowest, previous)
        yield row, current[row].astype(np.int16), target[row].astype(np.int16), previous[row]
        current = target
