"""Train a predictor and the baselines on labels.

`train_predictors` is the plain function behind the command; it leaves alone what is up to date.

Examples:
    tokenscale train                                      # cross_attention and the baselines
    tokenscale train predictor=mlp max_epochs=5           # another predictor, five epochs
    tokenscale train -m seed=0,1,2 hydra/launcher=joblib  # three seeds at the same time
"""

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point


@entry_point("train")
def main(config: DictConfig) -> float:
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.console import format_records
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import make_predictors, read_settings
    from experiments.training.trained import VALIDATION_METRICS
    from experiments.training.trainer import quiet_lightning, train_predictors

    quiet_lightning()
    measure = VALIDATION_METRICS[config.optimized_metric]
    check_labels(config.paths.labels, ("train", "calibration"), allow_small=config.allow_small)
    records = train_predictors(
        make_predictors(config),
        labels=Path(config.paths.labels),
        folder=Path(config.paths.predictors),
        settings=read_settings(config),
        make_trainer=partial(instantiate, config.trainer),
    )
    print(format_records(records))
    if banners := find_label_banners(config.paths.labels, ("train", "calibration")):
        print(frame_banners(banners))
    print(f"predictors: {config.paths.predictors}")
    return measure(records[0])


if __name__ == "__main__":
    main()
