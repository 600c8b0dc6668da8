"""Operating points, oracles and budgets in the plane of mean cost and mean score.

`cost` and `score` of samples are `[num_samples, num_scales]` over one ladder, coarsest scale first; costs are
in any unit. The choices of a policy at a price are computed in `predictor.policy.front`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictor.policy.front import Floats, Front, upper_hull
from predictor.policy.switches import Switches

Columns = NDArray[np.int64]
# The scale that an oracle is charged for on samples that no scale answers.
Convention = Literal["coarsest", "finest"]
ORACLES: dict[Convention, str] = {
    "coarsest": "oracle, authors' convention",
    "finest": "oracle, honest convention",
}

# Relative tolerance for rounding: mean costs are sums divided by counts.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Grid:
    """Number of log-spaced budgets, and maximum number of prices on a front.

    Raises ValueError for numbers below 1.
    """

    num_budgets: int = 49
    num_prices: int = 128

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if number < 1:
                raise ValueError(f"{name} is at least 1, got {number}")


def raise_budgets(budgets: ArrayLike, fixed_cost: ArrayLike) -> Floats:
    """Return `budgets` `[num_budgets]`, raised to at least the cost of the cheapest scale.

    The result is `[..., num_budgets]` for mean costs `fixed_cost` `[..., num_scales]`. With tiles the cost
    depends on the image, so that on other samples or on a resample all scales may exceed the lowest budget.
    """
    return np.maximum(budgets, np.asarray(fixed_cost, dtype=np.float64).min(axis=-1, keepdims=True))


def find_smallest_right(score: ArrayLike) -> Columns:
    """Return the column of each sample's smallest sufficient scale, `[num_samples]`; -1 if all scales fail.

    A scale is sufficient if its score is the best that any scale reaches on the sample.
    """
    scores = np.asarray(score)
    # Column by column, because reducing over a short last axis is slow.
    best, smallest = scores[:, 0].copy(), np.zeros(len(scores), dtype=np.int64)
    for column in range(1, scores.shape[1]):
        better = scores[:, column] > best
        smallest[better] = column
        np.copyto(best, scores[:, column], where=better)
    smallest[best <= 0] = -1
    return smallest


def choose_as_oracle(score: ArrayLike, cost: ArrayLike, failures: Convention) -> Columns:
    """Return the choices of an oracle, the smallest sufficient scale of each sample, `[num_samples]`.

    Samples on which every scale fails are charged the coarsest scale (`coarsest`, the convention of M3's
    authors, issue 2 of their repository) or the finest one (`finest`, the honest convention, as the failure
    cannot be known beforehand).
    """
    smallest = find_smallest_right(score)
    charged = {"coarsest": 0, "finest": np.asarray(cost).shape[1] - 1}[failures]
    return np.where(smallest >= 0, smallest, charged)


def trace_prices(switches: Switches, cost: Floats, *, unit: float, num_prices: int) -> Floats:
    """Return ascending prices, at most `num_prices`, at which a policy's choices on these samples change.

    If there are more such prices, those with the most evenly log-spaced mean costs are kept. The first price
    is 0; at the last every sample is answered at its cheapest scale.
    """
    order = np.argsort(switches.slope)
    price, row = switches.slope[order] * unit, switches.row[order]
    # Last index of each run of equal prices: the choices within a run are never made.
    ends = np.flatnonzero(np.append(price[1:] != price[:-1], True))[: len(price)]
    saved = np.cumsum(cost[row, switches.before[order]] - cost[row, switches.after[order]])[ends]
    prices, most = price[ends], cost[np.arange(len(cost)), switches.first].sum()
    if not len(prices) or prices[0] > 0:
        prices, saved = np.append(0.0, prices), np.append(0.0, saved)
    if len(prices) <= num_prices:
        return prices
    # Costs descend as prices ascend, but searchsorted needs ascending values.
    costs = most - saved
    targets = np.geomspace(costs[-1], costs[0], num_prices)
    return prices[np.unique(np.searchsorted(-costs, -targets * (1 + _ROUNDING)))]


@dataclass(frozen=True, eq=False)
class CalibratedPolicy:
    """Operating points of a policy, chosen on calibration samples.

    The points `[num_points]` are the vertices of the upper concave hull of (mean cost, mean score) over the
    traced prices, from cheap to expensive. For a budget between two points, each sample uses one of the two
    at random.
    """

    price: Floats
    cost: Floats
    score: Floats
    unit: float

    @classmethod
    def from_front(cls, front: Front, unit: float) -> "CalibratedPolicy":
        """Choose the operating points among those that were traced on calibration samples."""
        hull = upper_hull(front.cost, front.score)
        return cls(front.price[hull], front.cost[hull], front.score[hull], unit)

    def plan(self, budgets: ArrayLike) -> Floats:
        """Return the probability of each operating point under each budget, `[num_budgets, num_points]`.

        Rows sum to 1. On the calibration samples the mean cost equals the budget, or that of the most
        expensive point if the budget exceeds it. Raises ValueError for a budget below the cheapest point.
        """
        mean_costs = np.asarray(budgets, dtype=np.float64)
        if (mean_costs < self.cost[0] * (1 - _ROUNDING)).any():
            raise ValueError(
                f"a budget of {mean_costs.min():g} is below the cheapest operating point, {self.cost[0]:g}: "
                "raise the budget"
            )
        # A fractional position gives the two neighbouring points their probabilities.
        position = np.interp(mean_costs, self.cost, np.arange(len(self.cost)))
        return np.maximum(0.0, 1.0 - abs(position[:, None] - np.arange(len(self.cost))))

    def reach(self, score: float) -> Floats | None:
        """Return the cheapest mixture of points with this mean score on calibration, `[num_points]`.

        The mixture is a probability per operating point. Its mean score on the calibration samples equals
        `score`, or exceeds it if the cheapest point does. None if the most expensive point falls short.
        """
        if self.score[-1] < score - _ROUNDING:
            return None
        position = np.interp(score, self.score, np.arange(len(self.score)))
        return np.maximum(0.0, 1.0 - abs(position - np.arange(len(self.score))))


# Names of the oracles that choose one scale per sample, without a price.
RULES: Mapping[str, str] = dict(ORACLES) | {"stable": "stable oracle"}


def choose_by_rule(score: ArrayLike, rule: str) -> Columns:
    """Return the choices `[num_samples]` of one of `RULES`, from `score` `[num_samples, num_scales]`."""
    if rule == "stable":
        return choose_stably(score)
    return choose_as_oracle(score, score, rule)  # type: ignore[arg-type]


def choose_stably(score: ArrayLike) -> Columns:
    """Return the choices of the stable oracle, `[num_samples]`.

    It takes the smallest scale that is sufficient (`find_smallest_right`) together with all finer scales. A
    sample without such a scale is charged the finest.
    """
    scores = np.asarray(score)
    smallest, finest = find_smallest_right(scores), scores.shape[1] - 1
    best = np.where(smallest >= 0, scores[np.arange(len(scores)), smallest], np.inf)
    stable, stays = np.full(len(scores), finest), np.ones(len(scores), dtype=bool)
    for column in range(finest, -1, -1):
        stays &= scores[:, column] == best
        stable[stays] = column
    return stable
