"""Predictors and settings of training from a configuration."""

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.training.trained import TrainedPredictor, TrainingSettings, identify, open_trained
from m3_backbone.shards import read_manifest
from predictor.base import ScalePredictor


def make_predictors(config: DictConfig) -> list[ScalePredictor]:
    """The predictor and the baselines of a configuration, untrained; the predictor first.

    It replaces a baseline of the same name. Raises ValueError if two baselines share a name.
    """
    baselines = [part for part in config.get("baselines", {}).values() if part.name != config.predictor.name]
    names = [str(part.name) for part in baselines]
    check_names(names)
    return [instantiate(part, _convert_="all") for part in (config.predictor, *baselines)]


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two predictors share a name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two predictors are named {name!r}: give one of them another with predictor.name="
            )


def read_settings(config: DictConfig) -> TrainingSettings:
    """The settings of training in a configuration."""
    return TrainingSettings(
        seed=config.seed,
        validation_fraction=config.validation_fraction,
        budget=config.budget,
        tolerance=config.tolerance,
        calibrator=instantiate(config.get("calibrator")),
    )


def open_configured(config: DictConfig) -> list[TrainedPredictor]:
    """The trained predictors of a configuration, in the order of `make_predictors`.

    Raises FileNotFoundError for a predictor that was not trained with this configuration, and names the
    differences.
    """
    manifest, settings = read_manifest(Path(config.paths.labels)), read_settings(config)
    return [
        open_trained(Path(config.paths.predictors), predictor.name, identify(predictor, manifest, settings))
        for predictor in make_predictors(config)
    ]
