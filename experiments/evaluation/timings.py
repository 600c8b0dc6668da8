"""Measured milliseconds of answers as numbers: means, and means under resamples of the timed pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Of random numbers: the bootstrap of as many test images, with the same seed, draws from another one.
_STREAM = 0x71E5


@dataclass(frozen=True, eq=False)
class TimingMeans:
    """Mean milliseconds under each of R resamples.

    `cost` `[R, num_scales]` are those of a whole answer at a scale, the vision pass included; `shared` `[R]`
    is the part of it that is paid once however many scales are tried; `overhead` `[R]`, by name, is what a
    predictor adds.
    """

    cost: Floats
    shared: Floats
    overhead: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class Timings:
    """Milliseconds per answer of each timed picture, means over rounds.

    `vision` `[num_images]` are those of the vision pass, `answer` `[num_images, num_scales]` of prefill and
    decoding, `overhead` `[num_images]`, by name, of a predictor. With a `batch_size` above 1 a row is a batch
    of so many pictures, and its numbers are per picture.
    """

    vision: Floats
    answer: Floats
    overhead: Mapping[str, Floats]
    batch_size: int = 1

    def means(self) -> TimingMeans:
        """Over all pictures, R = 1. Means and not medians, so that the parts add up to the whole."""
        return self._weigh(np.full((1, len(self.vision)), 1 / len(self.vision)))

    def resample(self, num_resamples: int, seed: int) -> TimingMeans:
        """Over `num_resamples` draws of as many pictures with replacement.

        All parts see the same pictures, so that a difference of two keeps what they have in common.
        """
        number = len(self.vision)
        random = np.random.default_rng([seed, _STREAM])
        counts = random.multinomial(number, np.full(number, 1 / number), size=num_resamples)
        return self._weigh(counts / number)

    def with_names(self, trained: Mapping[str, str]) -> "Timings":
        """The same with the overheads of other policies, by name: each that of the predictor it names."""
        return replace(self, overhead={name: self.overhead[source] for name, source in trained.items()})

    def _weigh(self, weights: Floats) -> TimingMeans:
        """Under weights of the pictures `[R, num_images]`, which sum to 1."""
        shared = weights @ self.vision
        overhead = {name: weights @ taken for name, taken in self.overhead.items()}
        return TimingMeans(shared[:, None] + weights @ self.answer, shared, overhead)
