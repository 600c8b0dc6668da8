"""Predictors and training settings of a configuration, its training and its timing."""

import errno
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.labels.division import check_labels
from experiments.training.subset import Subset
from experiments.training.trackers.base import Tracker
from experiments.training.trained import (
    TrainedPredictor,
    TrainingRecord,
    TrainingSettings,
    check_names,
    identify,
    open_trained,
)
from experiments.training.trainer import quiet_lightning, train_predictors
from m3_backbone.outcomes.manifest import read_manifest
from predictor.base import ScalePredictor

if TYPE_CHECKING:
    from experiments.labels.latency import Latency

log = logging.getLogger(__name__)

# Trainer settings that only change its output, and default values of those that change weights.
_OUTPUT_OF_TRAINER = (
    *("logger", "log_every_n_steps", "enable_model_summary", "enable_progress_bar", "enable_checkpointing"),
)
_ENVIRONMENTS = "lightning.pytorch.plugins.environments."
_DEFAULT_TRAINER = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "deterministic": True,
}


def make_predictors(config: DictConfig) -> list[ScalePredictor]:
    """Return the untrained predictor of a configuration, followed by its baselines.

    The predictor replaces a baseline of the same name. Raises ValueError if two baselines share a name.
    """
    baselines = [part for part in config.get("baselines", {}).values() if part.name != config.predictor.name]
    names = [str(part.name) for part in baselines]
    check_names(names)
    return [instantiate(part, _convert_="all") for part in (config.predictor, *baselines)]


def check_objects(config: DictConfig) -> None:
    """Build predictors, tracker and trainer of a configuration, so that errors come before long work."""
    quiet_lightning()
    make_predictors(config)
    make_tracker(config)
    instantiate(config.trainer)


def read_settings(config: DictConfig) -> TrainingSettings:
    """Return the training settings of a configuration."""
    return TrainingSettings(
        seed=config.seed,
        validation_fraction=config.validation_fraction,
        budget=config.budget,
        tolerance=config.tolerance,
        calibrator=instantiate(config.get("calibrator")),
        trainer=read_trainer(config.get("trainer")),
        subset=read_subset(config),
    )


def read_subset(config: DictConfig) -> Subset:
    """Return the part of the train split that a configuration trains on; all of it without the setting."""
    return Subset(**(config.get("labels") or {}))


def make_tracker(config: DictConfig) -> Tracker | None:
    """Return the tracker of a configuration; None if it has none.

    Raises an error that names the package to install if the tracker's own one is missing.
    """
    tracker: Tracker | None = instantiate(config.get("logger"))
    return tracker


def make_trainer(settings: DictConfig, **arguments: Any) -> Any:
    """Return the Lightning trainer of a configuration; without a terminal, lines replace its progress bar.

    `arguments` are set by the predictor: its callbacks and its number of epochs.
    """
    if settings.get("enable_progress_bar", True) and not sys.stderr.isatty():
        from experiments.training.progress import EpochLines

        callbacks = [*arguments.pop("callbacks", []), EpochLines()]
        arguments |= {"callbacks": callbacks, "enable_progress_bar": False}
    return instantiate(settings, **arguments)


def read_trainer(trainer: DictConfig | None) -> dict[str, Any]:
    """Return the trainer settings that change weights and differ from conf/trainer/cpu.yaml."""
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
    """Whether a plugin only describes the processes, which does not change weights."""
    return isinstance(plugin, dict) and str(plugin.get("_target_")).startswith(_ENVIRONMENTS)


def open_configured(
    config: DictConfig, labels: Path | None = None, predictors: Path | None = None
) -> list[TrainedPredictor]:
    """Load the trained predictors of a configuration, in the order of `make_predictors`.

    The folders are `paths.labels` and `paths.predictors` unless given. Raises FileNotFoundError, which names
    the differences, for a predictor that was not trained with this configuration.
    """
    folder = labels or Path(config.paths.labels)
    manifest, settings = read_manifest(folder), read_settings(config)
    return [
        open_trained(
            predictors or Path(config.paths.predictors),
            predictor.name,
            identify(predictor, manifest, settings, folder),
        )
        for predictor in make_predictors(config)
    ]


def train_configured(config: DictConfig) -> list[TrainingRecord]:
    """Train the predictors of a configuration that are not trained yet; return the records of all."""
    quiet_lightning()
    check_labels(config.paths.labels, ("train", "calibration"), allow_small=config.allow_small)
    return train_predictors(
        make_predictors(config),
        labels=Path(config.paths.labels),
        folder=Path(config.paths.predictors),
        settings=read_settings(config),
        make_trainer=partial(make_trainer, config.trainer),
        tracker=make_tracker(config),
    )


def measure_configured(config: DictConfig) -> "tuple[Path, Latency]":
    """Time backbone and predictors of a configuration; return the file of the timings and its content."""
    # Imported here: predictors without a network are trained without PyTorch.
    from experiments.labels.latency import measure_latency

    return measure_latency(
        task=instantiate(config.task, _convert_="all"),
        backbone=instantiate(config.backbone, _convert_="all"),
        predictors=open_configured(config),
        folder=Path(config.paths.latency),
        num_images=config.latency.num_images,
        num_rounds=config.latency.num_rounds,
        batch_size=config.latency.batch_size,
        output_tokens=config.latency.output_tokens,
        overwrite=config.latency.overwrite,
    )


def measure_if_writable(config: DictConfig) -> "tuple[Path, Latency] | None":
    """Like `measure_configured`; return None, with a warning, if timings cannot be written."""
    try:
        return measure_configured(config)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        log.warning(
            "no cost is counted in milliseconds, as timings cannot be written: %s; paths.latency=FOLDER "
            "names another folder for them",
            error,
        )
        return None
