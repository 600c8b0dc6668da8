"""Backbone and predictor as one model to use or to share: `python -m experiments.publish folder=FOLDER`.

Its operating point `risk` has a certified loss against the finest scale (`experiments.evaluation.risk`).
"""

import logging

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.answer import load_adaptive
from experiments.config import entry_point
from experiments.evaluation.risk import find_guarantee, find_unseen
from experiments.labels.division import find_label_banners
from experiments.reporting.risk_table import explain_infeasible
from experiments.tasks.sizes import frame_banners
from m3_backbone.outcomes.labels import Labels, read_labels
from predictor.adaptive.model import AdaptiveM3
from predictor.policy.front import choose
from predictor.policy.pricing import OperatingPoint, PriceList

log = logging.getLogger(__name__)


@entry_point("publish")
def main(config: DictConfig) -> None:
    backbone = instantiate(config.backbone, _convert_="all")
    model = load_adaptive(backbone, config)
    calibration = read_labels(config.paths.labels, "calibration")
    point = certify(
        model,
        calibration,
        alpha=config.risk.alpha,
        delta=config.risk.delta,
        most_questions=config.risk.most_questions,
    )
    if point is not None:
        prices = PriceList(model.prices.default, model.prices.points, {**model.prices.named, "risk": point})
        model = AdaptiveM3(backbone, model.predictor, prices, model.hybrid)
    model.save_pretrained(config.folder)
    if banners := find_label_banners(config.paths.labels, ("calibration",)):
        print(frame_banners(banners))
    print(f"model: {config.folder}\nuse:   AdaptiveM3.from_pretrained({str(config.folder)!r})")
    if config.repo is not None:
        print(f"on the hub: {model.push_to_hub(config.repo)}")


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


if __name__ == "__main__":
    main()
