"""Noise-free oracles: budgeted oracles corrected for the outcome noise of a single answer.

There are two of them:

- **likelihood**: both the choice and the score use the expected score, the probability that an answer sampled
  from the model is the reference (its likelihood). It requires tasks whose samples have a single reference
  and are scored by exact match.
- **resampled**: samples are answered several times with sampled answers. For each run, the scale is chosen by
  the mean score in the other runs and scored on this run (cross-fitting).

Both are budgeted oracles of expected scores, so they are compared with the expected scores of the fixed
scales, which are lower than scores of greedy answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.costs import TimingMeans, Timings
from experiments.evaluation.curves import Curve, average
from experiments.evaluation.fronts import Floats, raise_budgets, trace_prices
from experiments.evaluation.metric_table import Bound
from experiments.evaluation.policies import Paths
from experiments.evaluation.policy_table import PolicyMeans
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Estimate, bootstrap, number_images
from experiments.labels.resampled import Resampled
from m3_backbone.ladder import find_coarsest
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import find_unit, space_budgets
from predictor.policy.switches import find_switches

NOISE_FREE: Mapping[str, str] = {
    "likelihood": "noise-free oracle, by likelihood",
    "resampled": "noise-free oracle, cross-fitted",
}
# The scorer of exact matches.
_EXACT = "exact"


@dataclass(frozen=True, eq=False)
class NoiseFreeOracle:
    """A budgeted oracle of expected scores, with intervals over images.

    `fixed_cost` and `fixed_score` `[num_scales]` are mean costs and expected scores of the fixed scales;
    `cost` and `score` `[num_points]` are the oracle's front, from cheap to expensive. `gap` is the score of
    this front minus that of the mix of these fixed scales, averaged over log-spaced budgets: the headroom
    without outcome noise.
    """

    fixed_cost: Estimate
    fixed_score: Estimate
    cost: Estimate
    score: Estimate
    gap: Estimate
    num_samples: int
    num_runs: int = 1


def expect_scores(nll: ArrayLike, reference_tokens: ArrayLike) -> Floats:
    """Return the probability that a sampled answer is the reference, `[num_samples, num_scales]`.

    It is `exp(-nll * reference_tokens)`, where `nll` is the mean negative log-likelihood (in nats) of the
    `reference_tokens` tokens of the reference, its end token included. It is a lower bound of the expected
    score if the scorer ignores case or a full stop.
    """
    return np.exp(-np.asarray(nll, dtype=np.float64) * np.asarray(reference_tokens))


def leave_one_out(score: ArrayLike) -> Floats:
    """Return the mean score in the other runs, for scores `[num_runs, num_samples, num_scales]`.

    Raises ValueError for fewer than two runs.
    """
    scores = np.asarray(score, dtype=np.float64)
    if len(scores) < 2:
        raise ValueError(f"resampled outcomes need two runs at least, got {len(scores)}")
    return (scores.sum(axis=0) - scores) / (len(scores) - 1)


def measure_noise_free(
    cost: ArrayLike,
    estimates: ArrayLike,
    score: ArrayLike,
    image_id: ArrayLike,
    *,
    num_budgets: int = 49,
    num_prices: int = 128,
    num_resamples: int,
    confidence: float = 0.95,
    seed: int = 0,
    timings: Timings | None = None,
) -> NoiseFreeOracle:
    """Return the oracle that chooses by `estimates` and is scored by `score`.

    Both are `[num_runs, num_samples, num_scales]`, and `cost` is `[num_samples, num_scales]`. Metrics are
    means over the runs at the same prices, those of the first run. For `likelihood` there is one run, and
    both are `expect_scores`; for `resampled` the estimates are `leave_one_out(score)`. `timings` are those
    whose means the costs are, if costs are measured times.
    """
    costs, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    image, unit, num_runs = number_images(image_id), find_unit(costs), len(scores)
    means, paths = PolicyMeans(image, timed=timings is not None), Paths.single(costs.shape[1])
    means.add_fixed(Bound.FIXED, costs, scores.mean(axis=0))
    runs = [find_switches(run, costs) for run in np.asarray(estimates, dtype=np.float64)]
    prices = trace_prices(runs[0], costs, unit=unit, num_prices=num_prices)
    for run, switches in enumerate(runs):
        means.add(run, Schedule.at_prices(switches, prices, unit), paths, costs, scores[run])
    budgets = space_budgets(costs, num_budgets)

    def measure(weights: np.ndarray, milliseconds: TimingMeans | None = None) -> dict[str, Floats]:
        resampled = means(weights, milliseconds)
        # Points run from expensive to cheap.
        cost, score = (
            np.mean([resampled[run][part] for run in range(num_runs)], axis=0)[:, ::-1] for part in (0, 1)
        )
        fixed_cost, fixed_score = resampled[Bound.FIXED]
        at = raise_budgets(budgets, fixed_cost)
        gap = Curve.of(cost, score).at(at) - Curve.of(fixed_cost, fixed_score).hull().at(at)
        return {
            "fixed_cost": fixed_cost,
            "fixed_score": fixed_score,
            "cost": cost,
            "score": score,
            "gap": average(gap),
        }

    estimates_by_name = bootstrap(
        measure,
        means.images.num_images,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
        timings=timings,
    )
    return NoiseFreeOracle(**estimates_by_name, num_samples=len(costs), num_runs=num_runs)


def list_noise_free(
    test: OutcomeTable, cost: Floats, resampled: Resampled | None, **settings: Any
) -> dict[str, NoiseFreeOracle]:
    """Return the oracles that these outcomes allow, by name; `settings` go to `measure_noise_free`."""
    oracles = {}
    has_one_reference = all(len(references) == 1 for references in test.references)
    if test.options is None and has_one_reference and set(test.metric) == {_EXACT}:
        expected = expect_scores(test.nll, test.reference_tokens)[None]
        oracles["likelihood"] = measure_noise_free(cost, expected, expected, test.image_id, **settings)
    if resampled is not None:
        # Coinciding scales have one sampled answer per run.
        rows, coarsest = resampled.rows, find_coarsest(test.visual_tokens[resampled.rows])
        sampled = np.take_along_axis(resampled.score, coarsest[None], axis=2)
        by_others = leave_one_out(sampled)
        oracles["resampled"] = measure_noise_free(
            cost[rows], by_others, sampled, test.image_id[rows], **settings
        )
    return oracles
