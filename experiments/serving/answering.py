"""An adaptive model as the configuration names it, and its answers as text."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.reporting.tables import format_table
from experiments.training.trained import find_trained
from m3_backbone.backbone import Answer, Backbone
from predictor.adaptive.inputs import Choice
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveM3
from predictor.cascades.hybrid import Hybrid
from predictor.policy.pricing import OperatingPoint


def load_adaptive(backbone: Backbone, config: DictConfig) -> AdaptiveM3:
    """The backbone with the trained predictor that the configuration selects (`training.trained`)."""
    trained = find_trained(
        Path(config.paths.predictors),
        instantiate(config.predictor, _convert_="all"),
        Path(config.paths.labels),
        seed=config.seed,
        folder=config.trained,
        trust=tuple(config.trust),
    )
    return AdaptiveM3(backbone, trained.predictor, trained.prices, trained.hybrid)


def describe_point(point: OperatingPoint, choice: Choice) -> str:
    """In words, what the price is and what it means."""
    return (
        f"chosen at price {point.price:.4f} per {point.unit:g} visual tokens, so paying "
        f"{point.price * choice.cost / point.unit:.4f} for {choice.cost}; "
        f"on the calibration split this price takes {point.cost:.1f} tokens and scores {point.score:.4f}"
    )


def describe_climb(hybrid: Hybrid, found: AdaptiveAnswer) -> str:
    """In words, what was tried by the hybrid of one price, and what it cost."""
    tried = ", then ".join(map(str, found.tried))
    return (
        f"tried {tried}, {found.cost} visual tokens in all, at price {hybrid.price[0]:.4f} per "
        f"{hybrid.unit:g} visual tokens; on the calibration split the hybrid takes {hybrid.cost[0]:.1f} "
        f"tokens at this price and scores {hybrid.score[0]:.4f}"
    )


def format_answers(
    answers: dict[int, Answer], costs: dict[int, int], chosen: int, found: AdaptiveAnswer | None
) -> str:
    """A table, one scale a row, the chosen one marked by an arrow, others that were tried by a plus."""
    tried = found.tried if found else ()
    estimates = dict(zip(found.choice.scales, found.choice.estimates, strict=True)) if found else {}
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
