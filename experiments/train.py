"""Train a predictor and the baselines on labels.

`train_predictors` is the function behind the command; it skips what is up to date.

Examples:
    tokenscale train                                      # cross_attention and the baselines
    tokenscale train predictor=mlp max_epochs=5           # another predictor, five epochs
    tokenscale train -m seed=0,1,2 hydra/launcher=joblib  # three seeds at the same time
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.next_commands import format_next
from experiments.command_line.running import is_sweep


@entry_point("train")
def main(config: DictConfig) -> float:
    """Train, and return the validation metric `optimized_metric`, for sweeps."""
    from experiments.labels.division import find_label_banners
    from experiments.reporting.console import format_record, format_records
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import train_configured
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


if __name__ == "__main__":
    main()
