"""Backbone and predictor as one model to use or to share: `python -m experiments.publish folder=FOLDER`.

Among its operating points is `risk`, whose loss against the finest scale is certified on calibration.
"""

import logging

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.answer import load_adaptive
from experiments.config import entry_point
from experiments.evaluation.risk import find_guarantee, find_unseen
from m3_backbone.labels import Labels, read_labels
from predictor.adaptive import AdaptiveM3
from predictor.pricing import OperatingPoint, PriceList

log = logging.getLogger(__name__)


@entry_point("publish")
def main(config: DictConfig) -> None:
    backbone = instantiate(config.backbone, _convert_="all")
    model = load_adaptive(backbone, config)
    calibration = read_labels(config.paths.labels, "calibration")
    point = certify(model, calibration, alpha=config.risk.alpha, delta=config.risk.delta, seed=config.seed)
    if point is not None:
        prices = PriceList(model.prices.default, model.prices.points, {**model.prices.named, "risk": point})
        model = AdaptiveM3(backbone, model.predictor, prices, model.hybrid)
    model.save_pretrained(config.folder)
    print(f"model: {config.folder}\nuse:   AdaptiveM3.from_pretrained({str(config.folder)!r})")
    if config.repo is not None:
        print(f"on the hub: {model.push_to_hub(config.repo)}")


def certify(
    model: AdaptiveM3, calibration: Labels, *, alpha: float, delta: float, seed: int = 0
) -> OperatingPoint | None:
    """The certified operating point; None, with a warning, where calibration has too few images for one."""
    model.predictor.check_backbone(calibration.outcomes.fingerprints)
    calibration = calibration.select(find_unseen(model.predictor, calibration.outcomes))
    estimates = model.predictor.predict(calibration.inputs)
    found = find_guarantee(estimates, calibration.outcomes, alpha=alpha, delta=delta, seed=seed)
    price = found.price_per(model.prices.default.unit)
    if price is None:
        needed = f"it would need about {found.num_needed}" if found.num_needed else "no number would do"
        log.warning("no price is certified for %g on %d images (%s)", alpha, found.num_images, needed)
        return None
    score = float(calibration.outcomes.score[:, -1].mean(dtype=np.float64)) - found.drop
    return OperatingPoint(price, model.prices.default.unit, found.cost, score)


if __name__ == "__main__":
    main()
