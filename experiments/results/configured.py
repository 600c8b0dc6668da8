"""The transfer of a configuration."""

from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecorder
from experiments.results.sources import list_sources
from experiments.results.transfer import Row, TransferPlan, transfer
from experiments.tasks.sizes import Banner
from experiments.training.configured import read_settings
from experiments.training.trainer import quiet_lightning
from predictor.base import ScalePredictor


def read_transfer_plan(config: DictConfig) -> TransferPlan:
    """Return the transfer plan of a configuration."""
    backbones = _list_names(config.source_backbones)
    return TransferPlan(
        sources=list_sources(_list_names(config.sources), backbones, config.backbone.name),
        targets=_list_names(config.targets),
        num_recalibration=config.num_recalibration,
        leave_one_out=config.leave_one_out,
        native=config.native,
        split=config.split,
        outcomes_of=config.outcomes_of,
    )


def transfer_configured(config: DictConfig, recorder: EvaluationRecorder) -> tuple[list[Row], list[Banner]]:
    """Train and evaluate the predictor of a configuration; return the results, and banners."""
    quiet_lightning()
    check_seeds(config)
    plan, labels = read_transfer_plan(config), Path(config.paths.all_labels)
    banners = plan.check_labels(labels, allow_small=config.allow_small)

    rows = transfer(
        partial(make_predictor, config),
        plan,
        labels=labels,
        settings=read_settings(config),
        seeds=config.seeds,
        make_trainer=partial(instantiate, config.trainer),
        recorder=recorder,
        bootstrap=Bootstrap(config.num_resamples, config.confidence, config.seed),
        allow_small=config.allow_small,
    )
    return rows, banners


def check_seeds(config: DictConfig) -> None:
    """Raise ValueError for several seeds that a seed of the predictor's own would hide."""
    has_own_seed = "seed" in config.predictor and not OmegaConf.is_interpolation(config.predictor, "seed")
    if has_own_seed and len(set(config.seeds)) > 1:
        raise ValueError(
            f"predictor.seed={config.predictor.seed} is the seed of every training: give one of seeds, or "
            "leave out predictor.seed"
        )


def make_predictor(config: DictConfig, seed: int) -> ScalePredictor:
    """Return the untrained predictor of a configuration with another seed."""
    # The predictor interpolates the seed.
    seeded = OmegaConf.merge(config, {"seed": seed})
    predictor: ScalePredictor = instantiate(seeded.predictor, _convert_="all")
    return predictor


def _list_names(names: Any) -> list[str]:
    """Return the names in a configuration that gives one name or a list of them, as a list."""
    return [names] if isinstance(names, str) else [str(name) for name in names]
