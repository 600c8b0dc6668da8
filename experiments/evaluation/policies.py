"""Policies in a comparison: which scales are tried for each sample at each price.

A **path** tries the scales from `start` to `stop` in turn. Its cost is that of all the scales it tries, and
the last answer counts. A predictor answers at one scale; a cascade escalates. A scale that coincides with the
next coarser one on a sample (`m3_backbone.ladder`) is not answered again and costs nothing more.

The prices, temperatures and thresholds of a policy come from the calibration samples. For the test samples a
policy receives only what is known without references (`PolicyInputs`), so it cannot be an oracle; oracles
take scores and are in `fronts`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.costs import TOKENS, CostMeasure
from experiments.evaluation.fronts import Columns, Floats, trace_prices
from experiments.evaluation.schedules import Schedule
from m3_backbone.ladder import find_coarsest, find_repeats
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import choose, find_unit
from predictor.policy.pricing import OperatingPoint
from predictor.policy.switches import find_switches

Choices = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """What a policy may know of samples; each array is `[num_samples, num_scales]`.

    `cost` is in the cost measure of the comparison, `tokens` in visual tokens, with those that the predictor
    itself needs. `confidence` is that of the answer at each scale, `entropy` the mean entropy of its tokens
    if the labels hold it; a policy may read them only for scales whose answers it has paid for. `shared` is
    the part of each cost that is paid once however many scales are tried: a number, or `[num_samples, 1]`.
    `prefilled` is the part of `shared` that is the prefill of the coarsest scale for the predictor.
    `coarsest` is the column of the coarsest scale that coincides with each scale, `repeats` whether it
    coincides with the next coarser one.
    """

    cost: Floats
    tokens: Floats
    confidence: Floats
    shared: Floats | float = field(default=0.0, kw_only=True)
    prefilled: Floats | float = field(default=0.0, kw_only=True)
    entropy: Floats | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.cost)

    @cached_property
    def coarsest(self) -> Columns:
        return find_coarsest(self.tokens)

    @property
    def further(self) -> Floats:
        """Cost of trying each scale, `[num_samples, num_scales]`, for the decisions of a cascade.

        The shared cost is paid in any case, so it does not affect them. Costs have to be positive, so an
        answer from a prefill that the predictor has paid for is taken to cost that prefill; `first`, which
        decides where a hybrid starts, adds that prefill to the other scales.
        """
        return self.cost - self.shared + np.where(self.coarsest == 0, self.prefilled, 0.0)

    @property
    def first(self) -> Floats:
        """Cost of starting at each scale, `[num_samples, num_scales]`, for the decisions of a hybrid.

        It is that of `further`, plus the prefill for the predictor at scales that do not use this prefill.
        """
        return self.further + np.where(self.coarsest > 0, self.prefilled, 0.0)

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        return find_repeats(self.tokens)


@dataclass(frozen=True, eq=False)
class ScoredSamples(PolicyInputs):
    """Samples with their scores, `score` `[num_samples, num_scales]`."""

    score: Floats

    @classmethod
    def of(
        cls, table: OutcomeTable, measure: CostMeasure = TOKENS, policy: str | None = None
    ) -> "ScoredSamples":
        """Return the samples of a table with their costs in `measure`; with a `policy`, those it pays."""
        confidence, score = table.confidence.astype(np.float64), table.score.astype(np.float64)
        shared, prefilled = (of(table, policy)[:, None] for of in (measure.shared_of, measure.prefill_of))
        cost = measure.of(table, policy)
        tokens = replace(TOKENS, state_readers=measure.state_readers).of(table, policy)
        entropy = None if table.entropy is None else table.entropy.astype(np.float64)
        return cls(cost, tokens, confidence, score, shared=shared, prefilled=prefilled, entropy=entropy)

    @property
    def inputs(self) -> PolicyInputs:
        """The samples without their scores."""
        return PolicyInputs(
            self.cost,
            self.tokens,
            self.confidence,
            shared=self.shared,
            prefilled=self.prefilled,
            entropy=self.entropy,
        )


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
        """Return the numbers of the paths from `start` to `stop`, in the shape of these arrays.

        Raises ValueError for a path that does not exist, such as one to a coarser scale.
        """
        size = int(self.stop.max()) + 1
        assert len(self.start) <= np.iinfo(np.int16).max, "too many scales"
        number_of = np.full((size, size), -1, dtype=np.int16)
        number_of[self.start, self.stop] = np.arange(len(self.start))
        numbers = number_of[np.asarray(start), np.asarray(stop)]
        if (numbers < 0).any():
            raise ValueError("a cascade must end at the scale it starts from or at a finer one")
        return numbers

    def cost(self, samples: PolicyInputs) -> Floats:
        """Return the cost of all the scales that each path tries, `[num_samples, num_paths]`.

        It is `cost(start)`, plus `cost(s) - shared` for each finer scale s up to `stop` that does not
        coincide with the next coarser one.
        """
        cost = samples.cost
        if (self.start == self.stop).all():
            return cost[:, self.stop]
        cumulative = np.cumsum(np.where(samples.repeats, 0.0, cost - samples.shared), axis=1)
        total = cost[:, self.start] + cumulative[:, self.stop] - cumulative[:, self.start]
        # For a path of one scale the exact cost is used, which has no rounding error.
        return np.where(self.start == self.stop, cost[:, self.stop], total)

    def score(self, score: Floats) -> Floats:
        """Return the score of each path's last answer, `[num_samples, num_paths]`."""
        return score[:, self.stop]


@dataclass(frozen=True, eq=False)
class Default:
    """The price that a policy uses when no budget is given, and its paths `[num_samples]` on test."""

    price: float
    choice: Columns


@dataclass(frozen=True, eq=False)
class Decisions:
    """The paths that a policy chooses at each `price`, as numbers of `paths`.

    Prices `[num_prices]` are ascending and specific to the policy, per `unit` of cost where applicable. They
    are the points of the schedules `calibration` and `test`. Without a `default` the comparison uses the
    cheapest price that is about as good on calibration as the best fixed scale. `estimates` are those on the
    test samples, if the policy has any; the comparison measures their calibration.
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
    """Policy of a predictor: `predictor.policy.front.choose` turns estimates and a price into scales.

    `calibration` and `test` are estimates `[num_samples, num_scales]`. `default`, from
    `predictor.policy.pricing`, is a price of visual tokens in every cost measure.
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


Signal = Literal["confidence", "entropy"]


def read_signal(samples: PolicyInputs | OutcomeTable, signal: Signal) -> Floats:
    """Return how certain each answer is by a signal, in [0, 1], `[num_samples, num_scales]`.

    It is the confidence, or exp(-entropy), on which a threshold is one on the entropy. Raises ValueError if
    the labels hold no entropy.
    """
    if signal == "confidence":
        return samples.confidence
    if samples.entropy is None:
        raise ValueError(
            "a cascade reads the entropy of answers, which these labels lack: label again with `tokenscale "
            "label overwrite=true`, or leave out the cascade with signal=entropy"
        )
    return np.exp(-samples.entropy)


class FittedCascade(Protocol):
    """A fitted cascade: after each answer it stops or escalates, depending on the answer's confidence."""

    @property
    def price(self) -> Floats:
        """Ascending prices `[num_prices]`; the cost is highest at the first."""
        ...

    def escalate(
        self, confidence: Floats, cost: Floats, estimates: Floats | None, *, first_cost: Floats
    ) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Return the first and the last column tried, each `[num_prices, num_samples]`.

        The arguments are `[num_samples, num_scales]`; only confidences of tried scales are read. `cost` is
        that of `PolicyInputs.further`, `first_cost` that of `PolicyInputs.first`.
        """
        ...


class CascadeFit(Protocol):
    """Function that fits a cascade to calibration samples; each array is `[num_samples, num_scales]`."""

    def __call__(
        self,
        confidence: Floats,
        score: Floats,
        cost: Floats,
        estimates: Floats | None,
        num_prices: int,
        *,
        first_cost: Floats,
    ) -> FittedCascade: ...


@dataclass(frozen=True, eq=False)
class CascadePolicy:
    """Policy of a cascade, which `fit` makes from calibration samples.

    `estimates` of a predictor, if any, are those on (calibration, test). `signal` is what the cascade takes
    for the confidence of an answer (`read_signal`).
    """

    name: str
    fit: CascadeFit
    estimates: tuple[Floats, Floats] | None = None
    signal: Signal = "confidence"

    def decide(self, calibration: ScoredSamples, test: PolicyInputs, num_prices: int) -> Decisions:
        on_calibration, on_test = self.estimates or (None, None)
        cascade = self.fit(
            read_signal(calibration, self.signal),
            calibration.score,
            calibration.further,
            on_calibration,
            num_prices,
            first_cost=calibration.first,
        )
        paths = Paths.escalating(calibration.cost.shape[1])

        def schedule(samples: PolicyInputs, estimates: Floats | None) -> Schedule:
            signal = read_signal(samples, self.signal)
            columns = cascade.escalate(signal, samples.further, estimates, first_cost=samples.first)
            return Schedule.of(paths.find(*columns))

        return Decisions(paths, cascade.price, schedule(calibration, on_calibration), schedule(test, on_test))


@dataclass(frozen=True)
class CascadeEntry:
    """A cascade of a configuration, to be fitted once calibration samples are available.

    `predictor` names the trained predictor whose estimates say where it starts, if any; `signal` is that of
    `CascadePolicy`. Raises ValueError for an unknown signal.
    """

    name: str
    fit: CascadeFit
    predictor: str | None = None
    signal: Signal = "confidence"

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal):
            raise ValueError(f"signal={self.signal}: give one of {', '.join(get_args(Signal))}")

    def enter(self, estimates: Mapping[str, tuple[Floats, Floats]]) -> CascadePolicy:
        """Return the policy, given the estimates of all predictors on (calibration, test)."""
        starts = estimates[self.predictor] if self.predictor else None
        return CascadePolicy(self.name, self.fit, starts, self.signal)


def check_starts(cascades: Sequence[CascadeEntry], predictors: Collection[str]) -> None:
    """Raise ValueError if a cascade starts from a predictor that is not compared."""
    for entry in cascades:
        if entry.predictor not in (None, *predictors):
            raise ValueError(
                f"{entry.name} starts from {entry.predictor!r}, which is not among the compared predictors: "
                f"{', '.join(predictors)}"
            )


def rename_duplicates(cascades: Sequence[CascadeEntry], taken: Iterable[str]) -> list[CascadeEntry]:
    """Return the cascades, renamed if they share the name of a predictor or of an earlier cascade."""
    names, renamed = set(taken), []
    for entry in cascades:
        name = entry.name
        while name in names:
            name = f"{name} (cascade)"
        names.add(name)
        renamed.append(replace(entry, name=name))
    return renamed
