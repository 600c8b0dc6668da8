"""Figures of merit of a policy's front, each as its source defines it; pure functions over arrays.

`Curve` is a front in each of any number of resamples. The coarsest and the finest fixed scale are
`(cost, score)` pairs of arrays `[num_resamples]`, their mean costs and scores in the same resamples. Costs
include the policy's own. A figure that does not exist (a gap of zero, a score that is never reached) is nan.

Two figures of merit are elsewhere: the share of the gap from mix to budgeted oracle (`figures`), and how well
estimates are calibrated (`calibration`).
"""

from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.fronts import Columns, Floats, find_smallest_right
from predictor.hull import upper_hull

Pair = tuple[Floats, Floats]
# Means reach us as sums divided by counts: a score is reached, a gap is zero, up to this.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a policy in each resample, `[num_resamples, num_points]`.

    Between two points next to each other in cost lies what drawing one of the two at random for each sample
    reaches: a line. Of points of equal cost the best one counts.
    """

    cost: Floats
    score: Floats

    @classmethod
    def of(cls, cost: ArrayLike, score: ArrayLike) -> "Curve":
        """Points in any order."""
        costs, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
        order = np.lexsort((scores, costs), axis=-1)
        costs, scores = (np.take_along_axis(each, order, axis=-1) for each in (costs, scores))
        for point in reversed(range(costs.shape[1] - 1)):
            same = costs[:, point] == costs[:, point + 1]
            scores[same, point] = scores[same, point + 1]
        return cls(costs, scores)

    def at(self, cost: Floats) -> Floats:
        """Score on the line, flat beyond its ends, `[num_resamples, num_costs]` like `cost`."""
        return np.stack([np.interp(*row) for row in zip(cost, self.cost, self.score, strict=True)])

    def reach(self, score: Floats) -> Floats:
        """Least cost on the line at which it is at least as high as `score`, both `[num_resamples]`."""
        enough = self.score >= score[:, None] - ROUNDING
        rows, point = np.arange(len(score)), enough.argmax(axis=1)
        before = np.maximum(point - 1, 0)
        high, low = ((self.cost[rows, each], self.score[rows, each]) for each in (point, before))
        share = np.ones(len(score))
        np.divide(score - low[1], high[1] - low[1], out=share, where=(point > 0) & (high[1] > low[1]))
        cost = low[0] + np.clip(share, 0, 1) * (high[0] - low[0])
        return np.where(enough.any(axis=1), cost, np.nan)

    def area(self, low: Floats, high: Floats) -> Floats:
        """Area under the line, flat beyond its ends, between two costs `[num_resamples]`."""
        inside = np.clip(self.cost, low[:, None], high[:, None])
        costs = np.concatenate([low[:, None], inside, high[:, None]], axis=1)
        return np.trapezoid(self.at(costs), costs, axis=1)

    def hull(self) -> "Curve":
        """The non-decreasing upper concave hull in each resample, its last vertex repeated."""
        vertices = [upper_hull(*row) for row in zip(self.cost, self.score, strict=True)]
        index = np.full(self.cost.shape, -1)
        for row, its in zip(index, vertices, strict=True):
            row[:] = its[-1]
            row[: len(its)] = its
        return Curve(*(np.take_along_axis(each, index, axis=1) for each in (self.cost, self.score)))

    def start_from(self, coarsest: Pair) -> "Curve":
        """With the coarsest fixed scale among the points: whoever has a predictor can do without it."""
        points = zip((self.cost, self.score), coarsest, strict=True)
        return Curve.of(*(np.column_stack([own, each]) for own, each in points))


def average_quality(curve: Curve, coarsest: Pair, finest: Pair) -> Floats:
    """AIQ, average improvement in quality (RouterBench, arXiv 2403.12031).

    `1 / (c_max - c_min)` times the integral from c_min to c_max of the non-decreasing concave hull of the
    policy's points: a mean score. c_min and c_max are the mean costs of the coarsest and the finest scale;
    the coarsest scale is a point of every policy; beyond the dearest vertex the hull is flat. (RouterBench
    takes the range from its set of models; its code divides by c_max, and c_min there is nearly 0.)
    """
    low, high = coarsest[0], finest[0]
    return _divide(curve.start_from(coarsest).hull().area(low, high), high - low)


def average_gap_recovered(curve: Curve, coarsest: Pair, finest: Pair) -> Floats:
    """APGR, average performance gap recovered (RouteLLM, arXiv 2406.18665).

    At a cost c the performance gap recovered is `PGR = (score(c) - s_coarsest) / (s_finest - s_coarsest)`;
    APGR is its integral over the share `(c - c_coarsest) / (c_finest - c_coarsest)` from 0 to 1, exact for
    the line through the policy's points. With two scales that share is RouteLLM's share of calls of the
    strong model; with more it is what the same tokens would buy of it. RouteLLM's paper sums over ten shares,
    its code takes the trapezoids as here. Above 1 where the policy beats the finest scale for less.
    """
    low, high = coarsest[0], finest[0]
    mean = _divide(curve.start_from(coarsest).area(low, high), high - low)
    return _divide(mean - coarsest[1], finest[1] - coarsest[1])


def find_call_share(curve: Curve, coarsest: Pair, finest: Pair, recovered: float) -> Floats:
    """CPT(x), call-performance threshold (RouteLLM, arXiv 2406.18665), x in [0, 1].

    With x as `recovered`, the least share `(c - c_coarsest) / (c_finest - c_coarsest)` at which the
    performance gap recovered is at least x; nan where it never is. A policy that pays for several scales may
    need a share above 1.
    """
    gap = finest[1] - coarsest[1]
    cost = curve.start_from(coarsest).reach(coarsest[1] + recovered * gap)
    return np.where(gap > ROUNDING, _divide(cost - coarsest[0], finest[0] - coarsest[0]), np.nan)


def hypervolume(curve: Curve, finest: Pair) -> Floats:
    """Area that the points dominate, up to the finest scale's mean cost and down to score 0, over that cost.

    Points are taken as they are, not mixed: a staircase (Zitzler and Thiele 1998; computed by moocore). In
    [0, 1]; a perfect policy without cost has 1.
    """
    return np.array(
        [
            moocore.hypervolume(np.column_stack(row), ref=[reference, 0.0], maximise=[False, True])
            / reference
            for *row, reference in zip(curve.cost, curve.score, finest[0], strict=True)
        ]
    )


def count_confusions(score: ArrayLike, choice: ArrayLike) -> Columns:
    """Samples by smallest sufficient scale and chosen scale, `[num_scales + 1, num_scales]`.

    Rows are needed scales, coarsest first, and last the samples that no scale answers.
    """
    scores = np.asarray(score)
    num_scales = scores.shape[1]
    needed = find_smallest_right(scores)
    needed = np.where(needed < 0, num_scales, needed)
    cells = np.bincount(needed * num_scales + np.asarray(choice), minlength=(num_scales + 1) * num_scales)
    return cells.reshape(num_scales + 1, num_scales)


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > ROUNDING)
