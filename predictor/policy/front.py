"""Policies and fronts: choice of a scale at a price, and the operating points of all prices.

`estimates`, `cost` and `score` are `[num_samples, num_scales]` over the same ladder, coarsest scale first.
Costs are positive, in any unit (visual tokens, FLOPs, milliseconds).

A policy at a price maximises `estimate - price * cost / unit` for each sample. The unit makes prices
comparable between ladders: by default it is the mean cost of the finest scale over the given samples, so that
at a price of 0.1 one answer at the finest scale costs ten points of accuracy. Fix the unit (see `pricing`) to
apply a price chosen on one set of samples to another.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictor.policy.switches import Floats, Switches, find_switches


def upper_hull(cost: ArrayLike, score: ArrayLike) -> NDArray[np.int64]:
    """Indices of the vertices of the upper concave hull of points `[num_points]`, by increasing cost.

    Cost and score are strictly increasing: a point that costs more without a higher score is not a vertex,
    nor is a point on or below the line between two others. Of equal points the first is kept. Raises
    ValueError for arrays that are empty, not one-dimensional, or of different lengths.
    """
    costs, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if costs.ndim != 1 or costs.shape != scores.shape or not costs.size:
        raise ValueError(f"a hull needs points, got {costs.shape} costs and {scores.shape} scores")
    order = np.lexsort((-scores, costs))
    # Points with a cheaper point of at least the same score are removed first, which leaves few for the loop.
    best = np.maximum.accumulate(scores[order])
    order = order[np.concatenate([[True], scores[order][1:] > best[:-1]])]
    hull: list[int] = []
    for point in order.tolist():
        while len(hull) > 1:
            first, last = hull[-2:]
            rise = (scores[last] - scores[first]) * (costs[point] - costs[first])
            if rise > (scores[point] - scores[first]) * (costs[last] - costs[first]):
                break
            hull.pop()
        hull.append(point)
    return np.array(hull)


NUM_BUDGETS = 64


@dataclass(frozen=True, eq=False)
class Front:
    """Points (mean cost, mean score) of a policy at each price, all `[num_prices]`, prices ascending.

    A random choice between the prices of two adjacent points reaches any point between them.
    """

    cost: Floats
    score: Floats
    price: Floats


def find_unit(cost: ArrayLike) -> float:
    """Return the default unit of cost: the mean cost of the finest scale (the last column)."""
    return float(np.asarray(cost, dtype=np.float64)[:, -1].mean())


def choose(
    estimates: ArrayLike, cost: ArrayLike, price: float, *, unit: float | None = None
) -> NDArray[np.int64]:
    """Column of the scale chosen for each sample, `[num_samples]`.

    It is the argmax over scales of `estimate - price * cost / unit`. Ties go to the cheapest scale, then to
    the coarsest. At price 0 it is the cheapest scale with the highest estimate, at `inf` the cheapest scale.
    Raises ValueError for a negative price, for arrays of different shapes, and for values that are not
    finite.
    """
    estimate_array, cost_array = _check(estimates, cost)
    check_price(price)
    if unit is None:
        unit = find_unit(cost_array)
    return _apply(find_switches(estimate_array, cost_array), price, unit).astype(np.int64)


def choose_at_prices(
    estimates: ArrayLike, cost: ArrayLike, prices: ArrayLike, *, unit: float | None = None
) -> NDArray[np.int16]:
    """Choices at each of `prices`, `[num_prices, num_samples]`, in little more time than at one price."""
    estimate_array, cost_array = _check(estimates, cost)
    if unit is None:
        unit = find_unit(cost_array)
    switches = find_switches(estimate_array, cost_array)
    chosen = []
    for price in np.asarray(prices, dtype=np.float64):
        check_price(price)
        chosen.append(_apply(switches, price, unit))
    return np.stack(chosen)


def sweep(
    estimates: ArrayLike,
    cost: ArrayLike,
    score: ArrayLike,
    prices: ArrayLike | None = None,
    *,
    unit: float | None = None,
) -> Front:
    """Front of `choose` at each of `prices`, sorted.

    The default prices are 0 and every price at which a choice changes. They give the complete front, which
    has at most `num_samples * (num_scales - 1) + 1` points. One sort suffices for any number of prices. With
    `estimates=score` the complete front is that of the budgeted oracle, an exact bound: the points of each
    sample have an upper concave envelope, and spending first on the steepest segment over all samples is
    optimal for a concave separable problem (marginal analysis, Fox 1966). Between two points of that front
    one sample chooses at random. Raises ValueError as `choose`.
    """
    estimate_array, cost_array = _check(estimates, cost)
    score_array = _check_same_shape("score", score, cost_array)
    if unit is None:
        unit = find_unit(cost_array)
    switches = find_switches(estimate_array, cost_array)
    order = np.argsort(switches.slope, kind="stable")
    switch_price, row = switches.slope[order] * unit, switches.row[order]
    all_rows, before, after = np.arange(len(cost_array)), switches.before[order], switches.after[order]

    def add_up(values: Floats) -> Floats:
        """Totals before the first switch and after each switch."""
        total = values[all_rows, switches.first].sum()
        return total + np.concatenate([[0.0], np.cumsum(values[row, after] - values[row, before])])

    cost_after, score_after = add_up(cost_array), add_up(score_array)
    if prices is None:
        price_array = np.unique(np.concatenate([[0.0], switch_price]))
    else:
        price_array = np.sort(np.asarray(prices, dtype=np.float64))
        if price_array.size and not price_array[0] >= 0:
            raise ValueError(f"a price is at least 0, got {price_array[0]}")
    num_switched = np.searchsorted(switch_price, price_array, side="right")
    num_samples = len(cost_array)
    return Front(cost_after[num_switched] / num_samples, score_after[num_switched] / num_samples, price_array)


def score_at_budgets(front: Front, budgets: ArrayLike) -> Floats:
    """Mean score at each budget of mean cost, `[num_budgets]`, linear between points of the front.

    Above the most expensive point the score is that of this point; below the cheapest point it is nan. Points
    are selected only by their cost, never by their score.
    """
    budget_array = np.asarray(budgets, dtype=np.float64)
    scores = np.interp(budget_array, front.cost[::-1], front.score[::-1])
    affordable = budget_array >= front.cost[-1] * (1 - 1e-12)
    return np.where(affordable, scores, np.nan)


def space_budgets(cost: ArrayLike, num_budgets: int = NUM_BUDGETS) -> Floats:
    """Budgets `[num_budgets]`, log-spaced up to the mean cost of the most expensive scale.

    The smallest budget is the mean over samples of the cost of each sample's cheapest scale. The most
    expensive scale is the finest one unless finer scales cost less.
    """
    cost_array = np.asarray(cost, dtype=np.float64)
    lowest = cost_array.min(axis=1).mean()
    return np.geomspace(lowest, max(column.mean() for column in cost_array.T), num_budgets)


def policy_value(
    estimates: ArrayLike, cost: ArrayLike, score: ArrayLike, *, num_budgets: int = NUM_BUDGETS
) -> float:
    """Value of a policy over all budgets: mean of `score_at_budgets` over `space_budgets`, in [0, 1].

    The front is the complete front of `sweep`. For given estimates the value is linear in the scores, so that
    differences are points of accuracy averaged over log-spaced budgets. `policy_value(score, cost, score)` is
    the value of the budgeted oracle, an upper bound. Constant estimates equal to the mean scores of the
    scales give the value of the mix.
    """
    front = sweep(estimates, cost, score)
    return float(score_at_budgets(front, space_budgets(cost, num_budgets)).mean())


def _check(estimates: ArrayLike, cost: ArrayLike) -> tuple[Floats, Floats]:
    cost_array = np.asarray(cost, dtype=np.float64)
    if cost_array.ndim != 2 or 0 in cost_array.shape:
        raise ValueError(
            f"cost must be [num_samples, num_scales] with at least one of each, got {cost_array.shape}"
        )
    if not (np.isfinite(cost_array) & (cost_array > 0)).all():
        raise ValueError("every cost must be positive and finite")
    return _check_same_shape("estimates", estimates, cost_array), cost_array


def _check_same_shape(name: str, values: ArrayLike, cost: Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != cost.shape:
        raise ValueError(
            f"{name} are {list(array.shape)}, but cost is {list(cost.shape)} (samples by scales)"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} have values that are not finite")
    return array


def check_price(price: float) -> None:
    """Raise ValueError for a price below 0."""
    if not price >= 0:
        raise ValueError(f"a price is at least 0, got {price}")


def _apply(switches: Switches, price: float, unit: float) -> NDArray[np.int16]:
    """Choices `[num_samples]` at a price."""
    choice = switches.first.copy()
    is_reached = switches.slope * unit <= price
    # The switches of a row are in order, so that the last assignment holds.
    choice[switches.row[is_reached]] = switches.after[is_reached]
    return choice
