"""Time backbone and predictors together, in milliseconds.

Writes one file of samples (`labels.latency`), from which `evaluate` takes milliseconds. An existing file of
the same backbone, predictors, data, machine and settings is up to date.

Examples:
    tokenscale latency  # the predictors that `tokenscale train` trained
    tokenscale latency latency.num_images=16                        # fewer pictures
    tokenscale latency latency.batch_size=8 latency.overwrite=true  # in batches, timed again
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point


@entry_point("latency")
def main(config: DictConfig) -> None:
    measure_configured(config)


def measure_configured(config: DictConfig) -> None:
    """Time what a configuration names, and print the result."""
    from experiments.labels.latency import measure_latency
    from experiments.reporting.console import format_latency
    from experiments.training.configured import open_configured

    path, latency = measure_latency(
        task=instantiate(config.task, _convert_="all"),
        backbone=instantiate(config.backbone, _convert_="all"),
        predictors=open_configured(config),
        folder=Path(config.paths.latency),
        num_images=config.latency.num_images,
        num_rounds=config.latency.num_rounds,
        batch_size=config.latency.batch_size,
        overwrite=config.latency.overwrite,
    )
    print(format_latency(latency))
    print(f"latency: {path}")


if __name__ == "__main__":
    main()
