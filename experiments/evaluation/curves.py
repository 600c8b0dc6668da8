"""Fronts of policies in all resamples at once: interpolation, areas and hulls.

A policy mixes two neighbouring operating points by choosing one of them at random for each sample, which
reaches every point on the line between them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from predictor.policy.front import Floats

# A mean cost and a mean score, each `[num_resamples]`.
Pair = tuple[Floats, Floats]
# Tolerance for rounding when a score counts as reached or a gap as zero: means are sums divided by counts.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Curve:
    """Operating points of a policy in each resample, `[num_resamples, num_points]`, sorted by cost.

    Neighbouring points are joined by lines. Among points of equal cost the best one counts.
    """

    cost: Floats
    score: Floats

    @classmethod
    def of(cls, cost: ArrayLike, score: ArrayLike) -> "Curve":
        """Return the curve through points in any order."""
        costs, scores = np.array(cost, dtype=np.float64), np.array(score, dtype=np.float64)
        # Only unsorted rows are sorted: sorting is slow, and the points of most policies are in order.
        rows = np.flatnonzero((costs[:, 1:] < costs[:, :-1]).any(axis=1))
        if rows.size:
            order = np.argsort(costs[rows], axis=1, kind="stable")
            for values in (costs, scores):
                values[rows] = np.take_along_axis(values[rows], order, axis=1)
        same = costs[:, 1:] == costs[:, :-1]
        columns = np.flatnonzero(same.any(axis=0)).tolist()
        # The best score of a group of equal costs is copied to all points of the group, in two passes.
        for column, (source, target) in [(column, (1, 0)) for column in reversed(columns)] + [
            (column, (0, 1)) for column in columns
        ]:
            tied = same[:, column]
            better = np.maximum(scores[tied, column + source], scores[tied, column + target])
            scores[tied, column + target] = better
        return cls(costs, scores)

    def at(self, cost: Floats) -> Floats:
        """Return scores at `cost` `[num_resamples, num_costs]`; the curve is flat beyond its ends."""
        num_rows, num_points = self.cost.shape
        if num_points == 1:
            return np.repeat(self.score, cost.shape[1], axis=1)
        costs, scores = self.cost.ravel(), self.score.ravel()
        first = np.arange(0, num_rows * num_points, num_points)[:, None]
        # Binary search in all rows at once for the last point, except the end, with a cost of at most `cost`.
        before = np.broadcast_to(first, cost.shape).copy()
        last = first + num_points - 2
        step = 1 << (num_points - 2).bit_length()
        while step := step // 2:
            further = np.minimum(before + step, last)
            np.copyto(before, further, where=costs.take(further) <= cost)
        low, high = costs.take(before), costs.take(before + 1)
        share = (cost >= high).astype(np.float64)
        np.divide(cost - low, high - low, out=share, where=(low < cost) & (cost < high))
        low_score = scores.take(before)
        return low_score + share * (scores.take(before + 1) - low_score)

    def reach(self, score: Floats) -> Floats:
        """Return the least cost at which the curve reaches `score`, both `[num_resamples]`; nan if never."""
        enough = self.score >= score[:, None] - ROUNDING
        rows, point = np.arange(len(score)), enough.argmax(axis=1)
        before = np.maximum(point - 1, 0)
        high, low = ((self.cost[rows, end], self.score[rows, end]) for end in (point, before))
        share = np.ones(len(score))
        np.divide(score - low[1], high[1] - low[1], out=share, where=(point > 0) & (high[1] > low[1]))
        cost = low[0] + np.clip(share, 0, 1) * (high[0] - low[0])
        return np.where(enough.any(axis=1), cost, np.nan)

    def area(self, low: Floats, high: Floats) -> Floats:
        """Return the area under the curve, flat beyond its ends, between two costs `[num_resamples]`."""
        ends = np.stack([low, high], axis=1)
        at_low, at_high = self.at(ends)[:, :, None].swapaxes(0, 1)
        heights = np.where(self.cost < ends[:, :1], at_low, self.score)
        heights = np.where(self.cost > ends[:, 1:], at_high, heights)
        inside = np.clip(self.cost, ends[:, :1], ends[:, 1:])
        costs = np.concatenate([ends[:, :1], inside, ends[:, 1:]], axis=1)
        return np.trapezoid(np.concatenate([at_low, heights, at_high], axis=1), costs, axis=1)

    def hull(self) -> "Curve":
        """Return the non-decreasing upper concave hull, evaluated at the costs of the points."""
        height = np.maximum.accumulate(self.score, axis=1)
        num_rows, num_points = height.shape
        costs, heights = self.cost.ravel(), height.ravel()
        is_vertex = np.ones(height.shape, dtype=bool)
        # Among points of equal cost the first is kept.
        is_vertex[:, 1:] = self.cost[:, 1:] > self.cost[:, :-1]
        vertex = is_vertex.ravel()
        # A point on or below the line between its neighbours is not a vertex, even if the neighbours are not
        # vertices either. All such points are removed at once, until none remains.
        left = np.flatnonzero(vertex)
        while left.size > 2:
            row = left // num_points
            cost, score = costs[left], heights[left]
            low_cost, low_score = cost[:-2], score[:-2]
            rise = (score[2:] - low_score) * (cost[1:-1] - low_cost)
            below = (score[1:-1] - low_score) * (cost[2:] - low_cost) <= rise
            below &= row[:-2] == row[2:]
            if not below.any():
                break
            vertex[left[1:-1][below]] = False
            # Rows in which no point was removed are done.
            unfinished = np.zeros(num_rows, dtype=bool)
            unfinished[row[1:-1][below]] = True
            left = left[vertex[left] & unfinished[row]]
        column = np.arange(num_points)
        before = np.maximum.accumulate(np.where(is_vertex, column, 0), axis=1)
        after = np.where(is_vertex, column, num_points - 1)
        after = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
        rows, columns = np.nonzero(~is_vertex)
        low, high = before[rows, columns], after[rows, columns]
        low_cost, low_score = self.cost[rows, low], height[rows, low]
        width = self.cost[rows, high] - low_cost
        share = np.zeros(len(rows))
        np.divide(self.cost[rows, columns] - low_cost, width, out=share, where=width > 0)
        hull = height.copy()
        hull[rows, columns] = low_score + share * (height[rows, high] - low_score)
        return Curve(self.cost, hull)

    def start_from(self, coarsest: Pair) -> "Curve":
        """Return the curve with the coarsest fixed scale added, which needs no predictor."""
        cost, score = coarsest
        if ((self.cost[:, 0] == cost) & (self.score[:, 0] >= score)).all():
            return self
        return Curve.of(np.column_stack([cost, self.cost]), np.column_stack([score, self.score]))


def average(at_budgets: Floats) -> Floats:
    """Return the mean over evenly spaced budgets, by the trapezoid rule: `[..., num_budgets]` -> `[...]`."""
    weights = np.ones(at_budgets.shape[-1])
    weights[[0, -1]] = 0.5
    return at_budgets @ (weights / weights.sum())


def divide(part: Floats, whole: Floats) -> Floats:
    """Return `part / whole`; nan where `whole` is not positive (for example where mix and oracle meet)."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > ROUNDING)
