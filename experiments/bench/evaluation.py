"""Time and memory of a comparison on synthetic outcomes."""

import json
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from experiments.evaluation.comparing import measure_table
from experiments.evaluation.fronts import Floats, Grid
from experiments.evaluation.policies import Policy, PredictorPolicy, ScoredSamples
from experiments.evaluation.policy_table import PolicyTable
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.machine import describe_machine
from experiments.reporting.tables import format_table

Result = TypeVar("Result")
_CALIBRATION = 4  # test images per calibration image


def make_outcomes(
    rng: np.random.Generator, num_samples: int, num_scales: int
) -> tuple[ScoredSamples, Floats]:
    """Return samples whose cost grows fourfold per scale, and the true probability of a correct answer."""
    demand = rng.normal(size=(num_samples, 1))
    chance = 1 / (1 + np.exp(-2 * (np.linspace(-1, 2, num_scales) - demand)))
    score = (rng.random(chance.shape) < chance).astype(np.float64)
    cost = np.broadcast_to(4.0 ** np.arange(num_scales), chance.shape).copy()
    return ScoredSamples(cost, cost, chance, score), chance


def measure(
    *,
    num_images: int,
    questions_per_image: int,
    num_scales: int,
    num_prices: int,
    num_resamples: int,
    num_budgets: int,
    seed: int,
) -> dict[str, Any]:
    """Return wall-clock and CPU seconds of metrics and bootstrap, and the peak memory in GB."""
    rng = np.random.default_rng(seed)
    num_calibration = max(1, num_images // _CALIBRATION)
    parts = [
        make_outcomes(rng, images * questions_per_image, num_scales)
        for images in (num_calibration, num_images)
    ]
    image = np.repeat(np.arange(num_images), questions_per_image)
    policies = []
    for name, noise in (("keen", 0.1), ("dull", 0.4)):
        first, second = (np.clip(chance + rng.normal(0, noise, chance.shape), 0, 1) for _, chance in parts)
        policies.append(PredictorPolicy(name, first, second))

    def prepare(policies: Sequence[Policy]) -> PolicyTable:
        return PolicyTable(
            parts[0][0],
            parts[1][0],
            image,
            policies,
            overhead=dict.fromkeys(("keen", "dull"), 0.0),
            grid=Grid(num_budgets, num_prices),
        )

    _, plain = _time(lambda: measure_table(prepare(policies[:1]), None, np.ones((1, num_images))))
    table = prepare(policies)
    bootstrap = Bootstrap(num_resamples, seed=seed)
    metrics, bands = _time(lambda: bootstrap.resample(partial(measure_table, table, "dull"), num_images))
    return {
        "num_samples": len(image),
        "num_images": num_images,
        "num_prices": num_prices,
        "num_points": {name: int(policy.points.num_points) for name, policy in table.policies.items()},
        "num_resamples": num_resamples,
        "metrics": plain,
        "bootstrap": bands,
        "num_metrics": int(sum(np.size(metric.value) for metric in metrics.values())),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "machine": describe_machine(),
    }


def _time(function: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    seconds = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
    return result, seconds


def report(results: dict[str, Any]) -> None:
    """Print a table, then all results as one line of JSON."""
    print(
        f"{results['num_samples']:,} samples, {results['num_images']:,} images, "
        f"{results['num_prices']} prices, {results['num_resamples']:,} resamples, "
        f"{results['num_metrics']:,} metrics"
    )
    rows: list[tuple[str, ...]] = [("part", "seconds", "of the processor")]
    for part in ("metrics", "bootstrap"):
        rows.append((part, *(f"{results[part][clock]:.1f}" for clock in ("seconds", "processor_seconds"))))
    print(format_table(rows))
    print(f"at most {results['gigabytes']:.1f} GB")
    print(json.dumps(results))
