"""Policy table: for each policy and operating point, the scales that are tried for each sample.

Operating points are chosen on the calibration samples and applied to the test samples. Given weights of the
test images, the table returns the mean cost and mean score of every policy at every point; all metrics are
computed from these (`metrics`).

Visual tokens and FLOPs are known for every sample, and their mean is taken over the samples. Milliseconds are
measured on a few other images and are the same for every sample. A mean cost in milliseconds is the sum
over scales of the share of samples that try the scale times its mean milliseconds, plus the vision pass and
the overhead of the policy. Each resample has other mean milliseconds, from a resample of the timed images.
"""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.evaluation.calibration import Binned
from experiments.evaluation.costs import TimingMeans
from experiments.evaluation.curves import divide
from experiments.evaluation.fronts import (
    RULES,
    CalibratedPolicy,
    Columns,
    Floats,
    Grid,
    choose_by_rule,
    find_smallest_right,
    trace_prices,
)
from experiments.evaluation.metric_table import Bound, Ladder, PolicyKey, Predictor, Rule
from experiments.evaluation.metrics import Baseline
from experiments.evaluation.policies import Decisions, Default, Paths, Policy, ScoredSamples
from experiments.evaluation.schedules import ImageMeans, Schedule
from predictor.policy.front import Front, find_unit, space_budgets
from predictor.policy.pricing import find_default
from predictor.policy.switches import find_switches

# Baselines of the non-inferiority tests (fixed scales), and margins in units of the score.
FINEST, BEST_FIXED = "finest", "best fixed"
MARGINS = (0.0, 0.005, 0.01)
# Without a default price from training, the default is the cheapest price that loses at most this score on
# calibration.
TOLERANCE = 0.01


class Quantity(Enum):
    """What is averaged for a policy: its operating points, its default price, its choices at that price."""

    POINTS = auto()
    DEFAULT = auto()
    CHOICES = auto()


class PolicyMeans:
    """Mean costs and mean scores of policies, by key, under weights of the test images.

    `image` `[num_samples]` is the image number of each sample. With `timed`, mean costs are computed from the
    milliseconds passed to each call, and the costs of samples are not used. `repeats` `[num_samples,
    num_scales]` says where a scale coincides with the next coarser one, which a path does not try again.
    Means of other quantities can be added to `images`.
    """

    def __init__(self, image: ArrayLike, *, timed: bool, repeats: NDArray[np.bool_] | None = None) -> None:
        self.images = ImageMeans(image)
        self._timed = timed
        self._repeats = repeats
        # Only for timed policies: the name under which their overhead is measured.
        self._overhead: dict[Hashable, str | None] = {}
        self._fixed: set[Hashable] = set()

    def add_fixed(self, key: Hashable, cost: Floats, score: Floats) -> None:
        """Add the fixed scales, one point each: `cost` and `score` are `[num_samples, num_scales]`."""
        if self._timed:
            self.images.add_columns(key, score)
            self._fixed.add(key)
        else:
            self.images.add_columns(key, cost, score)

    def add(
        self,
        key: Hashable,
        schedule: Schedule,
        paths: Paths,
        cost: Floats,
        score: Floats,
        name: str | None = None,
    ) -> None:
        """Add a policy that follows `schedule`, given `cost` and `score` of its paths.

        Both are `[num_samples, num_paths]`, and `cost` includes the overhead. If costs are timed, the
        overhead of `name` is used instead.
        """
        if not self._timed:
            self.images.add(key, schedule, cost, score)
            return
        tried = np.repeat(paths.tried[None], len(score), axis=0)
        begins = np.repeat((paths.start == 0)[None], len(score), axis=0)
        if self._repeats is not None:
            tried &= ~self._repeats[:, None] | (paths.start[:, None] == np.arange(tried.shape[2]))
            coincides = np.logical_and.accumulate(self._repeats[:, 1:], axis=1)
            begins |= np.insert(coincides, 0, True, axis=1)[:, paths.start]
        columns = np.moveaxis(tried.astype(np.float64), 2, 0)
        self.images.add(key, schedule, *columns, begins.astype(np.float64), score)
        self._overhead[key] = name

    def add_point(
        self,
        key: Hashable,
        choice: NDArray[np.integer],
        paths: Paths,
        cost: Floats,
        score: Floats,
        name: str | None = None,
    ) -> None:
        """Add a policy with one operating point, at which it chooses the paths `choice` `[num_samples]`."""
        self.add(key, Schedule.of(choice[None]), paths, cost, score, name)

    def __call__(
        self, weights: NDArray[Any], milliseconds: TimingMeans | None = None
    ) -> dict[Any, tuple[Floats, ...]]:
        """Return (cost, score) by key, each `[num_resamples, num_points]`, and the means added to `images`.

        `weights` of the images are `[num_resamples, num_images]`; `milliseconds` are the means under the same
        resamples and required if costs are timed.
        """
        means = self.images(weights)
        if not self._timed:
            return means
        assert milliseconds is not None, "`resample` needs the timings of the cost measure"
        for key in self._fixed:
            means[key] = (milliseconds.cost, *means[key])
        for key, name in self._overhead.items():
            *tried, begin, score = means[key]
            means[key] = (milliseconds.cost_of_policy(tried, begin, name), score)
        return means


@dataclass(frozen=True, eq=False)
class PolicyPoints:
    """The operating points of a policy, chosen on calibration, and their choices on the test samples.

    `cost` (with overhead) and `score` `[num_samples, num_paths]` are those of its paths on the test samples,
    `answered` `[num_samples, num_paths]` the column of the scale of the last answer: the coarsest one that
    coincides with the last scale of the path. `tried_first` is the same for the first scale. `points` is the
    schedule of its operating points, from expensive to cheap. `policy`, `plan` `[num_budgets, num_points]`
    and `reaching` list the points from cheap to expensive: `reaching` holds per baseline the probability
    `[num_points]` of each point, or None if no point is non-inferior on calibration. `trace` is the front of
    all its prices on test.
    """

    paths: Paths
    cost: Floats
    score: Floats
    answered: Columns
    tried_first: Columns
    policy: CalibratedPolicy
    plan: Floats
    reaching: Mapping[Baseline, Floats | None]
    trace: Front
    points: Schedule
    default: Default
    estimates: Floats | None

    @classmethod
    def from_decisions(
        cls,
        decisions: Decisions,
        calibration: ScoredSamples,
        test: ScoredSamples,
        budgets: Floats,
        overhead: float,
        baselines: Mapping[str, int],
    ) -> "PolicyPoints":
        """Choose the operating points; `baselines` are the columns of the fixed scales, by role."""
        paths = decisions.paths
        cost, score = paths.cost(calibration), paths.score(calibration.score)
        schedule = decisions.calibration
        front = Front(schedule.mean(cost), schedule.mean(score), decisions.price)
        policy = CalibratedPolicy.from_front(front, decisions.unit)
        fixed = calibration.score.mean(axis=0)
        default = decisions.default
        if default is None:
            row = find_default(front.cost, front.score, float(fixed.max()), tolerance=TOLERANCE)
            default = Default(float(decisions.price[row]), decisions.test.at(row))
        test_cost, test_score = paths.cost(test) + overhead, paths.score(test.score)
        return cls(
            paths=paths,
            cost=test_cost,
            score=test_score,
            answered=test.coarsest[:, paths.stop],
            tried_first=test.coarsest[:, paths.start],
            policy=policy,
            # A budget below the cheapest point uses that point, and is compared at the cost of that point.
            plan=policy.plan(np.maximum(budgets - overhead, policy.cost[0])),
            reaching={
                (name, margin): policy.reach(float(fixed[column]) - margin)
                for name, column in baselines.items()
                for margin in MARGINS
            },
            trace=Front(decisions.test.mean(test_cost), decisions.test.mean(test_score), decisions.price),
            points=decisions.test.keep(np.searchsorted(decisions.price, policy.price[::-1])),
            default=default,
            estimates=decisions.estimates,
        )

    @cached_property
    def realized(self) -> Floats:
        """Realized mean cost on the test samples under each budget, `[num_budgets]`."""
        return self.plan @ self.points.mean(self.cost)[::-1]

    @cached_property
    def chosen(self) -> Floats:
        """Share of the samples whose final answer comes from each scale, `[num_budgets, num_scales]`."""
        num_scales = int(self.paths.stop.max()) + 1
        shares = [
            self.points.mean((self.answered == scale).astype(np.float64))[::-1] for scale in range(num_scales)
        ]
        return self.plan @ np.column_stack(shares)

    @cached_property
    def default_scale(self) -> Columns:
        """Columns of the scales of the final answers at the default price, `[num_samples]`."""
        return self._at_default(self.answered)

    @cached_property
    def default_start(self) -> Columns:
        """Columns of the scales that are tried first at the default price, `[num_samples]`."""
        return self._at_default(self.tried_first)

    def _at_default(self, columns: Columns) -> Columns:
        """Return the entries `[num_samples]` of `columns` `[num_samples, num_paths]` at the default price."""
        return np.take_along_axis(columns, self.default.choice[:, None].astype(np.int64), axis=1)[:, 0]


class PolicyTable:
    """Policies, fixed scales and oracles on one test split, in one cost measure.

    `image` `[num_samples]` is the image number of each test sample; `overhead` is the cost that each policy
    adds to every answer. `own_costs` are the calibration and test samples with the costs of single policies,
    by name, for those that pay other costs (`CostMeasure.sunk_of`). `ladders` are the test samples as other
    backbones answered them, by name; with `timed` there are none. With `timed`, costs are means over timed
    pictures, and `measure` takes the means under each resample. `policies` are by name; `oracle` is the
    budgeted oracle's front, from cheap to expensive.
    """

    def __init__(
        self,
        calibration: ScoredSamples,
        test: ScoredSamples,
        image: np.ndarray,
        policies: Sequence[Policy],
        *,
        overhead: Mapping[str, float],
        grid: Grid,
        own_costs: Mapping[str, tuple[ScoredSamples, ScoredSamples]] | None = None,
        ladders: Mapping[str, ScoredSamples] | None = None,
        timed: bool = False,
    ) -> None:
        self.test = test
        # The mean cost of the cheapest scale of each.
        self.ladders = {
            Ladder(name): float(samples.cost.mean(axis=0).min()) for name, samples in (ladders or {}).items()
        }
        assert not (timed and self.ladders), "the milliseconds of other backbones are not known"
        # The highest overhead is included, so that every policy can meet these budgets.
        self.budgets = space_budgets(calibration.cost + max(overhead.values(), default=0.0), grid.num_budgets)
        self.best_fixed = int(calibration.score.mean(axis=0).argmax())
        self.baselines = {FINEST: test.cost.shape[1] - 1, BEST_FIXED: self.best_fixed}
        self.means = PolicyMeans(image, timed=timed, repeats=test.repeats)
        self._smallest = find_smallest_right(test.score)
        for name, samples in (ladders or {}).items():
            self.means.add_fixed((Ladder(name), Quantity.POINTS), samples.cost, samples.score)

        def prepare(policy: Policy) -> PolicyPoints:
            samples = (own_costs or {}).get(policy.name, (calibration, test))
            decisions = policy.decide(samples[0], samples[1].inputs, grid.num_prices)
            points = PolicyPoints.from_decisions(
                decisions, *samples, self.budgets, overhead[policy.name], self.baselines
            )
            self._add_policy(Predictor(policy.name), points)
            return points

        # NumPy releases the interpreter lock for most of this; two threads limit the memory.
        with ThreadPoolExecutor(max_workers=2) as pool:
            oracle = pool.submit(self._add_bounds, grid.num_prices)
            prepared = list(pool.map(prepare, policies))
            self.oracle = oracle.result()
        self.policies = {policy.name: points for policy, points in zip(policies, prepared, strict=True)}
        self.reliabilities = {
            name: Binned(points.estimates, test.score, image)
            for name, points in self.policies.items()
            if points.estimates is not None
        }
        for name, binned in self.reliabilities.items():
            binned.add_to(self.means.images, Predictor(name))

    @property
    def num_images(self) -> int:
        """Number of test images."""
        return self.means.images.num_images

    def _add_bounds(self, num_prices: int) -> Front:
        """Add fixed scales and oracles, and return the budgeted oracle's front, from cheap to expensive."""
        cost, score = self.test.cost, self.test.score
        paths = Paths.single(cost.shape[1])
        self.means.add_fixed((Bound.FIXED, Quantity.POINTS), cost, score)
        switches, unit = find_switches(score, cost), find_unit(cost)
        prices = trace_prices(switches, cost, unit=unit, num_prices=num_prices)
        schedule = Schedule.at_prices(switches, prices, unit)
        self.means.add((Bound.BUDGETED, Quantity.POINTS), schedule, paths, cost, score)
        for rule in RULES:
            choice = choose_by_rule(score, rule)
            self.means.add_point((Rule(rule), Quantity.POINTS), choice, paths, cost, score)
        return Front(schedule.mean(cost)[::-1], schedule.mean(score)[::-1], prices[::-1])

    def _add_policy(self, policy: Predictor, points: PolicyPoints) -> None:
        """Add the operating points of a policy, its default price, and its choices at that price."""
        outcomes = points.paths, points.cost, points.score, policy.name
        self.means.add((policy, Quantity.POINTS), points.points, *outcomes)
        self.means.add_point((policy, Quantity.DEFAULT), points.default.choice, *outcomes)
        known, steps = (self._smallest >= 0)[:, None], points.default_scale - self._smallest
        right_coarse_fine = known * np.column_stack([steps == 0, steps < 0, steps > 0])
        self.means.images.add_columns(
            (policy, Quantity.CHOICES), known.astype(np.float64), right_coarse_fine.astype(np.float64)
        )

    def measure(self, weights: NDArray[Any], milliseconds: TimingMeans | None = None) -> "ResampledPolicies":
        """Return mean costs and scores under `weights` of the images `[num_resamples, num_images]`.

        If costs are timed, `milliseconds` are the means under the same resamples.
        """
        return ResampledPolicies(self, self.means(weights, milliseconds))


@dataclass(frozen=True, eq=False)
class ResampledPolicies:
    """Mean costs and scores of a policy table under R resamples of the images."""

    table: PolicyTable
    means: Mapping[Any, tuple[Floats, ...]]

    def points(self, policy: PolicyKey) -> tuple[Floats, Floats]:
        """Return mean costs and scores at a policy's points, `[R, num_points]`, from cheap to expensive."""
        cost, score = self.means[policy, Quantity.POINTS]
        # Schedules run from expensive to cheap; fixed scales are columns, from coarse to fine.
        is_fixed = policy is Bound.FIXED or isinstance(policy, Ladder)
        return (cost, score) if is_fixed else (cost[:, ::-1], score[:, ::-1])

    def default(self, policy: Predictor) -> tuple[Floats, Floats]:
        """Return mean cost and mean score of a policy at its default price, each `[R]`."""
        cost, score = self.means[policy, Quantity.DEFAULT]
        return cost[:, 0], score[:, 0]

    def choices(self, policy: Predictor) -> Floats:
        """Return the shares of samples that get the smallest sufficient, a coarser, a finer scale, `[R, 3]`.

        Samples that no scale answers do not count.
        """
        known, shares = self.means[policy, Quantity.CHOICES]
        return divide(shares, np.broadcast_to(known, shares.shape))

    def calibration(self, policy: Predictor) -> tuple[Floats, Floats] | None:
        """Return Brier score and calibration error, each `[R, num_scales]`; None without estimates."""
        binned = self.table.reliabilities.get(policy.name)
        return None if binned is None else binned.measure(self.means, policy)
