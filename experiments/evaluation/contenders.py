"""What enters a comparison: policies with a price, and what they decide.

A **way** of answering is to try the scales from `start` on, one after the other, until `stop`. It pays for
every scale it tried, and the last answer stands. A predictor answers at one scale, a cascade climbs.

A **contender** decides at each of its prices on a way for every sample. Its prices, temperatures and
thresholds come from the calibration samples; of the test samples it is handed what can be known without their
references (`Asked`), and so it cannot be an oracle: those are in `oracles`, and take `Outcomes`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.accounts import TOKENS, Account
from experiments.evaluation.fronts import Columns, Floats, trace_prices
from experiments.evaluation.schedules import Schedule
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import choose, find_unit
from predictor.policy.pricing import OperatingPoint
from predictor.policy.switches import find_switches

Choices = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Asked:
    """Samples as a policy may see them, each `[num_samples, num_scales]`.

    `cost` is in the account of the comparison, `tokens` in visual tokens. `confidence` is that of the answer
    at each scale: to be looked at only where the answer has been paid for. `once` is the part of each cost
    that is paid once however many scales are tried: a number, or `[num_samples, 1]`.
    """

    cost: Floats
    tokens: Floats
    confidence: Floats
    once: Floats | float = field(default=0.0, kw_only=True)

    def __len__(self) -> int:
        return len(self.cost)


@dataclass(frozen=True, eq=False)
class Outcomes(Asked):
    """Samples with what came of them: `score` `[num_samples, num_scales]`."""

    score: Floats

    @classmethod
    def of(cls, table: OutcomeTable, account: Account = TOKENS) -> "Outcomes":
        """The samples of a table, their costs counted as `account` does."""
        confidence, score = table.confidence.astype(np.float64), table.score.astype(np.float64)
        once = account.once_of(table)[:, None]
        return cls(account.of(table), TOKENS.of(table), confidence, score, once=once)

    @property
    def asked(self) -> Asked:
        """The same samples without their scores."""
        return Asked(self.cost, self.tokens, self.confidence, once=self.once)


@dataclass(frozen=True, eq=False)
class Ways:
    """Ways to answer, numbered: from column `start` of the ladder to column `stop`, each `[num_ways]`."""

    start: Columns
    stop: Columns

    @classmethod
    def single(cls, num_scales: int) -> "Ways":
        """One scale each: way and scale have the same number."""
        return cls(np.arange(num_scales), np.arange(num_scales))

    @classmethod
    def climbs(cls, num_scales: int) -> "Ways":
        """From every scale to every one that is not coarser."""
        return cls(*np.triu_indices(num_scales))

    @property
    def tried(self) -> NDArray[np.bool_]:
        """Whether each way tries each scale, `[num_ways, num_scales]`."""
        scale = np.arange(int(self.stop.max()) + 1)
        return (self.start[:, None] <= scale) & (scale <= self.stop[:, None])

    def find(self, start: ArrayLike, stop: ArrayLike) -> Choices:
        """Numbers of the ways from `start` to `stop`, of any equal shapes. ValueError where there is none."""
        size = int(self.stop.max()) + 1
        number = np.full((size, size), -1, dtype=np.int8)
        number[self.start, self.stop] = np.arange(len(self.start))
        found = number[np.asarray(start), np.asarray(stop)]
        if (found < 0).any():
            raise ValueError("a climb ends at the scale that it started from, or at a finer one")
        return found

    def cost(self, samples: Asked) -> Floats:
        """Of all scales tried together, `[num_samples, num_ways]`."""
        cost = samples.cost
        if (self.start == self.stop).all():
            return cost[:, self.stop]
        up_to = np.cumsum(cost, axis=1)
        # Where one scale is all there is, its cost is taken as it is, free of rounding.
        together = up_to[:, self.stop] - up_to[:, self.start] + cost[:, self.start]
        together -= (self.stop - self.start) * samples.once
        return np.where(self.start == self.stop, cost[:, self.stop], together)

    def score(self, score: Floats) -> Floats:
        """Of the last answer, `[num_samples, num_scales]` -> `[num_samples, num_ways]`."""
        return score[:, self.stop]


@dataclass(frozen=True, eq=False)
class Default:
    """The price that a policy is used at when no budget is given, and its ways `[num_samples]` on test."""

    price: float
    choice: Columns


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a contender does: numbers of `ways` at each `price`.

    Prices `[num_prices]` ascend and are in any terms of the contender's own, per `unit` of cost where that
    means something; they are the points of the schedules of `calibration` and `test`. Without a `default` the
    comparison takes the cheapest price that is as good on calibration as the best fixed scale. `estimates`,
    if it has any, are those on the test samples: they are held against what happened.
    """

    ways: Ways
    price: Floats
    calibration: Schedule
    test: Schedule
    unit: float = 1.0
    default: Default | None = None
    estimates: Floats | None = None


class Contender(Protocol):
    """A policy as it enters a comparison."""

    @property
    def name(self) -> str: ...

    def decide(self, calibration: Outcomes, test: Asked, num_prices: int) -> Decisions:
        """Choose at most `num_prices` prices on the calibration samples, and apply them to both splits."""
        ...


@dataclass(frozen=True, eq=False)
class Estimating:
    """A predictor: at a price, `predictor.policy.front.choose` turns its estimates into one scale per sample.

    `calibration` and `test` are estimates `[num_samples, num_scales]`. `default`, from
    `predictor.policy.pricing`, is a price per visual token whatever the comparison counts.
    """

    name: str
    calibration: Floats
    test: Floats
    default: OperatingPoint | None = None

    def decide(self, calibration: Outcomes, test: Asked, num_prices: int) -> Decisions:
        unit = find_unit(calibration.cost)
        learned = find_switches(self.calibration, calibration.cost)
        prices = trace_prices(learned, calibration.cost, unit=unit, num_prices=num_prices)
        default = None
        if self.default is not None:
            price = self.default.price
            default = Default(price, choose(self.test, test.tokens, price, unit=self.default.unit))
        return Decisions(
            Ways.single(calibration.cost.shape[1]),
            prices,
            Schedule.at_prices(learned, prices, unit),
            Schedule.at_prices(find_switches(self.test, test.cost), prices, unit),
            unit,
            default,
            self.test,
        )


class Climber(Protocol):
    """A cascade that is fitted: it tries a scale, looks at the answer's confidence, and stops or goes on."""

    @property
    def price(self) -> Floats:
        """`[num_prices]`, ascending: the first spends most."""
        ...

    def climb(
        self, confidence: Floats, cost: Floats, estimates: Floats | None
    ) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """First and last column tried, each `[num_prices, num_samples]`.

        `confidence`, `cost` and `estimates` are `[num_samples, num_scales]`; of the confidences those are
        looked at that belong to scales from the first to the last tried.
        """
        ...


class ClimberFit(Protocol):
    """Makes a cascade from calibration samples, each array `[num_samples, num_scales]`."""

    def __call__(
        self, confidence: Floats, score: Floats, cost: Floats, estimates: Floats | None, num_prices: int
    ) -> Climber: ...


@dataclass(frozen=True, eq=False)
class Climbing:
    """A cascade: `fit` makes it from calibration. `estimates` are a predictor's on (calibration, test)."""

    name: str
    fit: ClimberFit
    estimates: tuple[Floats, Floats] | None = None

    def decide(self, calibration: Outcomes, test: Asked, num_prices: int) -> Decisions:
        first, second = self.estimates or (None, None)
        # What is paid once in any case decides nothing.
        learned, asked = calibration.cost - calibration.once, test.cost - test.once
        climber = self.fit(calibration.confidence, calibration.score, learned, first, num_prices)
        ways = Ways.climbs(calibration.cost.shape[1])
        return Decisions(
            ways,
            climber.price,
            Schedule.of(ways.find(*climber.climb(calibration.confidence, learned, first))),
            Schedule.of(ways.find(*climber.climb(test.confidence, asked, second))),
        )
