"""Predictors and settings of training from a configuration."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.training.trained import TrainedPredictor, TrainingSettings, identify, open_trained
from m3_backbone.outcomes.manifest import read_manifest
from predictor.base import ScalePredictor

# Settings of a trainer that only say what it prints, and the default values of those that change weights.
_OUTPUT_OF_TRAINER = ("logger", "enable_model_summary", "enable_progress_bar", "enable_checkpointing")
_ENVIRONMENTS = "lightning.pytorch.plugins.environments."
_DEFAULT_TRAINER = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "deterministic": True,
}


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
        trainer=read_trainer(config.get("trainer")),
    )


def make_trainer(settings: DictConfig, **arguments: Any) -> Any:
    """Return the Lightning trainer of a configuration; in a log file lines take the place of its bar.

    `arguments` are those that a predictor gives: its callbacks and its number of epochs.
    """
    if settings.get("enable_progress_bar", True) and not sys.stderr.isatty():
        from experiments.training.progress import EpochLines

        callbacks = [*arguments.pop("callbacks", []), EpochLines()]
        arguments |= {"callbacks": callbacks, "enable_progress_bar": False}
    return instantiate(settings, **arguments)


def read_trainer(trainer: DictConfig | None) -> dict[str, Any]:
    """Settings of a trainer that change the weights and are not those of conf/trainer/cpu.yaml."""
    if trainer is None:
        return {}
    content = OmegaConf.to_container(trainer, resolve=True)
    assert isinstance(content, dict)
    plugins = [plugin for plugin in content.pop("plugins", None) or [] if not _is_environment(plugin)]
    content |= {"plugins": plugins} if plugins else {}
    return {
        str(key): value
        for key, value in content.items()
        if key not in _OUTPUT_OF_TRAINER and value != _DEFAULT_TRAINER.get(str(key))
    }


def _is_environment(plugin: Any) -> bool:
    """Whether a plugin only says which processes there are, which changes no weights."""
    return isinstance(plugin, dict) and str(plugin.get("_target_")).startswith(_ENVIRONMENTS)


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
