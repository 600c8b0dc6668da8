"""Paired bootstrap over images: intervals of all metrics from one matrix product per resample.

Questions about one image are not independent, so images are resampled, not questions. All policies use the
same resamples, so that common noise cancels in their differences. Labels, predictors and prices are held
fixed: an interval covers test images, not training runs. If several seeds were trained, `combine_seeds`
resamples the seeds too. If costs are measured in milliseconds, the timed images are resampled too,
independently of the test images. Fewer than 8 images (`tasks.sizes`) give no interval: with two images that
were both answered correctly it would be [100, 100].
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
# Returns metrics, given weights of the images and, if a bootstrap has timings, mean milliseconds.
Measure = Callable[..., Mapping[Key, Floats]]

# Limits on memory, which do not change results: resamples measured together, bytes of their weights, and
# counts computed together.
_MOST_RESAMPLES, _MOST_WEIGHTS, _MOST_COUNTS = 512, 2**27, 2**18


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric on the test samples with its interval over resamples; the three arrays have one shape.

    In an array, a metric that does not exist is nan in all three. A single metric that does not exist is
    represented by None. Both bounds are nan if there are too few images for an interval.
    """

    value: Floats
    low: Floats
    high: Floats

    def __getitem__(self, index: Any) -> "Estimate":
        return Estimate(self.value[index], self.low[index], self.high[index])


def number_images(cluster_id: ArrayLike) -> NDArray[np.int64]:
    """Return the number (0, 1, ...) of each sample's image or cluster of images, `[num_samples]`."""
    encoded = pa.array(np.asarray(cluster_id, dtype=object), pa.string()).dictionary_encode()
    # Images are numbered in the order of their ids, whatever the order of the samples.
    rank = np.empty(len(encoded.dictionary), dtype=np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy()]


def draw_weights(num_images: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """Yield, in chunks, how often each image occurs in each resample, `[chunk, num_images]`.

    Rows sum to `num_images`.
    """
    rng = np.random.default_rng(seed)
    most = min(_MOST_RESAMPLES, max(1, _MOST_WEIGHTS // (2 * num_images)))
    # Number of rows counted together, which is small if there are many images.
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

    `has_interval` is whether there are enough images for an interval.
    """

    value: Floats
    resamples: Floats
    has_interval: bool = True

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """Return the metric with its percentile interval; nan resamples are ignored.

        If a metric does not exist (`exists`), its value and bounds are nan. Without `has_interval` the bounds
        of every metric are nan.
        """
        if not self.has_interval:
            none = np.full_like(self.value, np.nan, dtype=np.float64)
            return Estimate(np.where(self.exists, self.value, np.nan), none, none)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        # Resamples on the last axis, as `Bootstrap` stores those of one metric contiguously.
        resamples = np.moveaxis(self.resamples, 0, -1)
        if not np.isnan(self.resamples).any() and not np.isnan(self.value).any():
            return Estimate(self.value, *np.quantile(resamples, tails, axis=-1))
        exists = self.exists
        # Metrics that exist on no resample are replaced, as NumPy would warn about them.
        low, high = np.nanquantile(np.where(exists[..., None], resamples, 0.0), tails, axis=-1)
        return Estimate(*(np.where(exists, number, np.nan) for number in (self.value, low, high)))

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Whether the metric exists on the test samples and on at least one resample."""
        return ~np.isnan(self.value) & ~np.isnan(self.resamples).all(axis=0)

    def p_value(self) -> Floats:
        """Return the two-sided p-value of a difference of zero, at least `floor`.

        It is twice the smaller share of resamples on one side of zero, where zero counts on both sides and
        one resample is added to either count (Davison and Hinkley 1997, section 4.2). It inverts the
        percentile interval. nan counts as zero. Without `has_interval` every p-value is 1.
        """
        if not self.has_interval:
            return np.ones(self.resamples.shape[1:])
        differences = np.nan_to_num(self.resamples)
        smaller_side = np.minimum((differences <= 0).sum(axis=0), (differences >= 0).sum(axis=0))
        return np.minimum(1.0, 2 * (1 + smaller_side) / (len(differences) + 1))

    @property
    def floor(self) -> float:
        """The smallest possible p-value with this number of resamples, `2 / (num_resamples + 1)`."""
        return min(1.0, 2 / (len(self.resamples) + 1))


@dataclass(frozen=True)
class Bootstrap:
    """Settings of a bootstrap over images: equal settings give the same resamples of the same images.

    `confidence` is the coverage of the intervals. Raises ValueError if `num_resamples` is below 1 or
    `confidence` lies outside (0, 1).
    """

    num_resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"an interval needs confidence in (0, 1): {self.confidence}")
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples is at least 1, got {self.num_resamples}")

    def resample(
        self, measure: Measure[Key], num_images: int, timings: Timings | None = None
    ) -> dict[Key, Bootstrapped]:
        """Return every metric of `measure` on the samples and on resamples of their images.

        `measure` takes weights of the images `[num_resamples, num_images]` and returns metrics whose first
        dimension is `num_resamples`; weights of 1 give the metric on the samples. With `timings` it also
        takes mean milliseconds under as many resamples of the timed images. These use separate random
        numbers, so the resamples of images are the same with and without timings. With too few images there
        is no interval (`allows_interval`).
        """
        milliseconds = None if timings is None else timings.resample(self.num_resamples, self.seed)
        point = measure(np.ones((1, num_images)), *(() if timings is None else (timings.means(),)))
        resamples = {key: np.empty((*values.shape[1:], self.num_resamples)) for key, values in point.items()}
        start = 0
        # The products are so small that BLAS threads would spend most of the time waiting for each other.
        with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(max_workers=1) as drawer:
            chunks = draw_weights(num_images, self.num_resamples, self.seed)
            upcoming = drawer.submit(next, chunks, None)
            while (weights := upcoming.result()) is not None:
                # The next chunk is computed while this one is measured.
                upcoming = drawer.submit(next, chunks, None)
                stop = start + len(weights)
                chunk_milliseconds = () if milliseconds is None else (milliseconds[start:stop],)
                for key, values in measure(weights, *chunk_milliseconds).items():
                    resamples[key][..., start:stop] = np.moveaxis(values, 0, -1)
                start = stop
        enough = allows_interval(num_images)
        return {key: Bootstrapped(point[key][0], np.moveaxis(resamples[key], -1, 0), enough) for key in point}

    def estimate(
        self, measure: Measure[Key], num_images: int, timings: Timings | None = None
    ) -> dict[Key, Estimate]:
        """Return every metric of `measure` (see `resample`) with its percentile interval."""
        resampled = self.resample(measure, num_images, timings)
        return {key: values.estimate(self.confidence) for key, values in resampled.items()}


def combine_seeds(by_seed: Mapping[int, Bootstrapped], *, seed: int) -> Bootstrapped:
    """Return a metric averaged over training seeds, with resamples of test images and of seeds.

    `by_seed` holds the metric of each training seed on the same test images. All must have been bootstrapped
    with the same `seed`, so that row i of their resamples uses the same images. Each resample also samples
    k - 1 of the k training seeds with replacement and averages over them, which estimates the variance of a
    mean of k trainings without bias (Rao and Wu 1988; k of k would underestimate it). Policies with the same
    training seeds get the same resamples of them, so that common variation cancels in a difference.

    The interval covers test images and training runs; a single training seed is held fixed. The interval
    ignores the uncertainty of a spread estimated from few seeds: where that spread is twice that over images,
    a 95% interval covers in 86% of cases for two seeds, 92% for three, 93% for five (simulated).
    """
    seeds = sorted(by_seed)
    trainings = [by_seed[training_seed] for training_seed in seeds]
    if len(seeds) == 1:
        return trainings[0]
    num_resamples = len(trainings[0].resamples)
    chosen = np.random.default_rng([seed, *seeds]).integers(len(seeds), size=(num_resamples, len(seeds) - 1))
    total = np.zeros_like(trainings[0].resamples)
    for position, training in enumerate(trainings):
        share = (chosen == position).mean(axis=1)
        share = share.reshape(-1, *[1] * (total.ndim - 1))
        # A seed that is not in the resample does not count, even if its metric is nan.
        total += np.where(share > 0, share * training.resamples, 0.0)
    has_interval = all(training.has_interval for training in trainings)
    return Bootstrapped(np.mean([training.value for training in trainings], axis=0), total, has_interval)


def adjust_p_values(p_values: ArrayLike) -> Floats:
    """Return p-values `[num_hypotheses]` after Holm's step-down correction (Holm 1979).

    The i-th smallest of m p-values is multiplied by m - i + 1, and the results are made non-decreasing.
    Rejecting hypotheses with an adjusted p-value of at most alpha bounds the probability of any false
    rejection by alpha, whatever the dependence between the tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
