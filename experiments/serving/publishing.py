"""Guarantees that are published with an adaptive model."""

import logging

import numpy as np

from experiments.evaluation.risk import find_guarantee, find_unseen
from experiments.reporting.guarantees import explain_infeasible
from m3_backbone.outcomes.labels import Labels
from predictor.adaptive.model import AdaptiveM3
from predictor.policy.front import choose
from predictor.policy.pricing import OperatingPoint

log = logging.getLogger(__name__)


def certify(
    model: AdaptiveM3,
    calibration: Labels,
    *,
    alpha: float,
    delta: float,
    most_questions: int | None = None,
) -> OperatingPoint | None:
    """The certified operating point; None, with a warning, if calibration has too few images for one."""
    model.predictor.check_backbone(calibration.outcomes.fingerprints)
    rows = find_unseen(model.predictor, calibration.outcomes)
    unseen, estimates = calibration.outcomes.select(rows), model.predictor.predict(calibration.inputs)[rows]
    guarantee = find_guarantee(estimates, unseen, alpha=alpha, delta=delta, most_questions=most_questions)
    if guarantee.price is None:
        log.warning(
            "no price is certified for %g on %d images: %s",
            alpha,
            guarantee.num_images,
            explain_infeasible(guarantee),
        )
        return None
    unit = model.prices.default.unit
    choice = choose(estimates, unseen.visual_tokens, guarantee.price, unit=guarantee.unit)[:, None]
    cost, score = (
        float(np.take_along_axis(values, choice, axis=1).mean(dtype=np.float64))
        for values in (unseen.visual_tokens, unseen.score)
    )
    return OperatingPoint(guarantee.price * unit / guarantee.unit, unit, cost, score)
