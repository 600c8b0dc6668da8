"""Choices of scales at many operating points, and their means under weights of the images.

A schedule stores only the changes from point to point, as few samples change at each.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, vstack

from predictor.policy.front import Floats
from predictor.policy.switches import Switches

# Images per matrix product: their weights under a few hundred resamples fit into the processor cache.
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Schedule:
    """Choices (columns) of every sample at points 0 to `num_points - 1`.

    `first` `[num_samples]` are the choices at point 0. Changes are arrays `[num_changes]`: sample `row`
    switches from `before` to `after` at `point`. The changes of one sample are in order.
    """

    num_points: int
    first: NDArray[np.int16]
    point: NDArray[np.int64]
    row: NDArray[np.int64]
    before: NDArray[np.int16]
    after: NDArray[np.int16]

    @classmethod
    def at_prices(cls, switches: Switches, prices: Floats, unit: float) -> "Schedule":
        """Return the schedule of a policy at ascending prices."""
        point = np.searchsorted(prices, switches.slope * unit, side="left")
        schedule = cls(len(prices), switches.first, point, switches.row, switches.before, switches.after)
        return schedule._select(point < len(prices))

    @classmethod
    def of(cls, choices: ArrayLike) -> "Schedule":
        """Return the schedule of choices `[num_points, num_samples]`."""
        dense = np.asarray(choices).astype(np.int16)
        point, row = np.nonzero(dense[1:] != dense[:-1])
        return cls(len(dense), dense[0], point + 1, row, dense[point, row], dense[point + 1, row])

    def keep(self, points: NDArray[np.integer]) -> "Schedule":
        """Return the schedule at some of the points, given in ascending order."""
        point = np.searchsorted(points, np.arange(self.num_points), side="left")[self.point]
        moved = replace(self, num_points=len(points), point=point)
        return moved._select(point < len(points))

    def _select(self, changes: NDArray[np.bool_]) -> "Schedule":
        if changes.all():
            return self
        kept = (self.point[changes], self.row[changes], self.before[changes], self.after[changes])
        return Schedule(self.num_points, self.first, *kept)

    def at(self, point: int) -> NDArray[np.int64]:
        """Return the choices `[num_samples]` at one point."""
        choice = self.first.astype(np.int64)
        reached = self.point <= point
        # The changes of one sample are in order, so the last one is assigned last.
        choice[self.row[reached]] = self.after[reached]
        return choice

    def mean(self, values: Floats) -> Floats:
        """Return the mean of `values` `[num_samples, num_columns]` at every point, `[num_points]`."""
        change = values[self.row, self.after] - values[self.row, self.before]
        # Without any change, NumPy counts in integers.
        changes = np.bincount(self.point, weights=change, minlength=self.num_points).astype(np.float64)
        changes[0] += values[np.arange(len(values)), self.first].sum()
        return np.cumsum(changes) / len(values)


class ImageMeans:
    """Means over samples of the costs and scores of policies, at all points, under weights of the images.

    `image` `[num_samples]` is the image number of each sample. For every policy the values at the first point
    and the changes from point to point are summed per image. Totals are products of the weights and these
    sums, over blocks of images. Changes are sparse, as few samples change at a point.
    """

    def __init__(self, image: ArrayLike) -> None:
        self._image = np.asarray(image)
        self._num_samples = np.bincount(self._image).astype(np.float64)
        # For each key and value: sums `[num_images, num_columns]` and, for a schedule, the changes
        # `[num_images, num_points]` from there.
        self._sums: dict[Any, list[tuple[Floats, csr_array | None]]] = {}
        # These replace `_sums`. For each block of images: all sums concatenated along columns, and all
        # changes along rows. For each key: the widths of its values in both, None for no changes.
        self._joined: list[tuple[Floats, csr_array]] = []
        self._widths: dict[Any, list[tuple[int, int | None]]] = {}

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self._num_samples)

    def add(self, key: Hashable, schedule: Schedule, *values: Floats) -> None:
        """Add a policy whose choices are columns of each of `values`, `[num_samples, num_columns]`."""
        assert not self._joined, "means were computed already"
        samples, images = np.arange(len(self._image)), self._image[schedule.row]
        shape = (self.num_images, schedule.num_points)
        sums: list[tuple[Floats, csr_array | None]] = []
        for table in values:
            first = np.bincount(self._image, weights=table[samples, schedule.first]).astype(np.float64)
            change = table[schedule.row, schedule.after] - table[schedule.row, schedule.before]
            sums.append((first[:, None], csr_array((change, (images, schedule.point)), shape=shape)))
        self._sums[key] = sums

    def add_columns(self, key: Hashable, *values: Floats) -> None:
        """Add one constant policy per column of each of `values`, `[num_samples, num_columns]`."""
        self.add_sums(key, *map(self._add_up, values))

    def _add_up(self, values: Floats) -> Floats:
        """Return sums per image, `[num_samples, num_columns]` -> `[num_images, num_columns]`."""
        sums = [np.bincount(self._image, weights=column) for column in values.T]
        return np.column_stack(sums).astype(np.float64)

    def add_sums(self, key: Hashable, *sums: Floats) -> None:
        """Like `add_columns`, from sums over the samples of each image, each `[num_images, num_columns]`."""
        assert not self._joined, "means were computed already"
        self._sums[key] = [(dense, None) for dense in sums]

    def _join(self) -> None:
        """Concatenate all sums and changes, so that a block needs one dense and one sparse product."""
        values = [value for by_key in self._sums.values() for value in by_key]
        changes = [change for _, change in values if change is not None]
        for start in range(0, self.num_images, _BLOCK):
            block = slice(start, start + _BLOCK)
            dense_sums = [self._num_samples[block, None], *(dense[block] for dense, _ in values)]
            sums = np.concatenate(dense_sums, axis=1)
            sparse = [change[block].T for change in changes]
            self._joined.append((sums, vstack(sparse, "csr") if sparse else csr_array((0, len(sums)))))
        self._widths = {
            key: [(dense.shape[1], None if change is None else change.shape[1]) for dense, change in values]
            for key, values in self._sums.items()
        }
        self._sums.clear()

    def __call__(self, weights: NDArray[Any]) -> dict[Any, tuple[Floats, ...]]:
        """Return, by key, the mean of each value at all points, `[num_resamples, num_points]`.

        `weights` of the images are `[num_resamples, num_images]`. Nothing can be added afterwards.
        """
        if not self._joined:
            self._join()
        first_sums, first_changes = self._joined[0]
        sums = np.zeros((first_sums.shape[1], len(weights)))
        changes = np.zeros((first_changes.shape[0], len(weights)))
        for number, (block_sums, block_changes) in enumerate(self._joined):
            # Resamples are contiguous in memory, because the sparse product adds whole rows of them.
            block = weights[:, number * _BLOCK : (number + 1) * _BLOCK]
            block_weights = np.ascontiguousarray(block.T, dtype=np.float64)
            sums += block_sums.T @ block_weights
            changes += block_changes @ block_weights
        num_samples, column, row = sums[0], 1, 0
        means: dict[Any, tuple[Floats, ...]] = {}
        for key, widths in self._widths.items():
            by_value = []
            for num_columns, num_points in widths:
                total = sums[column : column + num_columns]
                column += num_columns
                if num_points is not None:
                    added = changes[row : row + num_points]
                    row += num_points
                    added[0] += total[0]
                    total = np.cumsum(added, axis=0)
                by_value.append((total / num_samples).T)
            means[key] = tuple(by_value)
        return means
