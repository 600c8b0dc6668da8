"""How well estimates say what happens: Brier score, expected calibration error, reliability per scale."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.fronts import Floats
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Estimate, ImageMeans, bootstrap

NUM_BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Estimates held against scores, per scale `[num_scales]` and per bin `[num_scales, num_bins]`.

    `brier` is the mean of (estimate - score)^2, scores in [0, 1] (Brier 1950). Bins are equally wide from 0
    to 1, closed below, the last one closed; of each there are the `count` of samples, their mean `estimate`
    and mean `score`, nan where there are none. `error` is the expected calibration error, the mean over
    samples of the distance of these two means in their bin (Naeini et al. 2015; Guo et al., arXiv
    1706.04599). Noise only adds to that distance: with few samples a perfect estimate has an error too, and
    the more so in resamples, so that the interval of a small error lies high.
    """

    brier: Estimate
    error: Estimate
    edges: Floats
    count: Floats
    estimate: Floats
    score: Floats


def measure_calibration(
    estimates: ArrayLike,
    score: ArrayLike,
    image: ArrayLike,
    *,
    num_resamples: int,
    confidence: float = 0.95,
    seed: int = 0,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """Of `estimates` and `score` `[num_samples, num_scales]`, intervals over images as in `statistics`.

    `image` `[num_samples]` numbers the images that the samples ask about.
    """
    said, happened = np.asarray(estimates, dtype=np.float64), np.asarray(score, dtype=np.float64)
    num_samples, num_scales = said.shape
    bins = np.minimum((said * num_bins).astype(np.int64), num_bins - 1)
    edges = np.linspace(0, 1, num_bins + 1)
    cell = (np.arange(num_scales) * num_bins + bins).ravel()
    size = num_scales * num_bins

    def add_up(values: Floats) -> Floats:
        sums = np.bincount(cell, weights=values.ravel(), minlength=size).astype(np.float64)
        return sums.reshape(num_scales, num_bins)

    count = add_up(np.ones_like(said))
    with np.errstate(invalid="ignore"):
        mean_estimate, mean_score = add_up(said) / count, add_up(happened) / count
    means = ImageMeans(image)
    means.add_columns("brier", (said - happened) ** 2)
    for column in range(num_scales):
        # Column `num_bins` is where a sample adds nothing; at point b the samples of bin b count.
        surplus = np.column_stack([said[:, column] - happened[:, column], np.zeros(num_samples)])
        inside = np.where(bins[:, column] == np.arange(num_bins)[:, None], 0, 1)
        means.add(column, Schedule.of(inside), surplus)

    def measure(weights: np.ndarray) -> dict[str, Floats]:
        found = means(weights)
        errors = [abs(found[column][0]).sum(axis=1) for column in range(num_scales)]
        return {"brier": found["brier"][0], "error": np.stack(errors, axis=1)}

    found = bootstrap(
        measure, means.num_images, num_resamples=num_resamples, seed=seed, confidence=confidence
    )
    return Reliability(found["brier"], found["error"], edges, count, mean_estimate, mean_score)
