"""What an evaluation finds: figures with their intervals, as plain data that displays and reports draw on.

**Matched mean visual tokens.** For each budget a predictor's operating points are chosen on the calibration
samples (`fronts.CalibratedPolicy`): the two prices around the budget and the chance of each. On the test
samples these cost whatever they cost; at exactly that realised mean cost the score is compared with the
mix's, with the reference predictor's (on the line through its own calibrated operating points) and with the
budgeted oracle's. The mix may pick its scales on the test samples themselves, which is in its favour.

Means are over budgets evenly spaced in the logarithm, from the mean cost of the cheapest scale to that of the
finest on calibration (trapezoid rule). The gap share is the part of the way from the mix to the budgeted
oracle; its mean is the ratio of the means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.evaluation.accounts import Account
from experiments.evaluation.fronts import CalibratedPolicy, Columns, Floats
from experiments.evaluation.statistics import Estimate
from predictor.policy import Front


@dataclass(frozen=True, eq=False)
class Point:
    """A mean cost and a mean score, each with its interval."""

    cost: Estimate
    score: Estimate


@dataclass(frozen=True, eq=False)
class DefaultPoint:
    """The price that the predictor is used at when no budget is given, and its choices on the test samples.

    Chosen on calibration, in training (`predictor.pricing`). `to_best_fixed` is the difference in score to
    the fixed scale that is best on calibration. Of the samples that some scale answers, the share
    `smallest_right` got their smallest sufficient scale, `too_coarse` a coarser and `too_fine` a finer one.
    """

    price: float
    choice: Columns
    point: Point
    to_best_fixed: Estimate
    smallest_right: float
    too_coarse: float
    too_fine: float


@dataclass(frozen=True, eq=False)
class PredictorFigures:
    """Figures of one predictor on the test samples.

    `trace` is every traced price; `front` `[num_points]` the operating points that calibration chose, from
    cheap to dear; `plan` `[num_budgets, num_points]` the chance of each under a budget. At the budgets
    `[num_budgets]`: realised `cost`, share of the samples for which each scale
    is `chosen` `[num_budgets, num_scales]`, `score` with its band, and the differences `to_mix` and
    `to_reference` and the `gap_share` at that cost. `to_reference` is None for the reference itself.
    """

    name: str
    policy: CalibratedPolicy
    trace: Front
    front: Front
    plan: Floats
    cost: Floats
    chosen: Floats
    score: Estimate
    to_mix: Estimate
    to_reference: Estimate | None
    gap_share: Estimate
    mean_to_mix: Estimate
    mean_to_reference: Estimate | None
    mean_gap_share: Estimate
    default: DefaultPoint


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictors on one test split, beside what bounds them; costs and budgets are those of `account`.

    `fixed` are the fixed scales `[num_scales]`, `best_fixed` the column of the best on calibration, `mix` the
    columns on the hull. `oracle` is the budgeted oracle's front, from cheap to dear; `oracles` the smallest
    sufficient scale in both conventions (`fronts.choose_as_oracle`).
    """

    account: Account
    scales: tuple[int, ...]
    num_samples: int
    num_images: int
    num_calibration_samples: int
    confidence: float
    num_resamples: int
    budgets: Floats
    fixed: Point
    best_fixed: int
    mix: Columns
    oracle: Front
    oracles: Mapping[str, Point]
    predictors: Sequence[PredictorFigures]
    reference: str | None

    def find(self, name: str) -> PredictorFigures:
        """The figures of the predictor of that name."""
        return next(figures for figures in self.predictors if figures.name == name)

    def list_positions(self, number: int) -> list[int]:
        """Positions of `number` budgets inside the range, evenly spaced: the ones that tables show."""
        return [round(i * (len(self.budgets) - 1) / (number + 1)) for i in range(1, number + 1)]


def average(at_budgets: Floats) -> Floats:
    """Mean over evenly spaced budgets by the trapezoid rule, `[..., num_budgets]` -> `[...]`."""
    weights = np.ones(at_budgets.shape[-1])
    weights[[0, -1]] = 0.5
    return at_budgets @ (weights / weights.sum())


def divide(part: Floats, whole: Floats) -> Floats:
    """Shares; nan where there is nothing to share, as where mix and oracle meet."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 1e-9)
