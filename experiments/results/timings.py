"""Timings of predictors and backbone on this machine, read from the results of `experiments.latency`."""

import logging
from collections.abc import Mapping
from pathlib import Path

from experiments.evaluation.costs import Timings
from experiments.labels.latency import Latency
from experiments.labels.machine import count_threads, describe_machine

log = logging.getLogger(__name__)


def find_timings(
    folder: Path,
    fingerprints: Mapping[str, str],
    predictors: Mapping[str, str],
    batch_size: int = 1,
    *,
    long_answers: bool = False,
) -> Timings | None:
    """Return the timings of this machine, backbone and predictors in `folder`; None if there are none.

    `fingerprints` are those of the labels; `predictors` maps names to digests. A file may hold timings of
    further predictors. Only timings with this batch size and this process's number of threads count; among
    several files the one with the most measurements is used, among those with timings of long answers if
    `long_answers` and there are any. Logs a warning if there are none.
    """
    machine = describe_machine()

    def matches(latency: Latency) -> bool:
        timed_fingerprints = latency.job["fingerprints"]
        return (
            latency.job["machine"] == machine
            and latency.job["num_threads"] == count_threads()
            and latency.job["batch_size"] == batch_size
            and all(timed_fingerprints.get(key) == value for key, value in fingerprints.items())
            and predictors.items() <= latency.predictors.items()
        )

    timed = [latency for path in sorted(folder.glob("*.json")) if matches(latency := Latency.read(path))]
    if not timed:
        log.warning(
            "no timings of these predictors, this backbone and this machine with %d threads in batches of %d "
            "in %s, so costs in milliseconds are left out: run `tokenscale latency` with the same "
            "settings",
            count_threads(),
            batch_size,
            folder,
        )
        return None
    if long_answers:
        timed = [latency for latency in timed if latency.per_token is not None] or timed
    return to_timings(max(timed, key=lambda latency: latency.vision.size))


def to_timings(latency: Latency) -> Timings:
    """Return the timings of each image, averaged over the rounds."""
    return Timings(
        latency.vision.mean(axis=1),
        latency.answer.mean(axis=1),
        {name: samples.mean(axis=1) for name, samples in latency.overhead.items()},
        latency.job["batch_size"],
        latency.vision.shape[1],
        f"{latency.job['machine']}, {latency.job['num_threads']} threads, {latency.dtype}",
        **{name: samples.mean(axis=1) for name, samples in latency.optional.items()},
    )
