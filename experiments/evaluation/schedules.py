"""Choices of scales at many operating points, and their means under weights of the images.

Of a schedule only the changes from point to point are kept: few samples change at each.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from predictor.policy.front import Floats
from predictor.policy.switches import Switches

# Bytes of sums per image that are multiplied together, and the number of resamples that is worth writing out
# zeros for. They limit memory and do not change results.
_MOST_SUMS, _FEW = 2**27, 8


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


class ImageMeans:
    """Means over rows of what policies get (cost, score), at all their points, under weights of the images.

    `image` `[num_rows]` is the number of the image that a row asks about. Of every policy what its first
    point gives and the changes from point to point are kept, summed per image. Totals are products of weights
    and these, images in blocks.
    """

    def __init__(self, image: ArrayLike) -> None:
        self._image = np.asarray(image)
        self._rows = np.bincount(self._image).astype(np.float64)
        # Per value sums `[num_images, num_columns]`, and the changes from there on for a schedule.
        self._sums: dict[Any, list[tuple[Floats, csr_array | None]]] = {}

    @property
    def num_images(self) -> int:
        return len(self._rows)

    def add(self, key: Hashable, schedule: Schedule, *values: Floats) -> None:
        """A policy whose choices are columns of each of `values`, `[num_rows, num_columns]`."""
        every, images = np.arange(len(self._image)), self._image[schedule.row]
        shape = (self.num_images, schedule.num_points)
        self._sums[key] = []
        for table in values:
            first = np.bincount(self._image, weights=table[every, schedule.first]).astype(np.float64)
            change = table[schedule.row, schedule.after] - table[schedule.row, schedule.before]
            changes = csr_array((change, (images, schedule.point)), shape=shape)
            self._sums[key].append((first[:, None], changes))

    def add_columns(self, key: Hashable, *values: Floats) -> None:
        """As many policies as columns, each with a value of its own: `values` `[num_rows, num_columns]`."""
        self.add_sums(key, *map(self._add_up, values))

    def _add_up(self, values: Floats) -> Floats:
        """Sums over the rows of each image, `[num_rows, num_columns]` -> `[num_images, num_columns]`."""
        sums = [np.bincount(self._image, weights=column) for column in values.T]
        return np.column_stack(sums).astype(np.float64)

    def add_sums(self, key: Hashable, *sums: Floats) -> None:
        """As `add_columns`, from sums over the rows of each image, each `[num_images, num_columns]`."""
        self._sums[key] = [(each, None) for each in sums]

    def __call__(self, weights: NDArray[Any]) -> dict[Any, tuple[Floats, ...]]:
        """By key, the mean of each of its values at its points, `[num_resamples, num_points]`.

        `weights` of the images are `[num_resamples, num_images]`.
        """
        widths = {
            key: [(sums if changes is None else changes).shape[1] for sums, changes in its]
            for key, its in self._sums.items()
        }
        totals = {key: [np.zeros((len(weights), width)) for width in its] for key, its in widths.items()}
        num_rows = np.zeros(len(weights))
        size = max(1, _MOST_SUMS // (8 * max(len(weights), *map(max, widths.values()))))
        for start in range(0, self.num_images, size):
            block = slice(start, start + size)
            drawn = weights[:, block].astype(np.float64)
            num_rows += drawn @ self._rows[block]
            for key, its in self._sums.items():
                for total, (sums, changes) in zip(totals[key], its, strict=True):
                    total[:, : sums.shape[1]] += drawn @ sums[block]
                    if changes is not None:
                        # Many resamples pay for writing out the zeros, a few do not.
                        part = changes[block]
                        total += drawn @ (part.toarray() if len(drawn) > _FEW else part)
        return {
            key: tuple(
                (total if changes is None else np.cumsum(total, axis=1)) / num_rows[:, None]
                for total, (_, changes) in zip(totals[key], its, strict=True)
            )
            for key, its in self._sums.items()
        }
