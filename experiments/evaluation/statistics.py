"""The paired bootstrap over images: every figure with an interval, at the price of one sparse product.

Questions on one image are not independent, so images are drawn, not rows; and every policy sees the same
draws, so differences between policies keep what they have in common. Labels, predictors and prices are held
fixed: an interval says how the figure would vary over test images, not over training runs.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

# Resamples at once: bounds the memory, changes nothing else.
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure on the test samples with its interval over resamples, all of one shape."""

    value: Floats
    low: Floats
    high: Floats

    def __getitem__(self, index: Any) -> "Estimate":
        return Estimate(self.value[index], self.low[index], self.high[index])


class ImageMeans:
    """Means over rows of a value that depends on a choice per row, under any weighting of the images.

    `choices [num_points, num_rows]` are columns of `values [num_rows, num_scales]`, `image [num_rows]` the
    number of the image that a row asks about. From point to point few rows change their choice, so only the
    changes are kept, summed per image: memory and time go with their number and not with points x rows.
    """

    def __init__(self, choices: ArrayLike, values: ArrayLike, image: ArrayLike) -> None:
        columns, table, images = np.asarray(choices), np.asarray(values, dtype=np.float64), np.asarray(image)
        num_points, num_rows = columns.shape
        changed = np.concatenate([np.ones((1, num_rows), bool), columns[1:] != columns[:-1]])
        point, row = np.nonzero(changed)
        change = table[row, columns[point, row]]
        change -= np.where(point > 0, table[row, columns[np.maximum(point - 1, 0), row]], 0.0)
        num_images = int(images.max()) + 1
        self._changes = csr_array((change, (point, images[row])), shape=(num_points, num_images))
        self._rows = np.bincount(images, minlength=num_images).astype(np.float64)

    def __call__(self, weights: Floats) -> Floats:
        """Means `[num_resamples, num_points]` under weights `[num_resamples, num_images]`."""
        totals = np.cumsum(self._changes @ weights.T, axis=0)
        return (totals / (weights @ self._rows)).T


def number_images(image_id: ArrayLike) -> NDArray[np.int64]:
    """Numbers 0, 1, ... of the images that rows ask about, `[num_rows]`."""
    return np.unique(np.asarray(image_id, dtype=str), return_inverse=True)[1]


def draw_weights(num_images: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, `[chunk, num_images]`, chunk by chunk; rows sum to `num_images`."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        drawn = rng.integers(num_images, size=(size, num_images), dtype=np.int32)
        drawn += np.arange(size, dtype=np.int32)[:, None] * num_images
        yield np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, -1).astype(np.float64)


def bootstrap(
    measure: Callable[[Floats], Mapping[Key, Floats]],
    num_images: int,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[Key, Estimate]:
    """Every figure of `measure` with its percentile interval.

    `measure` takes weights of the images `[num_resamples, num_images]` and gives figures whose first
    dimension is `num_resamples`; with all weights 1 it gives the figure itself. nan (a figure that a resample
    does not have) is left out of the interval.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"an interval needs num_resamples >= 1 and confidence in (0, 1): {num_resamples}, {confidence}"
        )
    point = {name: figure[0] for name, figure in measure(np.ones((1, num_images))).items()}
    chunks = [measure(weights) for weights in draw_weights(num_images, num_resamples, seed)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    estimates = {}
    for name, value in point.items():
        drawn = np.concatenate([chunk[name] for chunk in chunks])
        # Where every resample is nan so is the interval; numpy would warn of it.
        missing = np.isnan(drawn).all(axis=0)
        low, high = np.nanquantile(np.where(missing, 0.0, drawn), tails, axis=0)
        estimates[name] = Estimate(value, np.where(missing, np.nan, low), np.where(missing, np.nan, high))
    return estimates
