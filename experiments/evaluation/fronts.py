"""Points, hulls and bounds in the plane of mean cost and mean score: pure functions over arrays.

`cost` and `score` of samples are `[num_samples, num_scales]` over one ladder, coarsest scale first; costs in
any unit. What a policy does at a price is `predictor.policy.front`'s; here is what can be claimed of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictor.policy.front import Floats, Front, choose, find_unit, sweep, upper_hull
from predictor.policy.switches import Switches, find_switches

Columns = NDArray[np.int64]
# What samples that no scale answers are charged for by an oracle.
Convention = Literal["coarsest", "finest"]
ORACLES: dict[Convention, str] = {
    "coarsest": "oracle, authors' convention",
    "finest": "oracle, honest convention",
}

# Mean costs reach us as sums divided by counts; this much below the cheapest is still the cheapest.
_ROUNDING = 1e-9


def raise_budgets(budgets: ArrayLike, fixed_cost: ArrayLike) -> Floats:
    """`budgets` `[num_budgets]`, those below the cheapest scale raised to it, `[..., num_budgets]`.

    With tiles an image has its own cost, so that the means `fixed_cost` `[..., num_scales]` of other samples,
    or of a resample, may all lie above the least budget.
    """
    return np.maximum(budgets, np.asarray(fixed_cost, dtype=np.float64).min(axis=-1, keepdims=True))


def find_smallest_right(score: ArrayLike) -> Columns:
    """Column of the smallest sufficient scale of each sample, `[num_samples]`; -1 where every scale fails.

    Sufficient is the best score that any scale gives to the sample, so graded scores keep their best.
    """
    scores = np.asarray(score)
    # Column by column: reducing over a short last axis is slow.
    best, column = scores[:, 0].copy(), np.zeros(len(scores), dtype=np.int64)
    for number in range(1, scores.shape[1]):
        better = scores[:, number] > best
        column[better] = number
        np.copyto(best, scores[:, number], where=better)
    column[best <= 0] = -1
    return column


def choose_as_oracle(score: ArrayLike, cost: ArrayLike, failures: Convention) -> Columns:
    """The oracle's choice `[num_samples]`: the smallest sufficient scale.

    Samples on which every scale fails are charged the coarsest scale (`coarsest`, the convention of M3's
    authors, issue 2 of their repository) or the finest one (`finest`, the honest convention: nobody could
    have known).
    """
    smallest = find_smallest_right(score)
    charged = {"coarsest": 0, "finest": np.asarray(cost).shape[1] - 1}[failures]
    return np.where(smallest >= 0, smallest, charged)


def find_budgeted_oracle(cost: ArrayLike, score: ArrayLike) -> Front:
    """The best mean score that any choice of scales reaches under each mean cost: exact, and a bound.

    Each sample's own points have an upper concave envelope; spending on the steepest segment of all samples
    first is optimal for a concave separable problem (Fox 1966, marginal analysis), and that is the front of a
    policy whose estimates are the scores. Between two points one sample is split at random.
    """
    return sweep(score, cost, score)


def trace_prices(switches: Switches, cost: Floats, *, unit: float, num_prices: int) -> Floats:
    """Prices `[at most num_prices]`, ascending, at which a policy's choices on these samples change.

    All of them if they are few enough, else those whose mean costs lie most evenly in the logarithm. The
    first is 0; at the last every sample is answered at its cheapest scale.
    """
    order = np.argsort(switches.slope)
    price, row = switches.slope[order] * unit, switches.row[order]
    # Where a run of equal prices ends: what is chosen in the middle of one is never chosen.
    ends = np.flatnonzero(np.append(price[1:] != price[:-1], True))[: len(price)]
    saved = np.cumsum(cost[row, switches.before[order]] - cost[row, switches.after[order]])[ends]
    prices, most = price[ends], cost[np.arange(len(cost)), switches.first].sum()
    if not len(prices) or prices[0] > 0:
        prices, saved = np.append(0.0, prices), np.append(0.0, saved)
    if len(prices) <= num_prices:
        return prices
    # Prices ascend, so costs fall; searchsorted wants them rising.
    costs = most - saved
    targets = np.geomspace(costs[-1], costs[0], num_prices)
    return prices[np.unique(np.searchsorted(-costs, -targets * (1 + _ROUNDING)))]


@dataclass(frozen=True, eq=False)
class CalibratedPolicy:
    """Operating points of a policy, all chosen on calibration samples; what is left is to apply them.

    The points `[num_points]` are the vertices of the upper concave hull of (mean cost, mean score) over the
    traced prices, from cheap to dear. A budget between two of them is met by drawing one of the two at random
    for each sample.
    """

    price: Floats
    cost: Floats
    score: Floats
    unit: float

    @classmethod
    def from_calibration(
        cls, estimates: ArrayLike, cost: ArrayLike, score: ArrayLike, *, num_prices: int = 128
    ) -> "CalibratedPolicy":
        """Choose the operating points from estimates, costs and scores, each `[num_samples, num_scales]`."""
        costs = np.asarray(cost, dtype=np.float64)
        unit = find_unit(costs)
        switches = find_switches(np.asarray(estimates, dtype=np.float64), costs)
        prices = trace_prices(switches, costs, unit=unit, num_prices=num_prices)
        return cls.from_front(sweep(estimates, cost, score, prices, unit=unit), unit)

    @classmethod
    def from_front(cls, front: Front, unit: float) -> "CalibratedPolicy":
        """Choose the operating points among those that were traced on calibration samples."""
        hull = upper_hull(front.cost, front.score)
        return cls(front.price[hull], front.cost[hull], front.score[hull], unit)

    def choose(self, estimates: ArrayLike, cost: ArrayLike) -> NDArray[np.int8]:
        """Choices `[num_points, num_samples]` at every operating point, for any samples."""
        return np.stack([choose(estimates, cost, price, unit=self.unit) for price in self.price]).astype(
            np.int8
        )

    def plan(self, budgets: ArrayLike) -> Floats:
        """Chance of each operating point under each budget, `[num_budgets, num_points]`; rows sum to 1.

        On the calibration samples the mean cost is the budget exactly, or the dearest point's where the
        budget exceeds it. Raises ValueError for a budget below the cheapest point.
        """
        wanted = np.asarray(budgets, dtype=np.float64)
        if (wanted < self.cost[0] * (1 - _ROUNDING)).any():
            raise ValueError(
                f"a budget of {wanted.min():g} is below the cheapest operating point, {self.cost[0]:g}: "
                "raise the budget"
            )
        # Interpolating unit vectors gives the two neighbours their shares.
        position = np.interp(wanted, self.cost, np.arange(len(self.cost)))
        return np.maximum(0.0, 1.0 - abs(position[:, None] - np.arange(len(self.cost))))

    def reach(self, score: float) -> Floats | None:
        """Chance of each operating point `[num_points]` that reaches a mean score on calibration for least.

        On the calibration samples it is reached exactly, or exceeded by the cheapest point. None where even
        the dearest point falls short.
        """
        if self.score[-1] < score - _ROUNDING:
            return None
        position = np.interp(score, self.score, np.arange(len(self.score)))
        return np.maximum(0.0, 1.0 - abs(position - np.arange(len(self.score))))


# Oracles that choose one scale per sample, without a price.
RULES: Mapping[str, str] = dict(ORACLES) | {"stable": "stable oracle"}


def choose_by_rule(score: ArrayLike, rule: str) -> Columns:
    """The choice `[num_samples]` of one of `RULES`, from `score` `[num_samples, num_scales]`."""
    if rule == "stable":
        return choose_stably(score)
    return choose_as_oracle(score, score, rule)  # type: ignore[arg-type]


def choose_stably(score: ArrayLike) -> Columns:
    """The stable oracle's choice `[num_samples]`: the smallest scale from which on the answer stays right.

    Right is the best score that any scale gives to the sample, as in `find_smallest_right`. A sample that is
    not right at the finest scale, or at none, has no such scale and is charged the finest.
    """
    scores = np.asarray(score)
    smallest, finest = find_smallest_right(scores), scores.shape[1] - 1
    best = np.where(smallest >= 0, scores[np.arange(len(scores)), smallest], np.inf)
    stable, stays = np.full(len(scores), finest), np.ones(len(scores), dtype=bool)
    for column in range(finest, -1, -1):
        stays &= scores[:, column] == best
        stable[stays] = column
    return stable
