"""Time backbone and predictors together: `python -m experiments.latency predictor=NAME`.

Writes one file of samples (`labels.latency`), from which evaluation takes milliseconds. A file of the same
backbone, predictors, data, machine and settings is up to date.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point
from experiments.evaluation.timings import Timings
from experiments.labels.latency import Latency, describe_machine, measure_latency
from experiments.reporting.text_table import format_table
from experiments.training.configured import open_configured

log = logging.getLogger(__name__)

_NUM_RESAMPLES = 10_000


@entry_point("latency")
def main(config: DictConfig) -> None:
    measure_configured(config)


def measure_configured(config: DictConfig) -> None:
    """Time what a configuration names, and print the result."""
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


def find_timings(
    folder: Path, fingerprints: Mapping[str, str], predictors: Mapping[str, str]
) -> Timings | None:
    """Timings in a folder of this machine, backbone and predictors; None, and a line in the log, without any.

    `fingerprints` are those of the labels, `predictors` name -> digest; other predictors may have been timed
    beside them. Of several files the one with the smallest batches counts, of these the one with the most
    samples.
    """
    machine = describe_machine()

    def matches(latency: Latency) -> bool:
        timed = latency.job["fingerprints"]
        return (
            latency.job["machine"] == machine
            and all(timed.get(key) == value for key, value in fingerprints.items())
            and predictors.items() <= latency.predictors.items()
        )

    found = [latency for path in sorted(folder.glob("*.json")) if matches(latency := Latency.read(path))]
    if not found:
        log.warning(
            "no timings of these predictors, this backbone and this machine in %s, so no cost is counted in "
            "milliseconds: `python -m experiments.latency` with the same settings makes them",
            folder,
        )
        return None
    return to_timings(min(found, key=lambda latency: (latency.job["batch_size"], -latency.vision.size)))


def to_timings(latency: Latency) -> Timings:
    """Means over the rounds."""
    return Timings(
        latency.vision.mean(axis=1),
        latency.answer.mean(axis=1),
        {name: samples.mean(axis=1) for name, samples in latency.overhead.items()},
        latency.job["batch_size"],
        latency.vision.shape[1],
    )


def format_latency(latency: Latency) -> str:
    """A table of mean milliseconds per answer with intervals, and what they were measured on."""
    timings = to_timings(latency)
    means = timings.means()
    low, high = timings.bound(_NUM_RESAMPLES, seed=0)
    (vision,), (cost,) = means.shared, means.cost
    rows = [["", "vision", "prefill and decode", "predictor", "ms", "95% interval"]]
    rows += [
        [
            f"scale {scale}",
            f"{vision:.2f}",
            f"{whole - vision:.2f}",
            "",
            f"{whole:.2f}",
            f"{least:.2f} to {most:.2f}",
        ]
        for scale, whole, least, most in zip(latency.scales, cost, low.cost[0], high.cost[0], strict=True)
    ]
    rows += [
        [
            f"{name}, its overhead",
            "",
            "",
            f"{taken[0]:.2f}",
            "",
            f"{low.overhead[name][0]:.2f} to {high.overhead[name][0]:.2f}",
        ]
        for name, taken in means.overhead.items()
    ]
    num_batches, num_rounds = latency.vision.shape
    job = latency.job
    return (
        f"{format_table(rows)}\nmean milliseconds per answer at batch size {timings.batch_size}: "
        f"{num_batches * timings.batch_size} pictures in {num_rounds} rounds, {job['machine']}, "
        f"{job['num_threads']} threads, {latency.dtype}; intervals are over "
        "pictures, and do not cover drift between runs"
    )


if __name__ == "__main__":
    main()
