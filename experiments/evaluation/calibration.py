"""Calibration of estimates: Brier score, expected calibration error and reliability per scale."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.fronts import Floats
from experiments.evaluation.schedules import ImageMeans
from experiments.evaluation.statistics import Estimate

NUM_BINS = 10


class _Part(Enum):
    """Sums per image: squared errors per scale, and estimate minus score per scale and bin."""

    SQUARES = auto()
    SURPLUS = auto()


@dataclass(frozen=True, eq=False)
class Reliability:
    """Calibration of estimates per scale `[num_scales]` and per bin `[num_scales, num_bins]`.

    `brier` is the mean of (estimate - score)^2, scores in [0, 1] (Brier 1950). Bins have equal widths from 0
    to 1 and include their lower edge (the last bin both edges). For each bin, `count` is the number of
    samples, `estimate` their mean estimate and `score` their mean score, nan without samples. `error` is the
    expected calibration error: the absolute difference of these two means, averaged over samples (Naeini et
    al. 2015; Guo et al., arXiv 1706.04599). Noise biases it upwards: with few samples a perfect estimate has
    a positive error, more so in resamples, so the interval of a small error is too high.
    """

    brier: Estimate
    error: Estimate
    edges: Floats
    count: Floats
    estimate: Floats
    score: Floats


class Binned:
    """Estimates and scores, each `[num_samples, num_scales]`, sorted into bins from 0 to 1.

    Estimates outside [0, 1] belong to the nearest bin. `image` `[num_samples]` is the image number of each
    sample.
    """

    def __init__(
        self, estimates: ArrayLike, score: ArrayLike, image: ArrayLike, num_bins: int = NUM_BINS
    ) -> None:
        estimate, scores = np.asarray(estimates, dtype=np.float64), np.asarray(score, dtype=np.float64)
        num_scales = estimate.shape[1]
        self.shape = num_scales, num_bins
        self.edges = np.linspace(0, 1, num_bins + 1)
        bins = np.clip((estimate * num_bins).astype(np.int64), 0, num_bins - 1)
        cell = np.arange(num_scales) * num_bins + bins
        images = np.asarray(image)
        shape = int(images.max()) + 1, num_scales * num_bins

        def add_up(values: Floats) -> Floats:
            """Return sums per image and cell, `[num_images, num_scales * num_bins]`."""
            cells = images[:, None] * shape[1] + cell
            sums = np.bincount(cells.ravel(), weights=values.ravel(), minlength=shape[0] * shape[1])
            return sums.astype(np.float64).reshape(shape)

        def total(values: Floats) -> Floats:
            return add_up(values).sum(axis=0).reshape(self.shape)

        self.count = total(np.ones_like(estimate))
        self.estimate, self.score = (
            np.divide(total(values), self.count, out=np.full(self.shape, np.nan), where=self.count > 0)
            for values in (estimate, scores)
        )
        self._squares, self._surplus = (estimate - scores) ** 2, add_up(estimate - scores)

    def add_to(self, means: ImageMeans, owner: Hashable = None) -> None:
        """Add to `means` the sums that `measure` needs, under keys with this `owner`."""
        means.add_columns((owner, _Part.SQUARES), self._squares)
        means.add_sums((owner, _Part.SURPLUS), self._surplus)

    def measure(
        self, means: Mapping[Any, tuple[Floats, ...]], owner: Hashable = None
    ) -> tuple[Floats, Floats]:
        """Return Brier score and calibration error, each `[num_resamples, num_scales]`, from `means`."""
        (brier,), (surplus,) = means[owner, _Part.SQUARES], means[owner, _Part.SURPLUS]
        return brier, abs(surplus).reshape(-1, *self.shape).sum(axis=2)

    def describe(self, brier: Estimate, error: Estimate) -> Reliability:
        """Return the bins, with the two metrics and their intervals."""
        return Reliability(brier, error, self.edges, self.count, self.estimate, self.score)
