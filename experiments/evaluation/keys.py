"""Typed keys of the metrics of a comparison: policy, metric, and the argument of the metric.

Names are never parsed or compared with reserved words: a predictor is `Predictor(name)`, and bounds have a
type of their own. So a predictor may have any name.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple


class Bound(Enum):
    """Bounds that predictors are compared with: the fixed scales, their mix, the budgeted oracle."""

    FIXED = "fixed"
    MIX = "mix"
    BUDGETED = "budgeted"

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return _LABELS[self]


_LABELS = {
    Bound.FIXED: "fixed scales",
    Bound.MIX: "mix of fixed scales",
    Bound.BUDGETED: "budgeted oracle",
}


@dataclass(frozen=True)
class Rule:
    """An oracle that chooses one scale per sample, by a rule of `oracles.RULES`."""

    name: str


@dataclass(frozen=True)
class Predictor:
    """A contender, identified by its name."""

    name: str


Policy = Bound | Rule | Predictor
# What a predictor is compared with: the mix, or another predictor.
Opponent = Predictor | Literal[Bound.MIX]


class Metric(Enum):
    """Metrics of a policy, defined in `figures` and `merits`; in brackets the type of `Key.at`."""

    POINT_COST = auto()  # of its operating points
    POINT_SCORE = auto()
    DEFAULT_COST = auto()  # at its default price
    DEFAULT_SCORE = auto()
    TO_BEST_FIXED = auto()
    SMALLEST_RIGHT = auto()
    TOO_COARSE = auto()
    TOO_FINE = auto()
    SCORE_AT_BUDGETS = auto()
    TO_MIX = auto()
    TO_REFERENCE = auto()
    GAP_SHARE = auto()
    MEAN_DIFFERENCE = auto()  # [Opponent]
    MEAN_GAP_SHARE = auto()
    MEAN_GAP = auto()
    AVERAGE_QUALITY = auto()
    AVERAGE_GAP_RECOVERED = auto()
    HYPERVOLUME = auto()
    CALL_SHARE = auto()  # [float: share of the gap recovered]
    FRONT_COST = auto()  # [Baseline]
    FRONT_SAVING = auto()  # [Baseline]
    REACHED_COST = auto()  # [Baseline]
    REACHED_SAVING = auto()  # [Baseline]
    REACHED_DIFFERENCE = auto()  # [Baseline]
    BRIER = auto()  # per scale
    CALIBRATION_ERROR = auto()  # per scale


class Key(NamedTuple):
    """One metric of one policy."""

    policy: Policy
    metric: Metric
    at: Hashable = None
