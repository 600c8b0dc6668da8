"""Choices at many operating points, kept as what changes from point to point: few samples do."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.fronts import Floats
from predictor.policy.switches import Switches


@dataclass(frozen=True, eq=False)
class Schedule:
    """Choices (columns) of every sample at points 0 to `num_points - 1`.

    `first` `[num_samples]` holds from point 0 on. Of the changes, all `[num_changes]`, sample `row` goes from
    `before` to `after` at `point`; those of one row are in order.
    """

    num_points: int
    first: NDArray[np.int8]
    point: NDArray[np.int64]
    row: NDArray[np.int64]
    before: NDArray[np.int8]
    after: NDArray[np.int8]

    @classmethod
    def at_prices(cls, switches: Switches, prices: Floats, unit: float) -> "Schedule":
        """Those of a policy at ascending prices."""
        point = np.searchsorted(prices, switches.slope * unit, side="left")
        every = cls(len(prices), switches.first, point, switches.row, switches.before, switches.after)
        return every._select(point < len(prices))

    @classmethod
    def of(cls, choices: ArrayLike) -> "Schedule":
        """Of choices `[num_points, num_samples]`."""
        dense = np.asarray(choices).astype(np.int8)
        point, row = np.nonzero(dense[1:] != dense[:-1])
        return cls(len(dense), dense[0], point + 1, row, dense[point, row], dense[point + 1, row])

    def keep(self, points: NDArray[np.integer]) -> "Schedule":
        """Those at some of the points, which rise."""
        point = np.searchsorted(points, np.arange(self.num_points), side="left")[self.point]
        moved = replace(self, num_points=len(points), point=point)
        return moved._select(point < len(points))

    def _select(self, changes: NDArray[np.bool_]) -> "Schedule":
        if changes.all():
            return self
        kept = (self.point[changes], self.row[changes], self.before[changes], self.after[changes])
        return Schedule(self.num_points, self.first, *kept)

    def at(self, point: int) -> NDArray[np.int64]:
        """Choices `[num_samples]` at one point."""
        choice = self.first.astype(np.int64)
        reached = self.point <= point
        # Those of one row are in order: the last one holds.
        choice[self.row[reached]] = self.after[reached]
        return choice

    def mean(self, values: Floats) -> Floats:
        """Mean over the samples of `values` `[num_samples, num_columns]` at every point, `[num_points]`."""
        change = values[self.row, self.after] - values[self.row, self.before]
        changes = np.bincount(self.point, weights=change, minlength=self.num_points)
        changes[0] += values[np.arange(len(values)), self.first].sum()
        return np.cumsum(changes) / len(values)
