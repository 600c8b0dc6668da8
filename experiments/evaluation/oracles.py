"""Rules that are handed the outcomes, score included, to choose a scale: bounds, never methods.

Those of `RULES` and the budgeted oracle (`fronts.find_budgeted_oracle`) take a maximum over outcomes that are
in part luck, and therefore flatter: a sample that is answered at random is right at some scale more often
than not. Two oracles are without luck. They choose by one measurement and are scored by another, or by an
expectation:

- **likelihood**: the score is the chance that an answer drawn from the model is the reference, which its
  likelihood gives; it is what choice and score are. For tasks whose samples have a single reference that has
  to be met exactly.
- **resampled**: the outcomes are labelled several times with answers drawn at random; the scale is chosen by
  the mean score in the other runs, and scored on this one, each run in turn.

Both are budgeted oracles of expected scores; so the fixed scales beside them have expected scores too, which
are lower than those of greedy answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.contenders import Ways
from experiments.evaluation.fronts import (
    ORACLES,
    Columns,
    Floats,
    choose_as_oracle,
    find_smallest_right,
    raise_budgets,
    trace_prices,
)
from experiments.evaluation.keys import Bound
from experiments.evaluation.merits import Curve, average
from experiments.evaluation.policy_means import PolicyMeans
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import Estimate, bootstrap, number_images
from experiments.evaluation.timings import TimingMeans, Timings
from predictor.policy.front import find_unit, space_budgets
from predictor.policy.switches import find_switches

# Oracles that choose one scale per sample, without a price.
RULES: Mapping[str, str] = dict(ORACLES) | {"stable": "stable oracle"}
LUCK_FREE = {
    "likelihood": "oracle without luck, by likelihood",
    "resampled": "oracle without luck, resampled",
}
# The metric that the reference alone satisfies.
EXACT = "exact"


def choose_by_rule(score: ArrayLike, rule: str) -> Columns:
    """The choice `[num_samples]` of one of `RULES`, from `score` `[num_samples, num_scales]`."""
    if rule == "stable":
        return choose_stably(score)
    return choose_as_oracle(score, score, rule)  # type: ignore[arg-type]


def choose_stably(score: ArrayLike) -> Columns:
    """The stable oracle's choice `[num_samples]`: the smallest scale from which on the answer stays right.

    Right is the best score that any scale gives to the sample, as in `find_smallest_right`. A sample that is
    not right at the finest scale, or at none, has no such scale and is charged the finest.
    """
    scores = np.asarray(score)
    smallest, finest = find_smallest_right(scores), scores.shape[1] - 1
    best = np.where(smallest >= 0, scores[np.arange(len(scores)), smallest], np.inf)
    stable, stays = np.full(len(scores), finest), np.ones(len(scores), dtype=bool)
    for column in range(finest, -1, -1):
        stays &= scores[:, column] == best
        stable[stays] = column
    return stable


@dataclass(frozen=True, eq=False)
class LuckFree:
    """A budgeted oracle of expected scores, with intervals over images.

    `fixed_score` `[num_scales]` are the expected scores of the fixed scales; `cost` and `score`
    `[num_points]` the oracle's front, from cheap to dear. `gap` is the mean distance between this front and
    the mix of these fixed scales over log budgets: what is there to be gained when nobody is lucky.
    """

    fixed_cost: Estimate
    fixed_score: Estimate
    cost: Estimate
    score: Estimate
    gap: Estimate
    num_samples: int
    num_runs: int = 1


def expect_scores(nll: ArrayLike, reference_tokens: ArrayLike) -> Floats:
    """Chance that an answer drawn from the model is the reference, `[num_samples, num_scales]`.

    `exp(-nll * reference_tokens)`: the probability of the reference, its end token included, of whose
    `reference_tokens` tokens `nll` is the mean negative log-likelihood. A lower bound where a scorer forgives
    case or a full stop.
    """
    return np.exp(-np.asarray(nll, dtype=np.float64) * np.asarray(reference_tokens))


def leave_one_out(score: ArrayLike) -> Floats:
    """Mean score in the other runs, for runs `[num_runs, num_samples, num_scales]`; two at least."""
    scores = np.asarray(score, dtype=np.float64)
    if len(scores) < 2:
        raise ValueError(f"resampled outcomes need two runs at least, got {len(scores)}")
    return (scores.sum(axis=0) - scores) / (len(scores) - 1)


def measure_luck_free(
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
) -> LuckFree:
    """An oracle that chooses by `estimates` and is scored by `score`: `[num_runs, num_samples, num_scales]`.

    `cost` is `[num_samples, num_scales]`. Figures are means over the runs at the same prices; prices are
    those of the first run. For `likelihood` both are `expect_scores`, one run; for `resampled` the estimates
    are `leave_one_out` of the scores. `timings` are those that the costs are means of, if they are measured.
    """
    costs = np.asarray(cost, dtype=np.float64)
    by, scores = (np.asarray(each, dtype=np.float64) for each in (estimates, score))
    image, unit, num_runs = number_images(image_id), find_unit(costs), len(scores)
    means, ways = PolicyMeans(image, timed=timings is not None), Ways.single(costs.shape[1])
    means.add_fixed(Bound.FIXED, costs, scores.mean(axis=0))
    runs = [find_switches(each, costs) for each in by]
    prices = trace_prices(runs[0], costs, unit=unit, num_prices=num_prices)
    for run, switches in enumerate(runs):
        means.add(run, Schedule.at_prices(switches, prices, unit), ways, costs, scores[run])
    budgets = space_budgets(costs, num_budgets)

    def measure(weights: np.ndarray, milliseconds: TimingMeans | None = None) -> dict[str, Floats]:
        found = means(weights, milliseconds)
        front = [np.mean([found[run][what] for run in range(num_runs)], axis=0)[:, ::-1] for what in (0, 1)]
        fixed_cost, fixed_score = found[Bound.FIXED]
        at = raise_budgets(budgets, fixed_cost)
        gap = Curve.of(*front).at(at) - Curve.of(fixed_cost, fixed_score).hull().at(at)
        return {
            "fixed_cost": fixed_cost,
            "fixed_score": fixed_score,
            "cost": front[0],
            "score": front[1],
            "gap": average(gap),
        }

    found = bootstrap(
        measure,
        means.images.num_images,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
        timings=timings,
    )
    return LuckFree(**found, num_samples=len(costs), num_runs=num_runs)
