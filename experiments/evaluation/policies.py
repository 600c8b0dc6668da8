"""Policies that are compared: at each price, which scales are tried for every sample.

A **path** tries the scales from `start` on, one after the other, until `stop`. It costs all the scales it
tries, and the last answer stands. A predictor answers at one scale; a cascade escalates.

The prices, temperatures and thresholds of a policy come from the calibration samples. Of the test samples it
is given what is known without their references (`PolicyInputs`), so it cannot be an oracle: oracles take
`ScoredSamples` and are in `oracles`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.costs import TOKENS, CostMeasure
from experiments.evaluation.fronts import Columns, Floats, trace_prices
from experiments.evaluation.schedules import Schedule
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import choose, find_unit
from predictor.policy.pricing import OperatingPoint
from predictor.policy.switches import find_switches

Choices = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """Samples as a policy may see them, each array `[num_samples, num_scales]`.

    `cost` is in the cost measure of the comparison, `tokens` in visual tokens. `confidence` is that of the
    answer at each scale: a policy may read it only where it has paid for the answer. `shared` is the part of
    each cost that is paid once however many scales are tried: a number, or `[num_samples, 1]`.
    """

    cost: Floats
    tokens: Floats
    confidence: Floats
    shared: Floats | float = field(default=0.0, kw_only=True)

    def __len__(self) -> int:
        return len(self.cost)


@dataclass(frozen=True, eq=False)
class ScoredSamples(PolicyInputs):
    """Samples with their scores, `score` `[num_samples, num_scales]`."""

    score: Floats

    @classmethod
    def of(cls, table: OutcomeTable, measure: CostMeasure = TOKENS) -> "ScoredSamples":
        """Return the samples of a table with their costs in `measure`."""
        confidence, score = table.confidence.astype(np.float64), table.score.astype(np.float64)
        shared = measure.shared_of(table)[:, None]
        return cls(measure.of(table), TOKENS.of(table), confidence, score, shared=shared)

    @property
    def inputs(self) -> PolicyInputs:
        """The same samples without their scores."""
        return PolicyInputs(self.cost, self.tokens, self.confidence, shared=self.shared)


@dataclass(frozen=True, eq=False)
class Paths:
    """Numbered paths: from column `start` of the ladder to column `stop`, each `[num_paths]`."""

    start: Columns
    stop: Columns

    @classmethod
    def single(cls, num_scales: int) -> "Paths":
        """Return the paths that try one scale; a path has the number of its scale."""
        return cls(np.arange(num_scales), np.arange(num_scales))

    @classmethod
    def escalating(cls, num_scales: int) -> "Paths":
        """Return the paths from every scale to every one that is not coarser."""
        return cls(*np.triu_indices(num_scales))

    @property
    def tried(self) -> NDArray[np.bool_]:
        """Whether each path tries each scale, `[num_paths, num_scales]`."""
        scale = np.arange(int(self.stop.max()) + 1)
        return (self.start[:, None] <= scale) & (scale <= self.stop[:, None])

    def find(self, start: ArrayLike, stop: ArrayLike) -> Choices:
        """Return the numbers of the paths from `start` to `stop`, of the shape of both.

        Raises ValueError for a path that there is not, as one to a coarser scale.
        """
        size = int(self.stop.max()) + 1
        number_of = np.full((size, size), -1, dtype=np.int8)
        number_of[self.start, self.stop] = np.arange(len(self.start))
        numbers = number_of[np.asarray(start), np.asarray(stop)]
        if (numbers < 0).any():
            raise ValueError("a cascade ends at the scale that it started from, or at a finer one")
        return numbers

    def cost(self, samples: PolicyInputs) -> Floats:
        """Return the cost of all the scales that each path tries, `[num_samples, num_paths]`."""
        cost = samples.cost
        if (self.start == self.stop).all():
            return cost[:, self.stop]
        cumulative = np.cumsum(cost, axis=1)
        total = cumulative[:, self.stop] - cumulative[:, self.start] + cost[:, self.start]
        total -= (self.stop - self.start) * samples.shared
        # The cost of a path of one scale is taken as it is, free of rounding.
        return np.where(self.start == self.stop, cost[:, self.stop], total)

    def score(self, score: Floats) -> Floats:
        """Return the score of each path's last answer, `[num_samples, num_paths]`."""
        return score[:, self.stop]


@dataclass(frozen=True, eq=False)
class Default:
    """The price that a policy is used at when no budget is given, and its paths `[num_samples]` on test."""

    price: float
    choice: Columns


@dataclass(frozen=True, eq=False)
class Decisions:
    """The paths that a policy chooses at each `price`, as numbers of `paths`.

    Prices `[num_prices]` ascend, in terms of the policy's own, per `unit` of cost where that has a meaning;
    they are the points of the schedules of `calibration` and `test`. Without a `default` the comparison takes
    the cheapest price that is as good on calibration as the best fixed scale. `estimates` are those on the
    test samples, if the policy has any: they are compared with the scores.
    """

    paths: Paths
    price: Floats
    calibration: Schedule
    test: Schedule
    unit: float = 1.0
    default: Default | None = None
    estimates: Floats | None = None


class Policy(Protocol):
    """A policy as it enters a comparison."""

    @property
    def name(self) -> str: ...

    def decide(self, calibration: ScoredSamples, test: PolicyInputs, num_prices: int) -> Decisions:
        """Choose at most `num_prices` prices on the calibration samples, and apply them to both splits."""
        ...


@dataclass(frozen=True, eq=False)
class PredictorPolicy:
    """A predictor: at a price, `predictor.policy.front.choose` turns its estimates into a scale per sample.

    `calibration` and `test` are estimates `[num_samples, num_scales]`. `default`, from
    `predictor.policy.pricing`, is a price per visual token whatever the cost measure is.
    """

    name: str
    calibration: Floats
    test: Floats
    default: OperatingPoint | None = None

    def decide(self, calibration: ScoredSamples, test: PolicyInputs, num_prices: int) -> Decisions:
        unit = find_unit(calibration.cost)
        switches = find_switches(self.calibration, calibration.cost)
        prices = trace_prices(switches, calibration.cost, unit=unit, num_prices=num_prices)
        default = None
        if self.default is not None:
            price = self.default.price
            default = Default(price, choose(self.test, test.tokens, price, unit=self.default.unit))
        return Decisions(
            Paths.single(calibration.cost.shape[1]),
            prices,
            Schedule.at_prices(switches, prices, unit),
            Schedule.at_prices(find_switches(self.test, test.cost), prices, unit),
            unit,
            default,
            self.test,
        )


class FittedCascade(Protocol):
    """A cascade that is fitted: it answers, reads the answer's confidence, and stops or escalates."""

    @property
    def price(self) -> Floats:
        """`[num_prices]`, ascending: the first spends most."""
        ...

    def escalate(
        self, confidence: Floats, cost: Floats, estimates: Floats | None
    ) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Return the first and the last column tried, each `[num_prices, num_samples]`.

        `confidence`, `cost` and `estimates` are `[num_samples, num_scales]`; of the confidences only those
        of scales from the first to the last tried are read.
        """
        ...


class CascadeFit(Protocol):
    """Makes a cascade from calibration samples, each array `[num_samples, num_scales]`."""

    def __call__(
        self, confidence: Floats, score: Floats, cost: Floats, estimates: Floats | None, num_prices: int
    ) -> FittedCascade: ...


@dataclass(frozen=True, eq=False)
class CascadePolicy:
    """A cascade: `fit` makes it from calibration. `estimates` are a predictor's on (calibration, test)."""

    name: str
    fit: CascadeFit
    estimates: tuple[Floats, Floats] | None = None

    def decide(self, calibration: ScoredSamples, test: PolicyInputs, num_prices: int) -> Decisions:
        on_calibration, on_test = self.estimates or (None, None)
        # What is paid once in any case decides nothing.
        calibration_cost, test_cost = calibration.cost - calibration.shared, test.cost - test.shared
        cascade = self.fit(
            calibration.confidence, calibration.score, calibration_cost, on_calibration, num_prices
        )
        paths = Paths.escalating(calibration.cost.shape[1])
        return Decisions(
            paths,
            cascade.price,
            Schedule.of(
                paths.find(*cascade.escalate(calibration.confidence, calibration_cost, on_calibration))
            ),
            Schedule.of(paths.find(*cascade.escalate(test.confidence, test_cost, on_test))),
        )


@dataclass(frozen=True)
class CascadeEntry:
    """A cascade as a configuration names it, fitted where calibration samples are at hand.

    `predictor` names the trained predictor whose estimates it starts from, if any.
    """

    name: str
    fit: CascadeFit
    predictor: str | None = None

    def enter(self, estimates: Mapping[str, tuple[Floats, Floats]]) -> CascadePolicy:
        """Return the policy, given the estimates of all predictors on (calibration, test)."""
        return CascadePolicy(self.name, self.fit, estimates[self.predictor] if self.predictor else None)
