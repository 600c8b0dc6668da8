"""Measured milliseconds of answers: means over the timed pictures, and over resamples of these pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Stream of random numbers, so that pictures are drawn independently of test images with the same seed.
_STREAM = 0x71E5


@dataclass(frozen=True, eq=False)
class TimingMeans:
    """Mean milliseconds under each of R resamples.

    `cost` `[R, num_scales]` are those of a whole answer at a scale, the vision pass included; `shared` `[R]`
    is the part of it that is paid once however many scales are tried; `overhead` `[R]`, by name, is the
    overhead of a predictor.
    """

    cost: Floats
    shared: Floats
    overhead: Mapping[str, Floats]

    def __getitem__(self, resamples: slice) -> "TimingMeans":
        """Means under some of the resamples."""
        overhead = {name: taken[resamples] for name, taken in self.overhead.items()}
        return TimingMeans(self.cost[resamples], self.shared[resamples], overhead)

    def cost_of_policy(self, tried: Sequence[Floats], name: str | None) -> Floats:
        """Mean milliseconds of a policy at its operating points, `[R, num_points]`.

        `tried` holds for each scale the share of the samples that try it, `[R, num_points]`; `name` is that
        of the predictor whose overhead is added to every answer, if any. The cost is vision pass and overhead
        once, plus the sum over scales of the share times prefill and decoding.
        """
        once = self.shared
        if name is not None and name in self.overhead:
            once = once + self.overhead[name]
        total = np.repeat(once[:, None], tried[0].shape[1], axis=1)
        for scale, share in enumerate(tried):
            total += share * (self.cost[:, scale] - self.shared)[:, None]
        return total


@dataclass(frozen=True, eq=False)
class Timings:
    """Milliseconds per answer of each timed picture, means over rounds.

    `vision` `[num_images]` are those of the vision pass, `answer` `[num_images, num_scales]` of prefill and
    decoding, `overhead` `[num_images]`, by name, of a predictor. With a `batch_size` above 1 a row is a batch
    of that many pictures, and its numbers are per picture. Each row was timed in `num_rounds` rounds, on the
    `machine` with these threads and this type of weights.
    """

    vision: Floats
    answer: Floats
    overhead: Mapping[str, Floats]
    batch_size: int = 1
    num_rounds: int = 1
    machine: str = ""

    @property
    def num_pictures(self) -> int:
        """Number of timed pictures."""
        return len(self.vision) * self.batch_size

    def describe(self) -> dict[str, int | str]:
        """Numbers of pictures and rounds, the batch size and the machine, as JSON."""
        return {
            "num_pictures": self.num_pictures,
            "num_rounds": self.num_rounds,
            "batch_size": self.batch_size,
            "machine": self.machine,
        }

    def means(self) -> TimingMeans:
        """Means over all pictures, R = 1. Not medians, so that the parts add up to the whole."""
        return self._weigh(np.full((1, len(self.vision)), 1 / len(self.vision)))

    def resample(self, num_resamples: int, seed: int) -> TimingMeans:
        """Means over `num_resamples` draws of all pictures with replacement.

        All parts use the same draws, so that noise that two parts share cancels in their difference.
        """
        number = len(self.vision)
        random = np.random.default_rng([seed, _STREAM])
        counts = random.multinomial(number, np.full(number, 1 / number), size=num_resamples)
        return self._weigh(counts / number)

    def bound(
        self, num_resamples: int, seed: int, confidence: float = 0.95
    ) -> tuple[TimingMeans, TimingMeans]:
        """Lower and upper ends of percentile intervals of the means, each R = 1."""
        drawn = self.resample(num_resamples, seed)

        def cut(tail: float) -> TimingMeans:
            overhead = {name: np.quantile(taken, [tail]) for name, taken in drawn.overhead.items()}
            cost = np.quantile(drawn.cost, [tail], axis=0)
            return TimingMeans(cost, np.quantile(drawn.shared, [tail]), overhead)

        return cut((1 - confidence) / 2), cut((1 + confidence) / 2)

    def with_names(self, trained: Mapping[str, str]) -> "Timings":
        """The same timings with the overheads of policies: `trained` maps a policy to its predictor."""
        return replace(self, overhead={name: self.overhead[source] for name, source in trained.items()})

    def _weigh(self, weights: Floats) -> TimingMeans:
        """Means under weights of the pictures `[R, num_images]`, which sum to 1."""
        shared = weights @ self.vision
        overhead = {name: weights @ taken for name, taken in self.overhead.items()}
        return TimingMeans(shared[:, None] + weights @ self.answer, shared, overhead)
