"""Cascades: answer at a coarse scale, escalate while the answer is uncertain.

The exact search behind cascades: mean cost and score under all thresholds at once, and their hull.

Thresholds are quantiles of what a cascade looks at, so a sample counts only through the bins that it falls
into. Those that stop at a scale under cuts `t` have bin < t at the scales before and bin >= t there: a corner
of the table of joint bins, whose sums for all cuts at once are cumulative sums.

Cascades: answer at one scale, look at how sure the answer is, and climb to the next finer scale or stop.

`confidence`, `score` and `cost` are `[num_samples, num_scales]` over one ladder, coarsest scale first. Every
scale that is tried is paid for, and the last answer stands.

A cascade stops at the first scale whose answer is at least as confident as that scale's threshold (Viola and
Jones 2001; for language models FrugalGPT, arXiv 2305.05176, which tunes the sequence and its thresholds
together for the score within a budget). Confidence alone does not say whether the finer answer would be any
better (Jitkrittum et al., arXiv 2307.02764): `predictor.cascades.hybrid` asks a predictor, too.

The search is exact over starts and over thresholds that are quantiles (`cascade_search`).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictor.policy.front import Floats, find_unit, sweep, upper_hull

Columns = NDArray[np.int64]
# Bins at most, and cells of the joint table of all scales but the finest.
_MAX_BINS, _MAX_CELLS = 24, 50_000


def find_edges(surety: Floats) -> list[Floats]:
    """The thresholds to search at each scale but the finest, ascending: quantiles, each once."""
    num_searched = surety.shape[1] - 1
    num_bins = min(_MAX_BINS, int(_MAX_CELLS ** (1 / max(num_searched, 1))) - 1)
    levels = np.arange(1, num_bins) / num_bins
    # Quantiles that are values themselves: between two of them nothing changes.
    return [np.unique(np.quantile(column, levels, method="higher")) for column in surety.T[:num_searched]]


def space_prices(estimates: ArrayLike, cost: ArrayLike, unit: float, number: int) -> Floats:
    """At most `number` prices, ascending; mean costs of the choices there lie evenly in the logarithm."""
    front = sweep(estimates, cost, estimates, unit=unit)
    return front.price[pick_evenly(front.cost, number)]


def pick_evenly(cost: Floats, number: int) -> Columns:
    """Positions of at most `number` of these monotone costs, spaced in the logarithm, both ends among them.

    If all costs are equal, the positions are evenly spaced.
    """
    if len(cost) <= number:
        return np.arange(len(cost))
    logarithm = np.log(cost)
    span = logarithm[-1] - logarithm[0]
    place = (logarithm - logarithm[0]) / span if span else np.linspace(0, 1, len(cost))
    position = np.interp(np.linspace(0, 1, number), place, np.arange(len(cost)))
    return np.unique(position.round().astype(np.int64))


def pick_hull(cost: Floats, score: Floats, number: int) -> Columns:
    """At most `number` vertices of the upper hull of these points, dear to cheap, costs spaced evenly."""
    hull = upper_hull(cost, score)
    return hull[pick_evenly(cost[hull], number)][::-1]


def find_prices(cost: Floats, score: Floats) -> Floats:
    """Per unit of cost, of each vertex of a hull from dear to cheap: what the next dearer one gains."""
    return np.concatenate([[0.0], np.diff(score) / np.diff(cost)])


def trace_cuts(
    bins: Columns, num_bins: list[int], score: Floats, cost: Floats, start: int
) -> tuple[Floats, Floats]:
    """Mean cost and score under all cuts, each `[num_cuts of scale 0, .., of the last but one]`.

    All samples start at column `start`. Under a cut a sample stops at a scale if its bin there is at least
    that. A scale before the start has one cut, which does nothing.
    """
    num_samples, num_scales = cost.shape
    totals = [np.zeros([1] * max(num_scales - 1, 1)) for _ in range(2)]
    paid = np.cumsum(cost[:, start:], axis=1)
    for stop in range(start, num_scales):
        searched = range(start, min(stop, num_scales - 2) + 1)
        shape = [num_bins[column] for column in searched]
        cell = (
            np.ravel_multi_index(bins[:, searched].T, shape)
            if shape
            else np.zeros(num_samples, dtype=np.int64)
        )
        for which, values in enumerate((paid[:, stop - start], score[:, stop])):
            table = np.bincount(cell, values, int(np.prod(shape))).reshape(shape).astype(np.float64)
            for axis, column in enumerate(searched):
                table = _below_cut(table, axis)
                if column == stop:
                    table = np.take(table, [-1], axis) - table
            padded = [1] * start + list(table.shape) + [1] * (num_scales - 1 - start - table.ndim)
            totals[which] = totals[which] + table.reshape(padded)
    return totals[0] / num_samples, totals[1] / num_samples


def _below_cut(table: Floats, axis: int) -> Floats:
    """Along an axis of B bins: the sums of those below each of the cuts 0 .. B."""
    sums = np.cumsum(table, axis=axis)
    return np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis=axis)


@dataclass(frozen=True, eq=False)
class Cascade:
    """Fitted cascades, one per price, from dear to cheap; on calibration no mix of two others beats any.

    `price` `[num_prices]`, ascending from 0, is that per `unit` of cost at which each becomes the best one
    on the calibration samples; `cost` and `score` are its means there. It starts at column `start`
    `[num_prices]`, and stops at a scale where the confidence is at least `threshold`
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
    ) -> Self:
        """Search on calibration samples.

        Of the cascades on the upper concave hull of (mean cost, mean score) at most `num_prices` are kept,
        those whose costs lie most evenly in the logarithm. ValueError for estimates: nobody would ask them.
        """
        if estimates is not None:
            raise ValueError(
                "a cascade asks no predictor: fit predictor.cascades.hybrid.Hybrid, or name no predictor"
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

    def climb(
        self, confidence: ArrayLike, cost: ArrayLike, estimates: ArrayLike | None = None
    ) -> tuple[Columns, Columns]:
        """First and last column tried, each `[num_prices, num_samples]`.

        Of the confidences those are looked at that belong to scales from the first to the last tried.
        """
        sureties = np.asarray(confidence, dtype=np.float64)
        first = np.repeat(self.start[:, None], len(sureties), axis=1)
        last = first.copy()
        for column in range(sureties.shape[1] - 1):
            last[(last == column) & (sureties[:, column] < self.threshold[:, column, None])] += 1
        return first, last
