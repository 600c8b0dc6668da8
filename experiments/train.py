"""Train a predictor and the baselines on labels.

`train_predictors` is the function behind the command; it skips what is up to date.

Examples:
    tokenscale train                                      # cross_attention and the baselines
    tokenscale train predictor=mlp max_epochs=5           # another predictor, five epochs
    tokenscale train -m seed=0,1,2 hydra/launcher=joblib  # three seeds at the same time
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from experiments.config import entry_point, is_sweep
from experiments.next_commands import format_next

if TYPE_CHECKING:
    from experiments.training.trained import TrainingRecord


@entry_point("train")
def main(config: DictConfig) -> float:
    """Train, and return the validation metric `optimized_metric`, for sweeps."""
    from experiments.labels.division import find_label_banners
    from experiments.reporting.console import format_record, format_records
    from experiments.tasks.sizes import frame_banners
    from experiments.training.trained import VALIDATION_METRICS
    from m3_backbone.outcomes.manifest import read_manifest
    from m3_backbone.outcomes.options import Options

    measure = VALIDATION_METRICS[config.optimized_metric]
    records = train_configured(config)
    options = Options.of(read_manifest(Path(config.paths.labels)))
    if is_sweep():
        print(format_record(records[0], options))
    else:
        print(format_records(records, options))
        if banners := find_label_banners(config.paths.labels, ("train", "calibration")):
            print(frame_banners(banners))
        print(f"predictors: {config.paths.predictors}\n{format_next('evaluate')}")
    return measure(records[0])


def train_configured(config: DictConfig) -> "list[TrainingRecord]":
    """Train the predictors of a configuration that are not trained yet; return the records of all."""
    from experiments.labels.division import check_labels
    from experiments.training.configured import make_predictors, make_tracker, make_trainer, read_settings
    from experiments.training.trainer import quiet_lightning, train_predictors

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


if __name__ == "__main__":
    main()
