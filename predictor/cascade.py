"""Cascades: answer at one scale, look at how sure the answer is, and climb to the next finer scale or stop.

`confidence`, `score` and `cost` are `[num_samples, num_scales]` over one ladder, coarsest scale first. Every
scale that is tried is paid for, and the last answer stands.

A cascade stops at the first scale whose answer is at least as confident as that scale's threshold (Viola and
Jones 2001; for language models FrugalGPT, arXiv 2305.05176, which tunes the sequence and its thresholds
together for the score within a budget). Confidence alone does not say whether the finer answer would be any
better (Jitkrittum et al., arXiv 2307.02764): `predictor.hybrid` asks a predictor, too.

The search is exact over starts and over thresholds that are quantiles (`cascade_search`).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from predictor.cascade_search import Columns, find_edges, find_prices, pick_hull, trace_cuts
from predictor.hull import upper_hull
from predictor.policy import Floats, find_unit


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
            raise ValueError("a cascade asks no predictor: fit predictor.hybrid.Hybrid, or name no predictor")
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
