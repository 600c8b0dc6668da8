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
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.costs import TimingMeans, Timings
from experiments.evaluation.curves import Curve, average
from experiments.evaluation.fronts import Floats, Grid, raise_budgets, trace_prices
from experiments.evaluation.metric_table import Bound
from experiments.evaluation.policies import Paths
from experiments.evaluation.policy_table import PolicyMeans
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Bootstrap, Estimate, number_images
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


class OraclePoints:
    """Operating points of an oracle that chooses by `estimates` and is scored by `score`.

    Arguments are those of `measure_noise_free`. `cost` `[num_samples, num_scales]` are the costs.
    """

    def __init__(
        self,
        cost: ArrayLike,
        estimates: ArrayLike,
        score: ArrayLike,
        image_id: ArrayLike,
        *,
        num_prices: int,
        is_timed: bool,
    ) -> None:
        self.cost, scores = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
        self.num_runs = len(scores)
        unit, paths = find_unit(self.cost), Paths.single(self.cost.shape[1])
        self._means = PolicyMeans(number_images(image_id), timed=is_timed)
        self._means.add_fixed(Bound.FIXED, self.cost, scores.mean(axis=0))
        runs = [find_switches(run, self.cost) for run in np.asarray(estimates, dtype=np.float64)]
        prices = trace_prices(runs[0], self.cost, unit=unit, num_prices=num_prices)
        for run, switches in enumerate(runs):
            self._means.add(run, Schedule.at_prices(switches, prices, unit), paths, self.cost, scores[run])

    @property
    def num_images(self) -> int:
        """Number of images of the samples."""
        return self._means.images.num_images

    def measure(
        self, weights: np.ndarray, milliseconds: TimingMeans | None = None
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Return mean costs and scores under weights of the images, as `PolicyTable.measure` does.

        The first pair, `[num_resamples, num_scales]`, is that of the fixed scales; the second,
        `[num_resamples, num_points]`, that of the oracle, from cheap to expensive.
        """
        resampled = self._means(weights, milliseconds)
        # Points run from expensive to cheap.
        cost, score = (
            np.mean([resampled[run][part] for run in range(self.num_runs)], axis=0)[:, ::-1]
            for part in (0, 1)
        )
        fixed_cost, fixed_score = resampled[Bound.FIXED]
        return (fixed_cost, fixed_score), (cost, score)


def measure_noise_free(
    cost: ArrayLike,
    estimates: ArrayLike,
    score: ArrayLike,
    image_id: ArrayLike,
    *,
    grid: Grid = Grid(),
    bootstrap: Bootstrap = Bootstrap(),
    timings: Timings | None = None,
) -> NoiseFreeOracle:
    """Return the oracle that chooses by `estimates` and is scored by `score`.

    Both are `[num_runs, num_samples, num_scales]`, and `cost` is `[num_samples, num_scales]`. Metrics are
    means over the runs at the same prices, those of the first run. For `likelihood` there is one run, and
    both are `expect_scores`; for `resampled` the estimates are `leave_one_out(score)`. `timings` are those
    whose means the costs are, if costs are measured times.
    """
    points = OraclePoints(
        cost, estimates, score, image_id, num_prices=grid.num_prices, is_timed=timings is not None
    )
    budgets = space_budgets(points.cost, grid.num_budgets)

    def measure(weights: np.ndarray, milliseconds: TimingMeans | None = None) -> dict[str, Floats]:
        (fixed_cost, fixed_score), (cost, score) = points.measure(weights, milliseconds)
        at = raise_budgets(budgets, fixed_cost)
        gap = Curve.of(cost, score).at(at) - Curve.of(fixed_cost, fixed_score).hull().at(at)
        return {
            "fixed_cost": fixed_cost,
            "fixed_score": fixed_score,
            "cost": cost,
            "score": score,
            "gap": average(gap),
        }

    estimates_by_name = bootstrap.estimate(measure, points.num_images, timings)
    return NoiseFreeOracle(**estimates_by_name, num_samples=len(points.cost), num_runs=points.num_runs)


@dataclass(frozen=True, eq=False)
class ExpectedScores:
    """Scores without outcome noise: `estimates` to choose by and `score` to be scored by.

    Both are `[num_runs, num_rows, num_scales]`; `rows` selects the samples that have them.
    """

    rows: NDArray[np.int64]
    estimates: Floats
    score: Floats


def list_expected_scores(test: OutcomeTable, resampled: Resampled | None) -> dict[str, ExpectedScores]:
    """Return the expected scores that these outcomes allow, by name of the oracle (`NOISE_FREE`)."""
    expected = {}
    has_one_reference = all(len(references) == 1 for references in test.references)
    if test.options is None and has_one_reference and set(test.metric) == {_EXACT}:
        likelihood = expect_scores(test.nll, test.reference_tokens)[None]
        expected["likelihood"] = ExpectedScores(np.arange(len(test)), likelihood, likelihood)
    if resampled is not None:
        # Coinciding scales have one sampled answer per run.
        coarsest = find_coarsest(test.visual_tokens[resampled.rows])
        sampled = np.take_along_axis(resampled.score, coarsest[None], axis=2)
        expected["resampled"] = ExpectedScores(resampled.rows, leave_one_out(sampled), sampled)
    return expected


def list_noise_free(
    test: OutcomeTable, cost: Floats, resampled: Resampled | None, **settings: Any
) -> dict[str, NoiseFreeOracle]:
    """Return the oracles that these outcomes allow, by name; `settings` go to `measure_noise_free`."""
    return {
        name: measure_noise_free(
            cost[expected.rows],
            expected.estimates,
            expected.score,
            test.cluster_id[expected.rows],
            **settings,
        )
        for name, expected in list_expected_scores(test, resampled).items()
    }
