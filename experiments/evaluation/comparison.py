"""Results of a comparison: policies, fixed scales and oracles on one test split, in one cost measure.

`comparing` computes them.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.calibration import Reliability
from experiments.evaluation.costs import CostMeasure
from experiments.evaluation.curves import ROUNDING
from experiments.evaluation.fronts import (
    CalibratedPolicy,
    Columns,
    Floats,
)
from experiments.evaluation.metric_table import (
    Bound,
    Key,
    Ladder,
    Metric,
    MetricTable,
    Opponent,
    Predictor,
    Rule,
)
from experiments.evaluation.metrics import (
    Baseline,
    mean_gap,
    point_cost,
    point_score,
    score_at_budgets,
)
from experiments.evaluation.noise_free import NoiseFreeOracle
from experiments.evaluation.policies import Paths
from experiments.evaluation.statistics import (
    Bootstrap,
    Estimate,
)
from predictor.policy.front import Front, upper_hull


@dataclass(frozen=True, eq=False)
class Difference:
    """Policy `first` minus `second` at the mean costs of `first`, averaged over log-spaced budgets.

    `p_value` is two-sided, from the paired bootstrap. `adjusted` is the p-value after Holm's correction over
    all differences of a comparison: every policy minus the mix, and the first policy minus every other one
    and minus the mix of every other backbone. `floor` and `adjusted_floor` are the smallest values that the
    number of resamples allows; a p-value at its floor is an upper bound.
    """

    first: Predictor
    second: Opponent
    mean: Estimate
    p_value: float
    adjusted: float
    floor: float
    adjusted_floor: float

    @property
    def label(self) -> str:
        """Names of both policies, as tables show them."""
        second = self.second.name if isinstance(self.second, Predictor) else self.second.label
        return f"{self.first.name} - {second}"


@dataclass(frozen=True, eq=False)
class DefaultPrice:
    """The price that a policy uses when no budget is given, and its choices on the test samples.

    Training chose `price` on the calibration samples (`predictor.policy.pricing`). `choice` `[num_samples]`
    are columns of scales; for a cascade, of the scale at which it stops. Of coinciding scales it is the
    coarsest. `path` `[num_samples]` are numbers of `paths`: the scales that are tried, of which `start`
    `[num_samples]` are the columns of the first: `choice`, except for a cascade. `cost` and `score`
    `[num_samples]` are those of each sample, overhead included. With `is_best_fixed`, every answer is that of
    the best fixed scale. `confusion` `[num_scales + 1, num_scales]` counts samples by needed scale (last row:
    no scale answers them) and chosen scale.
    """

    price: float
    choice: Columns
    paths: Paths
    path: NDArray[np.integer[Any]]
    start: Columns
    cost: Floats
    score: Floats
    is_best_fixed: bool
    confusion: Columns


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether a policy is shown to be non-inferior to the fixed scale in `column` at a margin.

    `prices` are those of the operating point chosen on calibration. If no point is non-inferior on
    calibration, `prices` is empty and `is_shown` is None.
    """

    baseline: Baseline
    column: int
    prices: tuple[float, ...]
    is_shown: bool | None


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """Operating points and metrics (`find`) of one policy on the test samples.

    `policy` holds the operating points chosen on calibration, from cheap to expensive, and `plan`
    `[num_budgets, num_points]` the probability of each under each budget. `trace` is the front of all traced
    prices. At the `budgets` `[num_budgets]`, `cost` is the realized mean cost and `chosen` `[num_budgets,
    num_scales]` the share of samples answered at each scale. `reliability` is None for a policy without
    estimates. `metrics` is the metric table of the whole comparison, in which `key` identifies this policy.
    """

    name: str
    policy: CalibratedPolicy
    trace: Front
    plan: Floats
    budgets: Floats
    cost: Floats
    chosen: Floats
    default: DefaultPrice
    verdicts: Sequence[Verdict]
    reliability: Reliability | None
    metrics: MetricTable
    key: Predictor

    def find(self, metric: Metric, at: Hashable = None) -> Estimate | None:
        """Return a metric of this policy; None if it is a single number that does not exist."""
        return self.metrics.find(self.key, metric, at)

    def __getitem__(self, metric: Metric | tuple[Metric, Hashable]) -> Estimate:
        """Return a measured metric, nan where it does not exist; KeyError if it was not measured."""
        key = Key(self.key, *metric) if isinstance(metric, tuple) else Key(self.key, metric)
        return self.metrics[key]

    @property
    def front(self) -> Front:
        """Mean cost and score on the test samples at each operating point, from cheap to expensive."""
        return Front(self[point_cost].value, self[point_score].value, self.policy.price)

    def rename(self, name: str) -> "PolicyResult":
        """Return the same result under another name."""
        return replace(self, name=name)


@dataclass(frozen=True, eq=False)
class LadderResult:
    """Fixed scales of another backbone on the test samples, `cost` and `score` `[num_scales]`.

    `difference` is the first policy minus their mix, averaged over the budgets from `lowest_cost` on, which
    the cheapest of them can meet; None and nan if there are none.
    """

    name: str
    scales: tuple[int, ...]
    cost: Estimate
    score: Estimate
    difference: Difference
    lowest_cost: float | None

    @property
    def label(self) -> str:
        """Name of the mix in tables and plots."""
        return Ladder(self.name).label

    @property
    def mix(self) -> Columns:
        """Columns of the fixed scales on the hull."""
        return upper_hull(self.cost.value, self.score.value)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Policies, fixed scales and oracles on one test split, in one cost measure.

    `best_fixed` is the column of the fixed scale that is best on calibration, `mix` the columns of the fixed
    scales on the hull. `coinciding` `[num_scales]` is the share of the test samples on which each scale
    coincides with the next coarser one. `oracle` is the budgeted oracle's front, from cheap to expensive.
    `noise_free` holds the noise-free oracles that can be computed from these outcomes, `ladders` the fixed
    scales of other backbones. The p-values of `differences` are corrected together. All numbers are in
    `metrics`.
    """

    measure: CostMeasure
    scales: tuple[int, ...]
    num_samples: int
    num_images: int
    num_calibration_samples: int
    bootstrap: Bootstrap
    budgets: Floats
    best_fixed: int
    mix: Columns
    coinciding: Floats
    oracle: Front
    noise_free: Mapping[str, NoiseFreeOracle]
    differences: Sequence[Difference]
    policies: Sequence[PolicyResult]
    reference: str | None
    metrics: MetricTable
    ladders: Sequence[LadderResult] = ()

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return self.bootstrap.confidence

    @property
    def fixed_cost(self) -> Estimate:
        """Mean costs of the fixed scales, `[num_scales]`."""
        return self.metrics[Key(Bound.FIXED, point_cost)]

    @property
    def fixed_score(self) -> Estimate:
        """Mean scores of the fixed scales, `[num_scales]`."""
        return self.metrics[Key(Bound.FIXED, point_score)]

    def bound_scores(self, bound: Bound) -> Estimate:
        """Return the scores of the mix or of the budgeted oracle at the budgets, `[num_budgets]`."""
        return self.metrics[Key(bound, score_at_budgets)]

    def rule(self, name: str) -> tuple[Estimate, Estimate]:
        """Return mean cost and mean score of the oracle with one of `fronts.RULES`."""
        return self.metrics[Key(Rule(name), point_cost)], self.metrics[Key(Rule(name), point_score)]

    @property
    def oracle_gap(self) -> Estimate:
        """Score of the budgeted oracle minus the mix, averaged over log-spaced budgets."""
        return self.metrics[Key(Bound.BUDGETED, mean_gap)]

    @property
    def nothing_to_gain(self) -> bool:
        """Whether no choice of scales can exceed the mix on these samples.

        True if all scales cost the same, or if the budgeted oracle, which reads the outcomes, is nowhere
        above the mix. False if the oracle is cheaper than the cheapest fixed scale, which happens if the
        cheapest scale differs between samples.
        """
        costs = self.fixed_cost.value
        if self.oracle.cost[0] < costs.min() * (1 - ROUNDING):
            return False
        gap = float((self.bound_scores(Bound.BUDGETED).value - self.bound_scores(Bound.MIX).value).max())
        return gap <= ROUNDING or float(np.ptp(costs)) <= ROUNDING * float(costs.max())

    @property
    def finer_scales_help(self) -> bool:
        """Whether some fixed scale scores more than the cheapest one on these samples.

        If none does, the mix is the cheapest scale alone. The budgeted oracle may still be above the mix,
        because it knows for each sample which scale answers correctly.
        """
        return len(self.mix) > 1

    def find(self, name: str) -> PolicyResult:
        """Return the result of the policy of that name."""
        return next(result for result in self.policies if result.name == name)

    def list_positions(self, number: int) -> list[int]:
        """Return the positions of `number` evenly spaced budgets inside the range, for tables."""
        return [round(i * (len(self.budgets) - 1) / (number + 1)) for i in range(1, number + 1)]
