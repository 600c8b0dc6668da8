"""Typed keys of what a comparison measures: a policy, a metric, and where it is measured.

No name is ever parsed or compared with a reserved word: predictors are `Predictor(name)`, and what bounds
them is another type. So a predictor may have any name.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple


class Bound(Enum):
    """What predictors are held against: the fixed scales, their mix, the budgeted oracle."""

    FIXED = "fixed"
    MIX = "mix"
    BUDGETED = "budgeted"

    @property
    def label(self) -> str:
        """The name that readers see."""
        return _LABELS[self]


_LABELS = {
    Bound.FIXED: "fixed scales",
    Bound.MIX: "mix of fixed scales",
    Bound.BUDGETED: "budgeted oracle",
}


@dataclass(frozen=True)
class Rule:
    """An oracle that chooses one scale per sample by one of `oracles.RULES`."""

    name: str


@dataclass(frozen=True)
class Predictor:
    """A contender, by its name."""

    name: str


Policy = Bound | Rule | Predictor
# What a predictor is compared with: the mix, or another predictor.
Opponent = Predictor | Literal[Bound.MIX]


class Metric(Enum):
    """What is measured of a policy; `figures` and `merits` define each. In brackets: what `Key.at` holds."""

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
    MEAN_DIFFERENCE = auto()  # [Policy: to which]
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
