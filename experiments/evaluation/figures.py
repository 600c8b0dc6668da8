"""What an evaluation finds: figures with their intervals, as plain data that displays and reports draw on.

**Matched mean visual tokens.** For each budget a predictor's operating points are chosen on the calibration
samples (`fronts.CalibratedPolicy`): the two prices around the budget and the chance of each. On the test
samples these cost whatever they cost; at exactly that realised mean cost the score is compared with the
mix's, with the reference predictor's (on the line through its own calibrated operating points) and with the
budgeted oracle's. The mix may pick its scales on the test samples themselves, which is in its favour.

Means are over budgets evenly spaced in the logarithm, from the mean cost of the cheapest scale to that of the
finest on calibration (trapezoid rule). The gap share is the part of the way from the mix to the budgeted
oracle; its mean is the ratio of the means.

**Not inferior for least.** A policy is not inferior to a fixed scale at a margin if its mean score falls
short by no more than that. The operating point is the cheapest that calibration allows: on its hull the mean
score is the fixed scale's less the margin. On test it costs and scores what it does; it is shown not to be
inferior if the whole interval of the difference lies at or above minus the margin. Beside it stands the plain
figure, the least cost at which the front on test reaches the fixed scale's score less the margin: that one is
picked on the test samples, and flatters. The saving factor is the fixed scale's mean cost over the policy's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.accounts import Account
from experiments.evaluation.calibration import Reliability
from experiments.evaluation.fronts import CalibratedPolicy, Columns, Floats
from experiments.evaluation.keys import Bound
from experiments.evaluation.merits import ROUNDING
from experiments.evaluation.oracles import LuckFree
from experiments.evaluation.statistics import Estimate
from predictor.policy.front import Front

# Fixed scales that a policy should not be inferior to.
FINEST, BEST_FIXED = "finest", "best fixed"
# Shares of the gap from the coarsest to the finest scale, at which CPT(x) is given.
RECOVERED = (0.5, 0.8)


@dataclass(frozen=True, eq=False)
class Point:
    """A mean cost and a mean score, each with its interval."""

    cost: Estimate
    score: Estimate


@dataclass(frozen=True, eq=False)
class Merits:
    """Figures of a front alone, as `merits` defines them; `call_shares` are CPT(x) by x.

    None for what does not exist: the finest scale costs no more than the coarsest or is no better, or a share
    of the gap is never recovered.
    """

    average_quality: Estimate | None
    average_gap_recovered: Estimate | None
    hypervolume: Estimate
    call_shares: Mapping[float, Estimate | None]


@dataclass(frozen=True, eq=False)
class NonInferiority:
    """What it takes not to be inferior to a fixed scale at a margin, as above.

    `baseline` is FINEST or BEST_FIXED, `column` that scale's. `front_cost` and `front_saving` belong to the
    front on test; they are None where it never reaches that score. `cost`, `saving`, `difference` and the
    verdict `is_shown` belong to the operating point that calibration chose, drawn from `prices`; they are
    None, and `prices` empty, where no point was as good on calibration.
    """

    baseline: str
    column: int
    margin: float
    front_cost: Estimate | None
    front_saving: Estimate | None
    prices: tuple[float, ...] = ()
    cost: Estimate | None = None
    saving: Estimate | None = None
    difference: Estimate | None = None
    is_shown: bool | None = None


@dataclass(frozen=True, eq=False)
class Difference:
    """Policy `first` minus `second` at the mean costs of `first`, averaged over log-spaced budgets.

    `second` is the name of a policy, or `Bound.MIX`. `p_value` is two-sided, from the paired bootstrap;
    `adjusted` is Holm's over all differences of a comparison: every policy to the mix, and the first policy
    to every other one. `floor` and `adjusted_floor` are the smallest values that the number of resamples
    allows: of a p-value at its floor it is only known that it is not larger.
    """

    first: str
    second: str | Literal[Bound.MIX]
    mean: Estimate
    p_value: float
    adjusted: float
    floor: float
    adjusted_floor: float

    @property
    def label(self) -> str:
        """Names of both policies for tables."""
        return f"{self.first} - {self.second.label if isinstance(self.second, Bound) else self.second}"


@dataclass(frozen=True, eq=False)
class DefaultPoint:
    """The price that the predictor is used at when no budget is given, and its choices on the test samples.

    Chosen on calibration, in training (`predictor.policy.pricing`). `to_best_fixed` is the difference in
    score to the fixed scale that is best on calibration. Of the samples that some scale answers, the share
    `smallest_right` got their smallest sufficient scale, `too_coarse` a coarser and `too_fine` a finer one;
    these are None where no scale answers any sample. `confusion` `[num_scales + 1, num_scales]` counts
    samples by needed and chosen scale, last those that no scale answers. What a cascade chooses is the scale
    that it stops at.
    """

    price: float
    choice: Columns
    point: Point
    to_best_fixed: Estimate
    smallest_right: Estimate | None
    too_coarse: Estimate | None
    too_fine: Estimate | None
    confusion: Columns


@dataclass(frozen=True, eq=False)
class PredictorFigures:
    """Figures of one predictor on the test samples.

    `trace` is every traced price; `front` `[num_points]` the operating points that calibration chose, from
    cheap to dear; `plan` `[num_budgets, num_points]` the chance of each under a budget. At the `budgets`
    `[num_budgets]`: realised `cost`, share of the samples for which each scale is `chosen` `[num_budgets,
    num_scales]`, `score` with its band, and the differences `to_mix` and `to_reference` and the `gap_share`
    at that cost. `to_reference` is None for the reference itself. Where mix and budgeted oracle meet there is
    no gap to share: `gap_share` is nan at that budget, `mean_gap_share` None where they meet at all of them.
    `points` are those of `front` with intervals: its band. `reliability` is None for a policy that does not
    estimate anything.
    """

    name: str
    policy: CalibratedPolicy
    trace: Front
    front: Front
    points: Point
    plan: Floats
    budgets: Floats
    cost: Floats
    chosen: Floats
    score: Estimate
    to_mix: Estimate
    to_reference: Estimate | None
    gap_share: Estimate
    mean_to_mix: Estimate
    mean_to_reference: Estimate | None
    mean_gap_share: Estimate | None
    default: DefaultPoint
    merits: Merits
    non_inferiority: Sequence[NonInferiority]
    reliability: Reliability | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictors on one test split, beside what bounds them; costs and budgets are those of `account`.

    `fixed` are the fixed scales `[num_scales]`, `best_fixed` the column of the best on calibration, `mix` the
    columns on the hull. `oracle` is the budgeted oracle's front, from cheap to dear; `oracles` what rules
    that are handed the outcomes reach (`oracles.RULES`). `mix_scores` and `oracle_scores` `[num_budgets]` are
    bands at the budgets, `oracle_gap` their mean distance; `bounds` the merits of the mix and the budgeted
    oracle. `luck_free` are oracles without luck (`oracles`), those that these outcomes allow. `differences`
    are tested together. `draws` are the resamples, drawn with `bootstrap_seed`, of each predictor's headline
    figures (`evaluation.draws`).
    """

    account: Account
    scales: tuple[int, ...]
    num_samples: int
    num_images: int
    num_calibration_samples: int
    confidence: float
    num_resamples: int
    bootstrap_seed: int
    budgets: Floats
    fixed: Point
    best_fixed: int
    mix: Columns
    oracle: Front
    oracles: Mapping[str, Point]
    mix_scores: Estimate
    oracle_scores: Estimate
    oracle_gap: Estimate
    bounds: Mapping[Bound, Merits]
    luck_free: Mapping[str, LuckFree]
    differences: Sequence[Difference]
    predictors: Sequence[PredictorFigures]
    reference: str | None
    draws: Mapping[str, Mapping[str, NDArray[np.floating]]]

    @property
    def nothing_to_gain(self) -> bool:
        """Whether no choice of scales can do better on these samples than the mix.

        True if all scales (or the only one) cost the same, or if the budgeted oracle, which reads the
        outcomes, is nowhere above the mix. False if the oracle is cheaper than the cheapest fixed scale,
        which happens if the cheapest scale differs between samples.
        """
        costs = self.fixed.cost.value
        if self.oracle.cost[0] < costs.min() * (1 - ROUNDING):
            return False
        gap = float((self.oracle_scores.value - self.mix_scores.value).max())
        return gap <= ROUNDING or float(np.ptp(costs)) <= ROUNDING * float(costs.max())

    @property
    def finer_scales_help(self) -> bool:
        """Whether some fixed scale that costs more than the cheapest scores more on these samples.

        If none does, the cheapest scale alone is the mix. The budgeted oracle may still be above the mix, as
        it reads for each sample which scale is right.
        """
        return len(self.mix) > 1

    def find(self, name: str) -> PredictorFigures:
        """The figures of the predictor of that name."""
        return next(figures for figures in self.predictors if figures.name == name)

    def list_positions(self, number: int) -> list[int]:
        """Positions of `number` budgets inside the range, evenly spaced: the ones that tables show."""
        return [round(i * (len(self.budgets) - 1) / (number + 1)) for i in range(1, number + 1)]
