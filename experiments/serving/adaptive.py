"""Adaptive model of a configuration, its answers as text, and its certified operating point."""

import logging
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.evaluation.disagreement import add_disagreement
from experiments.evaluation.fronts import Floats
from experiments.evaluation.guarantee import find_guarantee, find_unseen
from experiments.reporting.guarantees import explain_infeasible
from experiments.reporting.tables import format_table
from experiments.training.trained import TrainedPredictor, find_trained
from m3_backbone.backbone import Answer, Backbone
from m3_backbone.outcomes.labels import Labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.adaptive.inputs import Choice
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveM3
from predictor.base import ScalePredictor
from predictor.cascades.hybrid import Hybrid
from predictor.policy.front import choose
from predictor.policy.pricing import OperatingPoint, PriceList

log = logging.getLogger(__name__)


def find_configured(config: DictConfig) -> TrainedPredictor:
    """Return the trained predictor of a configuration (`training.trained.find_trained`)."""
    return find_trained(
        Path(config.paths.predictors),
        instantiate(config.predictor, _convert_="all"),
        Path(config.paths.labels),
        seed=config.seed,
        folder=config.trained,
        trust=tuple(config.trust),
    )


def load_adaptive(backbone: Backbone, config: DictConfig) -> AdaptiveM3:
    """Return the backbone with the trained predictor of a configuration."""
    trained = find_configured(config)
    return AdaptiveM3(backbone, trained.predictor, trained.prices, trained.hybrid)


def describe_point(point: OperatingPoint, choice: Choice) -> str:
    """Return text with the price, what it paid for this choice, and its means on calibration."""
    return (
        f"chosen at price {point.price:.4f} per {point.unit:g} visual tokens "
        f"({point.price * choice.cost / point.unit:.4f} for {choice.cost}); on the calibration split, this "
        f"price uses {point.cost:.1f} visual tokens on average and scores {100 * point.score:.1f}%"
    )


def describe_escalation(hybrid: Hybrid, answer: AdaptiveAnswer) -> str:
    """Return text with the scales that a hybrid of one price tried, and their cost."""
    tried = ", then ".join(map(str, answer.tried))
    return (
        f"tried {tried}, {answer.cost} visual tokens in all, at price {hybrid.price[0]:.4f} per "
        f"{hybrid.unit:g} visual tokens; on the calibration split, the hybrid uses {hybrid.cost[0]:.1f} "
        f"visual tokens on average at this price and scores {100 * hybrid.score[0]:.1f}%"
    )


def format_answers(
    answers: dict[int, Answer], costs: dict[int, int], chosen: int, adaptive: AdaptiveAnswer | None
) -> str:
    """Return a table with one scale per row; an arrow marks the chosen one, a plus others that were tried."""
    tried = adaptive.tried if adaptive else ()
    estimates = dict(zip(adaptive.choice.scales, adaptive.choice.estimates, strict=True)) if adaptive else {}
    rows = [["", "scale", "tokens", "estimate", "confidence", "answer"]]
    for scale, answer in answers.items():
        rows.append(
            [
                "->" if scale == chosen else "+" if scale in tried else "",
                str(scale),
                str(costs[scale]),
                f"{estimates[scale]:.3f}" if estimates else "-",
                f"{answer.confidence:.3f}",
                answer.text.replace("\n", " "),
            ]
        )
    return format_table(rows)


def estimate_unseen(predictor: ScalePredictor, calibration: Labels) -> tuple[Floats, OutcomeTable]:
    """Return estimates `[num_samples, num_scales]` and outcomes of the samples its calibrator has not seen.

    The visual tokens of the outcomes include those of the predictor. Raises ValueError for labels of another
    backbone.
    """
    predictor.check_backbone(calibration.outcomes.fingerprints)
    rows = find_unseen(predictor, calibration.outcomes)
    return predictor.predict(calibration.inputs)[rows], predictor.features.charge(calibration.select(rows))


def state_bounds(
    prices: PriceList,
    estimates: Floats,
    unseen: OutcomeTable,
    *,
    alpha: float,
    delta: float,
    most_questions: int | None = None,
) -> PriceList:
    """Return the prices with the point `guarantee`, if it can be certified, and all disagreements bounded.

    `estimates` and outcomes are those of `estimate_unseen`.
    """
    unit = prices.default.unit
    point = certify(estimates, unseen, unit, alpha=alpha, delta=delta, most_questions=most_questions)
    named = {name: other for name, other in prices.named.items() if name != "guarantee"}
    named |= {} if point is None else {"guarantee": point}
    prices = PriceList(prices.default, prices.points, named)
    return add_disagreement(prices, estimates, unseen, delta=delta, most_questions=most_questions)


def certify(
    estimates: Floats,
    unseen: OutcomeTable,
    unit: float,
    *,
    alpha: float,
    delta: float,
    most_questions: int | None = None,
) -> OperatingPoint | None:
    """Return the certified operating point, its price per `unit`; None, with a warning, if there is none."""
    guarantee = find_guarantee(estimates, unseen, alpha=alpha, delta=delta, most_questions=most_questions)
    if guarantee.price is None:
        log.warning(
            "no price is certified for %g on %d images: %s",
            alpha,
            guarantee.num_images,
            explain_infeasible(guarantee),
        )
        return None
    choice = choose(estimates, unseen.visual_tokens, guarantee.price, unit=guarantee.unit)[:, None]
    cost, score = (
        float(np.take_along_axis(values, choice, axis=1).mean(dtype=np.float64))
        for values in (unseen.visual_tokens, unseen.score)
    )
    return OperatingPoint(guarantee.price * unit / guarantee.unit, unit, cost, score)
