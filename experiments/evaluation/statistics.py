"""The paired bootstrap over images: every figure with an interval, at the price of one matrix product.

Questions on one image are not independent, so images are drawn, not rows; and every policy sees the same
draws, so differences between policies keep what they have in common. Labels, predictors and prices are held
fixed: an interval says how the figure would vary over test images, not over training runs. Where several
seeds were trained, `combine_seeds` draws those too. Where costs are measured milliseconds, `resample` draws
the timed pictures as well, independently of the test images. Fewer than 8 images (`tasks.sizes`) give no
interval: that of two images that were both answered rightly would be [100, 100].
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from experiments.evaluation.costs import Timings
from experiments.tasks.sizes import allows_interval
from predictor.policy.front import Floats

Key = TypeVar("Key", bound=Hashable)
# Function of weights of the images and, if `resample` has timings, of mean milliseconds (`TimingMeans`).
Measure = Callable[..., Mapping[Key, Floats]]

# Limits of memory, which do not change results: resamples that are measured together, bytes of their weights,
# and counts that are made together.
_MOST_RESAMPLES, _MOST_WEIGHTS, _MOST_COUNTS = 512, 2**27, 2**18


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric on the test samples with its interval over resamples, all of one shape.

    In an array of metrics, one that does not exist is nan in all three. A single metric that does not exist
    is passed on as None (`or_none`). Both bounds are nan where there are too few images for an interval.
    """

    value: Floats
    low: Floats
    high: Floats

    def __getitem__(self, index: Any) -> "Estimate":
        return Estimate(self.value[index], self.low[index], self.high[index])

    def or_none(self) -> "Estimate | None":
        """A single metric, or None if it does not exist."""
        return None if np.isnan(self.value) else self


def check_confidence(confidence: float) -> None:
    """Raise ValueError for what is no level of an interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"an interval needs confidence in (0, 1): {confidence}")


def number_images(image_id: ArrayLike) -> NDArray[np.int64]:
    """Numbers 0, 1, ... of the images that rows ask about, `[num_rows]`."""
    encoded = pa.array(np.asarray(image_id, dtype=object), pa.string()).dictionary_encode()
    # In the order of their names, whatever the order of the rows.
    rank = np.empty(len(encoded.dictionary), dtype=np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy()]


def draw_weights(num_images: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """How often each image is drawn, `[chunk, num_images]`, chunk by chunk; rows sum to `num_images`."""
    rng = np.random.default_rng(seed)
    most = min(_MOST_RESAMPLES, max(1, _MOST_WEIGHTS // (2 * num_images)))
    # Rows that are counted together: few if there are many images.
    few = max(1, _MOST_COUNTS // num_images)
    for start in range(0, num_resamples, most):
        chunk = np.empty((min(most, num_resamples - start), num_images), dtype=np.uint16)
        for row in range(0, len(chunk), few):
            rows = chunk[row : row + few]
            cells = rng.integers(num_images, size=rows.shape, dtype=np.int32).astype(np.int64)
            cells += num_images * np.arange(len(rows))[:, None]
            counts = np.bincount(cells.ravel(), minlength=rows.size)
            assert counts.max() < 2**16
            rows[:] = counts.reshape(rows.shape)
        yield chunk


@dataclass(frozen=True, eq=False)
class Bootstrapped:
    """A metric on the test samples, `value`, and on every resample, `resamples` `[num_resamples, ...]`.

    `has_interval` is whether there are enough images for the resamples to mean anything.
    """

    value: Floats
    resamples: Floats
    has_interval: bool = True

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The metric with its percentile interval, in which resamples without the metric (nan) are ignored.

        A metric that does not exist (`exists`) is nan, with both its bounds. Without `has_interval` the
        bounds of every metric are nan.
        """
        if not self.has_interval:
            none = np.full_like(self.value, np.nan, dtype=np.float64)
            return Estimate(np.where(self.exists, self.value, np.nan), none, none)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        # Resamples last, as `resample` stores those of one metric contiguously.
        drawn = np.moveaxis(self.resamples, 0, -1)
        if not np.isnan(self.resamples).any() and not np.isnan(self.value).any():
            return Estimate(self.value, *np.quantile(drawn, tails, axis=-1))
        exists = self.exists
        # NumPy would warn about a metric that exists on no resample.
        bounds = np.nanquantile(np.where(exists[..., None], drawn, 0.0), tails, axis=-1)
        return Estimate(*(np.where(exists, number, np.nan) for number in (self.value, *bounds)))

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Whether the metric exists on the test samples, and on some resample."""
        return ~np.isnan(self.value) & ~np.isnan(self.resamples).all(axis=0)

    def p_value(self) -> Floats:
        """Two-sided p-value of a difference of zero, at least `floor`.

        Twice the smaller share of resamples on one side of zero, where zero counts on both sides and one
        resample is added to either count (Davison and Hinkley 1997, section 4.2): the inversion of the
        percentile interval. nan counts as zero. Without `has_interval` every p-value is 1.
        """
        if not self.has_interval:
            return np.ones(self.resamples.shape[1:])
        drawn = np.nan_to_num(self.resamples)
        sides = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
        return np.minimum(1.0, 2 * (1 + sides) / (len(drawn) + 1))

    @property
    def floor(self) -> float:
        """The smallest possible p-value with this number of resamples, `2 / (num_resamples + 1)`."""
        return min(1.0, 2 / (len(self.resamples) + 1))


def resample(
    measure: Measure[Key], num_images: int, *, num_resamples: int, seed: int, timings: Timings | None = None
) -> dict[Key, Bootstrapped]:
    """Every figure of `measure` on the samples and on resamples of their images.

    `measure` takes weights of the images `[num_resamples, num_images]` and gives figures whose first
    dimension is `num_resamples`; with all weights 1 it gives the figure itself. With `timings` it is also
    given mean milliseconds under as many draws of the timed pictures. These come from random numbers of their
    own, so the images drawn are the same with and without timings. Of too few images there is no interval
    (`allows_interval`).
    """
    if num_resamples < 1:
        raise ValueError(f"an interval needs num_resamples >= 1: {num_resamples}")
    milliseconds = None if timings is None else timings.resample(num_resamples, seed)
    point = measure(np.ones((1, num_images)), *(() if timings is None else (timings.means(),)))
    drawn = {key: np.empty((*values.shape[1:], num_resamples)) for key, values in point.items()}
    start = 0
    # The products are small: threads of BLAS would wait for each other longer than they multiply.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(max_workers=1) as drawer:
        chunks = draw_weights(num_images, num_resamples, seed)
        upcoming = drawer.submit(next, chunks, None)
        while (weights := upcoming.result()) is not None:
            upcoming = drawer.submit(next, chunks, None)  # drawn while this one is measured
            stop = start + len(weights)
            of_block = () if milliseconds is None else (milliseconds[start:stop],)
            for key, values in measure(weights, *of_block).items():
                drawn[key][..., start:stop] = np.moveaxis(values, 0, -1)
            start = stop
    enough = allows_interval(num_images)
    return {key: Bootstrapped(point[key][0], np.moveaxis(drawn[key], -1, 0), enough) for key in point}


def combine_seeds(by_seed: Mapping[int, Bootstrapped], *, seed: int) -> Bootstrapped:
    """A figure of several trainings on the same test images, from its draws by training seed.

    All were drawn with the same bootstrap seed, `seed`: row by row they saw the same images. The figure is
    its mean over the training seeds. A resample draws from k of them k - 1, with replacement, and takes the
    mean over those: so the variance over trainings is that of a mean of k without bias (Rao and Wu 1988; k
    drawn from k spread too little). What was trained with the same seeds draws the same ones, and a
    difference keeps what two policies owe to a seed they share.

    The interval covers test images and training runs; a single seed is held fixed. It takes no account of how
    badly few seeds tell their own spread: where that is twice the images', an interval of 95% covers in 86%
    for two seeds, 92% for three, 93% for five (simulated).
    """
    seeds = sorted(by_seed)
    metrics = [by_seed[metric] for metric in seeds]
    if len(seeds) == 1:
        return metrics[0]
    num_resamples = len(metrics[0].resamples)
    chosen = np.random.default_rng([seed, *seeds]).integers(len(seeds), size=(num_resamples, len(seeds) - 1))
    total = np.zeros_like(metrics[0].resamples)
    for position, metric in enumerate(metrics):
        share = (chosen == position).mean(axis=1)
        share = share.reshape(-1, *[1] * (total.ndim - 1))
        # A seed that is not drawn has no say, even where its figure does not exist.
        total += np.where(share > 0, share * metric.resamples, 0.0)
    has_interval = all(metric.has_interval for metric in metrics)
    return Bootstrapped(np.mean([metric.value for metric in metrics], axis=0), total, has_interval)


def bootstrap(
    measure: Measure[Key],
    num_images: int,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
    timings: Timings | None = None,
) -> dict[Key, Estimate]:
    """Every figure of `measure`, as `resample` takes it, with its percentile interval."""
    metrics = resample(measure, num_images, num_resamples=num_resamples, seed=seed, timings=timings)
    return {name: metric.estimate(confidence) for name, metric in metrics.items()}


def adjust_p_values(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction (Holm 1979) of p-values `[num_hypotheses]`.

    The i-th smallest of m is multiplied by m - i + 1, and none may fall below a smaller one's. Rejecting what
    is at most alpha keeps the chance of any false rejection below alpha, however the tests depend.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
