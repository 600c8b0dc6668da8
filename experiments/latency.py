"""Time backbone and predictors together, in milliseconds.

Writes one file of timings (`labels.latency`), which `evaluate` reads. An existing file of the same backbone,
predictors, data, machine and settings is up to date.

Examples:
    tokenscale latency  # the predictors that `tokenscale train` trained
    tokenscale latency latency.num_images=16                        # fewer images
    tokenscale latency latency.batch_size=8 latency.overwrite=true  # in batches, timed again
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point

if TYPE_CHECKING:
    from experiments.labels.latency import Latency


@entry_point("latency")
def main(config: DictConfig) -> None:
    from experiments.reporting.latency import format_latency

    path, timings = measure_configured(config)
    print(f"{format_latency(timings)}\nlatency: {path}")


def measure_configured(config: DictConfig) -> "tuple[Path, Latency]":
    """Time backbone and predictors of a configuration; return the file of the timings and its content."""
    from experiments.labels.latency import measure_latency
    from experiments.training.configured import open_configured

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


if __name__ == "__main__":
    main()
