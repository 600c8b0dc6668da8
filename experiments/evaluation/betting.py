"""Whether a mean is above zero, by betting against it: a test that is valid in finite samples.

Capital is multiplied by `1 + bet * x` value by value, each bet fixed before its value is seen. Where the mean
is not above 0 the capital is a supermartingale, and reaches `1 / delta` with chance `delta` at most, whatever
the distribution (Ville's inequality; Waudby-Smith & Ramdas, JRSS B 2023). Bets are those of STaR-Bets
(Voracek & Orabona, 2025): what would reach the goal with the values that are left, at the variance seen so
far. Of the tests tried (Hoeffding-Bentkus, Maurer & Pontil's empirical Bernstein, predictable plug-in and
mixed bets) it rejects by far the most, not much less than one that trusts the normal distribution.
"""

from math import ceil, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.fronts import Floats

# A pseudo-observation of the variance, and the share of the capital that may be lost at once.
_PRIOR_VARIANCE, _BOLDEST = 0.25, 0.999
# Where the data are too few: the number at which the test would pass in so many of the resamples.
_POWER, _RESAMPLES, _MOST_TIMES = 0.8, 200, 64


def certify(values: ArrayLike, alpha: float, delta: float) -> NDArray[np.bool_]:
    """Whether E[x] <= 0 is rejected at level `delta`; values x `[..., num_images]` are `alpha - 1` or more.

    The images are bet on in this order, which must not depend on their outcomes.
    """
    x = np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0)
    goal, boldest = log(1 / delta), _BOLDEST / (1 - alpha)
    assert (x > alpha - 1 - 1e-9).all()
    won, total = np.zeros(x.shape[1:]), np.zeros(x.shape[1:])
    squares = np.full(x.shape[1:], _PRIOR_VARIANCE)
    for number, value in enumerate(x, start=1):
        missing = np.maximum(goal - won, 0.0)
        left = len(x) - number + 1
        # Of a fixed bet b over `left` images: growth of about b * mean - b^2 * variance / 2 each.
        bet = np.minimum(np.sqrt(2 * missing * number / (left * squares)), boldest)
        won += np.log1p(bet * value)
        squares += (value - total / number) ** 2
        total += value
    reached: NDArray[np.bool_] = won >= goal - 1e-12
    return reached


def find_num_needed(values: Floats, alpha: float, delta: float, seed: int = 0) -> int | None:
    """How many images like those of `values [num_images]` would be certified in four cases out of five.

    Never less than it takes where no answer changes at all. None where the mean of the values is not above
    0, or where 64 times as many would not do.
    """
    least = ceil(log(delta) / log(1 - alpha))
    if values.mean() <= 0:
        return None
    rng = np.random.default_rng(seed)

    def suffices(number: int) -> bool:
        drawn = values[rng.integers(len(values), size=(_RESAMPLES, number))]
        return bool(certify(drawn, alpha, delta).mean() >= _POWER)

    low, high = 0, max(least, len(values))
    while not suffices(high):
        low, high = high, 2 * high
        if high > _MOST_TIMES * max(least, len(values)):
            return None
    while low and high - low > high // 20:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
