"""Metric table: every number of an evaluation by a typed key, with its interval and its resamples.

The table has one entry per (policy, metric, at), where `at` is a further argument of the metric: a baseline,
an opponent or a share. A comparison has one table per cost measure. `metrics.json`, terminal output, CSV,
LaTeX, HTML reports, plots and comparisons of runs are views of these tables; none of them computes a metric.

A predictor may have any name: keys are `Predictor(name)`, bounds have a separate type, and names are never
parsed or compared with reserved words.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from experiments.evaluation.statistics import Bootstrapped, Estimate

# Largest number of resamples kept for a metric that is an array of numbers.
MOST_BAND_RESAMPLES = 2000


class Bound(Enum):
    """Bounds that predictors are compared with: the fixed scales, their mix, the budgeted oracle."""

    FIXED = "fixed"
    MIX = "mix"
    BUDGETED = "budgeted"

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        return _LABELS[self]


_LABELS = {
    Bound.FIXED: "fixed scales",
    Bound.MIX: "mix of fixed scales",
    Bound.BUDGETED: "budgeted oracle",
}


@dataclass(frozen=True)
class Rule:
    """An oracle that chooses one scale per sample by a rule of `fronts.RULES`."""

    name: str


@dataclass(frozen=True)
class Predictor:
    """A policy in a comparison, identified by its name."""

    name: str


@dataclass(frozen=True)
class Ladder:
    """The fixed scales of another backbone on the same samples, and their mix; identified by its name."""

    name: str

    @property
    def label(self) -> str:
        """Name of its mix in tables and plots."""
        return f"mix of {self.name}"


PolicyKey = Bound | Rule | Predictor | Ladder
# What a predictor is compared with: the mix, another predictor, or the mix of another backbone.
Opponent = Predictor | Ladder | Literal[Bound.MIX]


class Form(Enum):
    """Number format of a metric in tables."""

    SCORE = "percent"
    POINTS = "signed percentage points"
    SHARE = "percent of a whole"
    COST = "cost"
    FACTOR = "factor"
    PLAIN = "number"


class Family(Enum):
    """Metrics that are shown together; the value is their key under a predictor in `metrics.json`."""

    MEANS = ""
    AT_BUDGETS = "at_budgets"
    FRONT = "merits"
    NON_INFERIORITY = "non_inferiority"
    DEFAULT = "default"
    CALIBRATION = "reliability"
    POINTS = "front"
    PAIRS = "differences"
    HEADROOM = "headroom"
    REACHABLE = "reachable"


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric: its name, label and number format, and the function that measures it (`metrics`).

    `measure` takes a view of a policy and, if the metric has one, a value of `at`; it returns
    `[num_resamples, ...]`. `list_at` lists the values of `at` for a view: (None,) for a metric without `at`,
    nothing if the metric does not apply. With `is_compared` the resamples are kept, so that runs can be
    compared by the metric.
    """

    name: str
    label: str
    form: Form
    family: Family
    measure: Callable[..., np.ndarray]
    list_at: Callable[[Any], Iterable[Hashable]]
    is_compared: bool = False

    @property
    def path(self) -> str:
        """Path of the metric under a predictor in `metrics.json`."""
        return f"{self.family.value}/{self.name}" if self.family.value else self.name

    def __call__(self, *arguments: Any) -> np.ndarray:
        return self.measure(*arguments)

    def __repr__(self) -> str:
        return f"<metric {self.path}>"


class Key(NamedTuple):
    """Key of one metric of one policy."""

    policy: PolicyKey
    metric: Metric
    at: Hashable = None


class MetricTable(Mapping[Key, Estimate]):
    """Metrics on the test samples by key, each with its interval, and resamples of the compared metrics.

    `resamples` of a single number are `[num_resamples]`. Those of an array of numbers are float32 and limited
    to the first `MOST_BAND_RESAMPLES` resamples, which is enough for the band of a plot.
    """

    def __init__(self, estimates: Mapping[Key, Estimate], resamples: Mapping[Key, np.ndarray]) -> None:
        self._estimates, self.resamples = estimates, resamples

    @classmethod
    def from_bootstrap(cls, metrics: Mapping[Key, Bootstrapped], confidence: float) -> "MetricTable":
        """Return the table of bootstrapped metrics."""
        # Copied, because a view of the first resamples would keep all of them in memory.
        resamples = {
            key: values.resamples[:MOST_BAND_RESAMPLES].astype(np.float32)
            if values.resamples.ndim > 1
            else values.resamples
            for key, values in metrics.items()
            if key.metric.is_compared and (values.resamples.ndim > 1 or values.exists)
        }
        return cls({key: values.estimate(confidence) for key, values in metrics.items()}, resamples)

    def __getitem__(self, key: Key) -> Estimate:
        return self._estimates[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._estimates)

    def __len__(self) -> int:
        return len(self._estimates)

    def find(self, policy: PolicyKey, metric: Metric, at: Hashable = None) -> Estimate | None:
        """Return a metric; None if it was not measured, or is a single number that is nan."""
        estimate = self._estimates.get(Key(policy, metric, at))
        if estimate is None or (estimate.value.ndim == 0 and np.isnan(estimate.value)):
            return None
        return estimate

    def to_arrow(self, cost_measure: str) -> pa.Table:
        """Return the table in tidy form, one row per number, with full precision.

        Columns: cost_measure, policy, kind (type of the policy: predictor, bound, rule or ladder), metric,
        at, position (index in an array of numbers, such as budgets or scales; null for a single number),
        value, low, high.
        """
        rows = [
            {
                "cost_measure": cost_measure,
                "policy": key.policy.value if isinstance(key.policy, Bound) else key.policy.name,
                "kind": type(key.policy).__name__.lower(),
                "metric": key.metric.path,
                "at": None if key.at is None else _write_at(key.at),
                "position": position,
                **{name: float(getattr(estimate, name)[index]) for name in ("value", "low", "high")},
            }
            for key, estimate in self.items()
            for position, index in _list_positions(estimate)
        ]
        return pa.Table.from_pylist(rows, _SCHEMA)


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("cost_measure", "policy", "kind", "metric", "at")]
    + [("position", pa.int32())]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
)


def _write_at(at: Hashable) -> str:
    match at:
        case Predictor(name) | Ladder(name):
            return name
        case Bound():
            return at.value
        case (baseline, margin):
            return f"{baseline} - {margin:g}"
        case float():
            return f"{at:g}"
    return str(at)


def _list_positions(estimate: Estimate) -> Iterator[tuple[int | None, Any]]:
    if estimate.value.ndim == 0:
        yield None, ...
    else:
        yield from ((index, index) for index in range(len(estimate.value)))
