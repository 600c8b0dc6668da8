"""Test by betting of whether a mean is above zero, valid in finite samples.

A capital of 1 is multiplied by `1 + bet * x` for each value x, where each bet is fixed before its value is
known. If the mean is at most 0, the capital is a supermartingale and reaches `1 / delta` with probability at
most `delta`, whatever the distribution (Ville's inequality; Waudby-Smith & Ramdas, JRSS B 2023). The bets are
those of STaR-Bets (Voracek & Orabona, 2025): each bet would reach the goal with the remaining values, given
the variance so far. It has by far the highest power of the tests compared (Hoeffding-Bentkus, Maurer &
Pontil's empirical Bernstein, predictable plug-in and mixed bets), and not much less than a test that assumes
a normal distribution.

`SequentialTest` is the same test without a fixed number of values: it may be looked at after each of them.
"""

from math import ceil, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.fronts import Floats

# Pseudo-observation of the variance, and the largest share of the capital that one value can lose.
_PRIOR_VARIANCE, _BOLDEST = 0.25, 0.999
# `find_num_needed`: required share of passing resamples, their number and seed, and the largest multiple of
# the present number of images to try.
_POWER, _RESAMPLES, _SEED, _MOST_TIMES = 0.8, 200, 0, 64


# Shares of the capital that the strategies of `SequentialTest` bet; 0 keeps capital for later changes.
_SHARES = np.array([0.0, *2.0 ** -np.arange(5, 0, -1)])


class SequentialTest:
    """Test of whether values exceed their bounds on average, valid at any time and for any number of values.

    Values x are in [0, 1], each with a bound b > 0 that is fixed before it is known. While the mean of each
    value, given all values before, is at most its bound, the capital, 1 at the start, ever reaches
    `1 / delta` with probability at most `delta` (Ville's inequality). Strategies multiply their part of the
    capital by `1 + share * (x - b) / b`; the t-th update first moves `1 / (t + 1)` of each part to all
    (fixed-share mixing, Herbster & Warmuth 1998), so that a change is found after a long time without one.
    """

    def __init__(self, delta: float) -> None:
        self.delta, self.num_values = delta, 0
        self.is_rejected = False
        self._parts = np.full(len(_SHARES), 1 / len(_SHARES))

    @property
    def capital(self) -> float:
        """Capital so far; the evidence against the bounds. It stops to change when they are rejected."""
        return float(self._parts.sum())

    def update(self, value: float, bound: float) -> bool:
        """Add a value; returns whether the bounds are rejected now or were before."""
        assert 0 <= value <= 1 and bound > 0
        self.num_values += 1
        if not self.is_rejected:
            moved = 1 / (self.num_values + 1)
            parts = (1 - moved) * self._parts + moved * self._parts.mean()
            self._parts = parts * (1 + _SHARES * (value - bound) / bound)
            self.is_rejected = self.capital >= 1 / self.delta
        return self.is_rejected


def certify(values: ArrayLike, alpha: float, delta: float) -> NDArray[np.bool_]:
    """Return whether E[x] <= 0 is rejected at level `delta`, `[...]` for values x `[..., num_images]`.

    Values are at least `alpha - 1`. Bets are placed in the order of the last axis, which must not depend on
    the outcomes of the images.
    """
    x = np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0)
    goal, boldest = log(1 / delta), _BOLDEST / (1 - alpha)
    assert (x > alpha - 1 - 1e-9).all()
    log_capital, total = np.zeros(x.shape[1:]), np.zeros(x.shape[1:])
    squares = np.full(x.shape[1:], _PRIOR_VARIANCE)
    for number, value in enumerate(x, start=1):
        missing = np.maximum(goal - log_capital, 0.0)
        num_left = len(x) - number + 1
        # A constant bet b adds about b * mean - b^2 * variance / 2 per value to the log of the capital.
        bet = np.minimum(np.sqrt(2 * missing * number / (num_left * squares)), boldest)
        log_capital += np.log1p(bet * value)
        squares += (value - total / number) ** 2
        total += value
    reached: NDArray[np.bool_] = log_capital >= goal - 1e-12
    return reached


def find_num_needed(values: Floats, alpha: float, delta: float) -> int | None:
    """Return the estimated number of images that pass `certify` with a probability of 80%.

    It is at least the number needed if every drop were zero. None if the mean of `values` `[num_images]` is
    not above 0, or if 64 times as many images would not suffice. The estimate resamples the values, and is
    uncertain if they are few.
    """
    least = ceil(log(delta) / log(1 - alpha))
    if values.mean() <= 0:
        return None
    rng = np.random.default_rng(_SEED)

    def suffices(number: int) -> bool:
        resampled = values[rng.integers(len(values), size=(_RESAMPLES, number))]
        return bool(certify(resampled, alpha, delta).mean() >= _POWER)

    most = _MOST_TIMES * max(least, len(values))
    low, high = 0, max(least, len(values))
    while not suffices(high):
        low, high = high, 2 * high
        if high > most:
            return None
    while low and high - low > high // 20:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
