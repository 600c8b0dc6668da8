"""Cascades: answer at one scale, look at how sure the answer is, and climb to the next finer scale or stop.

`confidence`, `score`, `cost` and `estimates` are `[num_samples, num_scales]` over one ladder,
coarsest scale first. Every scale that is tried is paid for, and the last answer stands.

A cascade stops at the first scale whose answer is at least as confident as that scale's threshold (Viola and
Jones 2001; for language models FrugalGPT, arXiv 2305.05176, which tunes the sequence and its thresholds
together for the score within a budget). Confidence alone does not say whether the finer answer would be any
better (Jitkrittum et al., arXiv 2307.02764). The hybrid adds a predictor, which has seen image and question:
it starts where that says, and stops where the score expected to be gained by one more scale, by logistic
regressions on the confidence and on the estimates of this scale and the next, is below a threshold.

The search is exact over starts and over thresholds that are quantiles (`cascade_search`).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from predictor.cascade_search import (
    Columns,
    find_edges,
    find_prices,
    pick_evenly,
    space_prices,
    trace_cuts,
)
from predictor.hull import upper_hull
from predictor.policy import Floats, choose_at_prices, find_unit

_NUM_STARTING_PRICES = 48


@dataclass(frozen=True, eq=False)
class Cascade:
    """Fitted cascades, one per price, from dear to cheap; on calibration no mix of two others beats any.

    `price` `[num_prices]`, ascending from 0, is that per `unit` of cost at which each becomes the best one
    on the calibration samples; `cost` and `score` are its means there. It stops at a scale where the
    confidence is at least `threshold` `[num_prices, num_scales]` (-inf: always). It starts at column `start`
    `[num_prices]`. A hybrid, which has a `gain`, starts at what `policy.choose` gives for the estimates at
    `starting_price`, and its thresholds are for minus the expected gain.
    """

    price: Floats
    cost: Floats
    score: Floats
    threshold: Floats
    start: Columns
    starting_price: Floats
    unit: float
    gain: "ExpectedGain | None" = None

    @classmethod
    def fit(
        cls,
        confidence: ArrayLike,
        score: ArrayLike,
        cost: ArrayLike,
        estimates: ArrayLike | None = None,
        num_prices: int = 128,
    ) -> Self:
        """Search on calibration samples; with `estimates` the hybrid, which starts where they say.

        Of the cascades on the upper concave hull of (mean cost, mean score) at most `num_prices` are kept,
        those whose costs lie most evenly in the logarithm.
        """
        confidences, scores, costs = (
            np.asarray(values, dtype=np.float64) for values in (confidence, score, cost)
        )
        num_samples, num_scales = costs.shape
        gain, sureties = None, confidences
        if estimates is not None:
            gain = ExpectedGain.fit(confidences, scores, estimates)
            sureties = -gain(confidences, estimates)
        unit, edges = find_unit(costs), find_edges(sureties)
        bins = np.zeros((num_samples, num_scales - 1), dtype=np.int64)
        for column, edge in enumerate(edges):
            bins[:, column] = np.searchsorted(edge, sureties[:, column], side="right")
        if estimates is None:
            start, starting_price = np.arange(num_scales), np.zeros(num_scales)
            firsts = np.repeat(start[:, None], num_samples, axis=1)
        else:
            starting_price = space_prices(estimates, costs, unit, _NUM_STARTING_PRICES)
            start = np.zeros(len(starting_price), dtype=np.int64)
            firsts = choose_at_prices(estimates, costs, starting_price, unit=unit).astype(np.int64)
        points = []
        for row, first in enumerate(firsts):
            mean_cost, mean_score = trace_cuts(bins, [len(edge) + 1 for edge in edges], scores, costs, first)
            best = upper_hull(mean_cost.ravel(), mean_score.ravel())
            cuts = np.stack(np.unravel_index(best, mean_cost.shape), axis=1)
            points.append((mean_cost.ravel()[best], mean_score.ravel()[best], cuts, np.full(len(best), row)))
        mean_cost, mean_score, cuts, rows = (np.concatenate(parts) for parts in zip(*points, strict=True))
        hull = upper_hull(mean_cost, mean_score)
        hull = hull[pick_evenly(mean_cost[hull], num_prices)][::-1]
        threshold = np.full((len(hull), num_scales), -np.inf)
        for column, edge in enumerate(edges):
            threshold[:, column] = np.concatenate([[-np.inf], edge, [np.inf]])[cuts[hull, column]]
        return cls(
            price=find_prices(mean_cost[hull], mean_score[hull]) * unit,
            cost=mean_cost[hull],
            score=mean_score[hull],
            threshold=threshold,
            start=start[rows[hull]],
            starting_price=starting_price[rows[hull]],
            unit=unit,
            gain=gain,
        )

    def climb(
        self, confidence: ArrayLike, cost: ArrayLike, estimates: ArrayLike | None = None
    ) -> tuple[Columns, Columns]:
        """First and last column tried, each `[num_prices, num_samples]`.

        Of the confidences those are looked at that belong to scales from the first to the last tried. Raises
        ValueError where this is a hybrid and there are no estimates.
        """
        sureties = np.asarray(confidence, dtype=np.float64)
        first = np.repeat(self.start[:, None], len(sureties), axis=1)
        if self.gain is not None:
            if estimates is None:
                raise ValueError("this cascade starts where a predictor says: give its estimates")
            sureties = -self.gain(sureties, estimates)
            first = choose_at_prices(estimates, cost, self.starting_price, unit=self.unit).astype(np.int64)
        last = first.copy()
        for column in range(sureties.shape[1] - 1):
            last[(last == column) & (sureties[:, column] < self.threshold[:, column, None])] += 1
        return first, last


@dataclass(frozen=True, eq=False)
class ExpectedGain:
    """Score to be gained by one scale more: the chance that the next answer is right, less that of this one.

    `here` and `beyond` `[num_scales - 1, 4]` are logistic regressions on the logits of the confidence at this
    scale and of the estimates for this scale and the next, and on a constant.
    """

    here: Floats
    beyond: Floats

    @classmethod
    def fit(cls, confidence: ArrayLike, score: ArrayLike, estimates: ArrayLike) -> Self:
        """From calibration samples, each `[num_samples, num_scales]`."""
        scores = np.asarray(score, dtype=np.float64)
        weights = [
            [_fit_logistic(features, scores[:, column + step]) for step in (0, 1)]
            for column, features in enumerate(cls._make_features(confidence, estimates))
        ]
        here, beyond = np.array(weights).reshape(-1, 2, 4).swapaxes(0, 1)
        return cls(here, beyond)

    def __call__(self, confidence: ArrayLike, estimates: ArrayLike) -> Floats:
        """`[num_samples, num_scales]`; 0 at the finest scale. Each reads the confidence of its own scale."""
        gains = np.zeros(np.shape(confidence))
        for column, features in enumerate(self._make_features(confidence, estimates)):
            gains[:, column] = expit(features @ self.beyond[column]) - expit(features @ self.here[column])
        return gains

    @staticmethod
    def _make_features(confidence: ArrayLike, estimates: ArrayLike) -> list[Floats]:
        sure, chance = (logit(np.clip(values, 1e-4, 1 - 1e-4)) for values in (confidence, estimates))
        constant = np.ones(len(sure))
        return [
            np.stack([sure[:, column], chance[:, column], chance[:, column + 1], constant], axis=1)
            for column in range(sure.shape[1] - 1)
        ]


def _fit_logistic(features: Floats, score: Floats) -> Floats:
    """Weights of one logistic regression; a fractional score is a right and a wrong sample, in part each."""
    model = LogisticRegression(fit_intercept=False)
    model.fit(
        # One sample of either kind on top, at the origin but for the constant: there may be none of one.
        np.concatenate([features, features, np.eye(4)[[3, 3]]]),
        np.repeat([1, 0, 1, 0], [len(score), len(score), 1, 1]),
        sample_weight=np.concatenate([score, 1 - score, [0.5, 0.5]]),
    )
    weights: Floats = model.coef_[0].astype(np.float64)
    return weights
