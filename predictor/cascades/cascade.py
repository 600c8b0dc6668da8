"""Cascades: answer at a coarse scale, escalate to the next finer one while the answer is uncertain.

`confidence`, `score` and `cost` are `[num_samples, num_scales]` over one ladder, coarsest scale first. Costs
include every scale that is tried, and the last answer is returned. Neighbouring scales of equal cost coincide
on a sample (`m3_backbone.ladder`): they have the same answer, and only the first of them that is tried costs
anything.

A cascade stops at the first scale at which the confidence of the answer reaches a threshold (Viola and Jones
2001; for language models FrugalGPT, arXiv 2305.05176, which tunes the sequence and its thresholds together
for the score within a budget). Confidence alone does not tell whether the finer answer would be better
(Jitkrittum et al., arXiv 2307.02764): `predictor.cascades.hybrid` also uses a predictor.

The search is exact over starting scales and over thresholds that are quantiles of the confidence. Only the
bins of a sample between the thresholds matter: under cuts `t`, the samples that stop at a scale have bin < t
at the previous scales and bin >= t at this scale. These samples are a corner of the table of joint bins, so
that cumulative sums give the sums for all cuts at once.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3_backbone.ladder import find_repeats
from predictor.policy.front import Floats, find_unit, sweep, upper_hull

Columns = NDArray[np.int64]
# Maximum numbers of bins of a scale and of cells of the joint table of all scales but the finest.
_MAX_BINS, _MAX_CELLS = 24, 50_000


def find_edges(confidence: Floats) -> list[Floats]:
    """Thresholds to search: distinct quantiles, ascending, of the confidence at each scale but the finest."""
    num_searched = confidence.shape[1] - 1
    num_bins = min(_MAX_BINS, int(_MAX_CELLS ** (1 / max(num_searched, 1))) - 1)
    levels = np.arange(1, num_bins) / num_bins
    # Observed values suffice as quantiles, since a threshold between two values has the same effect.
    return [np.unique(np.quantile(column, levels, method="higher")) for column in confidence.T[:num_searched]]


def find_further_cost(cost: Floats) -> Floats:
    """Cost of each scale if the next coarser one was tried before; 0 if the two coincide.

    `cost` and the result are `[num_samples, num_scales]`.
    """
    return np.where(find_repeats(cost), 0.0, cost)


def space_prices(estimates: ArrayLike, cost: ArrayLike, unit: float, number: int) -> Floats:
    """At most `number` prices, ascending, at which the mean costs of the choices are log-spaced."""
    front = sweep(estimates, cost, estimates, unit=unit)
    return front.price[pick_evenly(front.cost, number)]


def pick_evenly(cost: Floats, number: int) -> Columns:
    """Indices of at most `number` log-spaced values of monotone costs, including the first and last.

    If all costs are equal, the indices are evenly spaced.
    """
    if len(cost) <= number:
        return np.arange(len(cost))
    logarithm = np.log(cost)
    span = logarithm[-1] - logarithm[0]
    fraction = (logarithm - logarithm[0]) / span if span else np.linspace(0, 1, len(cost))
    index = np.interp(np.linspace(0, 1, number), fraction, np.arange(len(cost)))
    return np.unique(index.round().astype(np.int64))


def pick_hull(cost: Floats, score: Floats, number: int) -> Columns:
    """Indices of at most `number` vertices of the upper hull with log-spaced costs, by decreasing cost."""
    hull = upper_hull(cost, score)
    return hull[pick_evenly(cost[hull], number)][::-1]


def find_prices(cost: Floats, score: Floats) -> Floats:
    """Prices per unit of cost at which each vertex of a hull, by decreasing cost, becomes the best one."""
    return np.concatenate([[0.0], np.diff(score) / np.diff(cost)])


def trace_cuts(
    bins: Columns, num_bins: list[int], score: Floats, cost: Floats, start: int
) -> tuple[Floats, Floats]:
    """Mean cost and mean score for all combinations of cuts, each with one axis per scale but the finest.

    All samples start at column `start`. A sample stops at a scale if its bin is at least the cut of that
    scale. Scales before the start have an axis of length 1.
    """
    num_samples, num_scales = cost.shape
    totals = [np.zeros([1] * max(num_scales - 1, 1)) for _ in range(2)]
    paid = np.cumsum(np.column_stack([cost[:, start], find_further_cost(cost)[:, start + 1 :]]), axis=1)
    for stop in range(start, num_scales):
        searched = range(start, min(stop, num_scales - 2) + 1)
        shape = [num_bins[column] for column in searched]
        cell = (
            np.ravel_multi_index(bins[:, searched].T, shape)
            if shape
            else np.zeros(num_samples, dtype=np.int64)
        )
        for index, values in enumerate((paid[:, stop - start], score[:, stop])):
            table = np.bincount(cell, values, int(np.prod(shape))).reshape(shape).astype(np.float64)
            for axis, column in enumerate(searched):
                table = _sum_below_cuts(table, axis)
                if column == stop:
                    table = np.take(table, [-1], axis) - table
            padded = [1] * start + list(table.shape) + [1] * (num_scales - 1 - start - table.ndim)
            totals[index] = totals[index] + table.reshape(padded)
    return totals[0] / num_samples, totals[1] / num_samples


def _sum_below_cuts(table: Floats, axis: int) -> Floats:
    """Return sums along an axis of B bins over the bins below each of the cuts 0 .. B."""
    sums = np.cumsum(table, axis=axis)
    return np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis=axis)


@dataclass(frozen=True, eq=False)
class Cascade:
    """Fitted cascades, one per price: the vertices of their hull on calibration, by decreasing cost.

    `price` `[num_prices]`, ascending from 0, is the price per `unit` of cost at which each cascade becomes
    the best one on the calibration samples; `cost` and `score` are its mean cost and score on them. A cascade
    starts at column `start` `[num_prices]`, and stops at a scale if the confidence is at least `threshold`
    `[num_prices, num_scales]` (-inf: always).
    """

    price: Floats
    cost: Floats
    score: Floats
    threshold: Floats
    start: Columns
    unit: float

    @classmethod
    def fit(
        cls,
        confidence: ArrayLike,
        score: ArrayLike,
        cost: ArrayLike,
        estimates: ArrayLike | None = None,
        num_prices: int = 128,
        *,
        first_cost: ArrayLike | None = None,
    ) -> Self:
        """Find the best cascades on calibration samples; each array is `[num_samples, num_scales]`.

        At most `num_prices` cascades on the upper concave hull of (mean cost, mean score) are kept, at
        log-spaced costs. Raises ValueError for `estimates`, which a cascade does not use. `first_cost`, which
        differs from `cost` only for policies with a predictor, is not read.
        """
        if estimates is not None:
            raise ValueError(
                "a cascade uses no predictor: fit predictor.cascades.hybrid.Hybrid, or give no estimates"
            )
        confidences, scores, costs = (
            np.asarray(values, dtype=np.float64) for values in (confidence, score, cost)
        )
        num_scales = costs.shape[1]
        unit, edges = find_unit(costs), find_edges(confidences)
        bins = np.zeros((len(costs), num_scales - 1), dtype=np.int64)
        for column, edge in enumerate(edges):
            bins[:, column] = np.searchsorted(edge, confidences[:, column], side="right")
        points = []
        for start in range(num_scales):
            mean_cost, mean_score = trace_cuts(bins, [len(edge) + 1 for edge in edges], scores, costs, start)
            best = upper_hull(mean_cost.ravel(), mean_score.ravel())
            cuts = np.stack(np.unravel_index(best, mean_cost.shape), axis=1)
            points.append(
                (mean_cost.ravel()[best], mean_score.ravel()[best], cuts, np.full(len(best), start))
            )
        mean_cost, mean_score, cuts, starts = (np.concatenate(parts) for parts in zip(*points, strict=True))
        hull = pick_hull(mean_cost, mean_score, num_prices)
        threshold = np.full((len(hull), num_scales), -np.inf)
        for column, edge in enumerate(edges):
            threshold[:, column] = np.concatenate([[-np.inf], edge, [np.inf]])[cuts[hull, column]]
        return cls(
            price=find_prices(mean_cost[hull], mean_score[hull]) * unit,
            cost=mean_cost[hull],
            score=mean_score[hull],
            threshold=threshold,
            start=starts[hull],
            unit=unit,
        )

    def escalate(
        self,
        confidence: ArrayLike,
        cost: ArrayLike,
        estimates: ArrayLike | None = None,
        *,
        first_cost: ArrayLike | None = None,
    ) -> tuple[Columns, Columns]:
        """First and last column tried, each `[num_prices, num_samples]`.

        Only `confidence` is read, at scales from the first to the last tried.
        """
        confidences = np.asarray(confidence, dtype=np.float64)
        first = np.repeat(self.start[:, None], len(confidences), axis=1)
        last = first.copy()
        for column in range(confidences.shape[1] - 1):
            last[(last == column) & (confidences[:, column] < self.threshold[:, column, None])] += 1
        return first, last
