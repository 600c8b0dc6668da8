"""Disagreement of a policy with the finest scale: the share of answers with another text.

An answer that agrees with that at the finest scale has the same score. The mean loss in score is therefore at
most the disagreement, which needs no references and can be measured on requests.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.betting import certify
from experiments.evaluation.fronts import Floats
from experiments.evaluation.guarantee import ImageSums, order_images
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import choose
from predictor.policy.pricing import OperatingPoint, PriceList

# Bounds that are tested, from the largest on, until one is not certified.
BOUNDS: Floats = np.geomspace(0.95, 0.004, 80)


def score_agreement(table: OutcomeTable) -> OutcomeTable:
    """Return the table with score 1 where the answer is that at the finest scale, and 0 elsewhere."""
    agrees = [[answer.strip() == row[-1].strip() for answer in row] for row in table.answer]
    return replace(table, score=np.array(agrees, dtype=np.float32).reshape(table.score.shape))


def bound_disagreement(
    choices: NDArray[np.integer], table: OutcomeTable, *, delta: float, most_questions: int | None = None
) -> Floats:
    """Return an upper bound of the disagreement for each row of `choices` `[num_choices, num_samples]`.

    Each bound holds with probability 1 - `delta` over the images of `table`. It is the smallest of `BOUNDS`
    up to which all are certified by betting, 1 if none is. `choices` are columns of scales.
    """
    if not len(table):
        return np.ones(len(choices))
    sums = ImageSums.of_choices(choices, score_agreement(table), most_questions)
    order = order_images(table.cluster_id)
    bounds, is_certified = np.ones(len(choices)), np.ones(len(choices), dtype=bool)
    for bound in BOUNDS:
        is_certified &= certify(sums.to_values(bound)[:, order], bound, delta)
        if not is_certified.any():
            break
        bounds[is_certified] = bound
    return bounds


def add_disagreement(
    prices: PriceList,
    estimates: ArrayLike,
    calibration: OutcomeTable,
    *,
    delta: float,
    most_questions: int | None = None,
) -> PriceList:
    """Return the prices with a bound of the disagreement of each point, from unseen calibration samples.

    `estimates` are `[num_samples, num_scales]`. The arguments are those of `bound_disagreement`.
    """
    points = [prices.default, *prices.points, *prices.named.values()]
    choices = np.array(
        [choose(estimates, calibration.visual_tokens, point.price, unit=point.unit) for point in points]
    )
    bounds = bound_disagreement(choices, calibration, delta=delta, most_questions=most_questions)
    default, *others = _set_bounds(points, bounds)
    num_points = len(prices.points)
    named = dict(zip(prices.named, others[num_points:], strict=True))
    return PriceList(default, tuple(others[:num_points]), named)


def _set_bounds(points: list[OperatingPoint], bounds: Floats) -> list[OperatingPoint]:
    return [replace(point, disagreement=float(bound)) for point, bound in zip(points, bounds, strict=True)]
