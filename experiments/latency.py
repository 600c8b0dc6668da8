"""Time backbone and predictors together, in milliseconds.

Writes one file of timings (`labels.latency`), which `evaluate` reads. An existing file of the same backbone,
predictors, data, machine and settings is up to date.

Examples:
    tokenscale latency  # the predictors that `tokenscale train` trained
    tokenscale latency latency.num_images=16                        # fewer images
    tokenscale latency latency.batch_size=8 latency.overwrite=true  # in batches, timed again
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("latency")
def main(config: DictConfig) -> None:
    from experiments.reporting.latency import format_latency
    from experiments.training.configured import measure_configured

    path, timings = measure_configured(config)
    print(f"{format_latency(timings)}\nlatency: {path}")


if __name__ == "__main__":
    main()
