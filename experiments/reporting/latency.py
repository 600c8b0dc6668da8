"""Tables and lines about timings of a backbone and its predictors."""

from experiments.labels.latency import Latency
from experiments.reporting.tables import format_table
from experiments.results.timings import to_timings

_NUM_RESAMPLES = 10_000


def describe_latency(latency: Latency) -> str:
    """Return the number of timed images in a few words."""
    num_batches, num_rounds = latency.vision.shape[:2]
    return f"{num_batches * latency.job['batch_size']} images in {num_rounds} rounds"


def format_latency(latency: Latency) -> str:
    """Return a table of mean milliseconds per answer with intervals, and a description of the measurement."""
    timings = to_timings(latency)
    means = timings.means()
    low, high = timings.bound(_NUM_RESAMPLES, seed=0)
    (cost,) = means.cost
    rows = [["", "vision", "prefill and decode", "predictor", "ms", "95% interval"]]
    rows += [
        [
            f"scale {scale}",
            f"{vision:.2f}",
            f"{total - vision:.2f}",
            "",
            f"{total:.2f}",
            f"{low_total:.2f} to {high_total:.2f}",
        ]
        for scale, vision, total, low_total, high_total in zip(
            latency.scales, timings.mean_vision(), cost, low.cost[0], high.cost[0], strict=True
        )
    ]
    rows += [
        [
            f"overhead of {name}",
            "",
            "",
            f"{mean[0]:.2f}",
            "",
            f"{low.overhead[name][0]:.2f} to {high.overhead[name][0]:.2f}",
        ]
        for name, mean in means.overhead.items()
    ]
    return (
        f"{format_table(rows)}\nmean milliseconds per answer at batch size {timings.batch_size}: "
        f"{describe_latency(latency)}, {timings.machine}; intervals are over images, and do not cover drift "
        "between runs"
    )
