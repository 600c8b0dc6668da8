"""Comparison of backbones on the same samples, at matched costs.

Every backbone has its own scales, costs, predictor and oracles. In each cost measure, the budgets lie between
the dearest of the coarsest scales and the cheapest of the finest scales, so that every backbone can meet them
with and without a choice of scales. At each budget, scores of two backbones are compared on the same
resamples of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from experiments.evaluation.comparing import tabulate_policies
from experiments.evaluation.costs import CostMeasure, TimingMeans
from experiments.evaluation.curves import Curve, average
from experiments.evaluation.fronts import Floats, Grid, find_smallest_right
from experiments.evaluation.metric_table import Bound, Predictor
from experiments.evaluation.noise_free import NOISE_FREE, OraclePoints, list_expected_scores
from experiments.evaluation.policies import Policy
from experiments.evaluation.policy_table import PolicyTable
from experiments.evaluation.statistics import (
    Bootstrap,
    Bootstrapped,
    Estimate,
    adjust_p_values,
    number_images,
)
from experiments.labels.resampled import Resampled
from m3_backbone.outcomes.table import OutcomeTable


@dataclass(frozen=True)
class NoiseFree:
    """A noise-free oracle, by its name in `noise_free.NOISE_FREE`."""

    name: str


# How scales are chosen: at random between two fixed ones, by a predictor, or by an oracle.
Chooser = Bound | Predictor | NoiseFree


def label_of(chooser: Chooser) -> str:
    """Return the name of a chooser in tables and plots."""
    match chooser:
        case Predictor(name):
            return name
        case NoiseFree(name):
            return NOISE_FREE[name]
        case Bound():
            return chooser.label


@dataclass(frozen=True, eq=False)
class BackboneSamples:
    """Samples of one backbone: outcomes on calibration and test, its policies, and its cost measures."""

    name: str
    calibration: OutcomeTable
    test: OutcomeTable
    policies: Sequence[Policy]
    measures: Sequence[CostMeasure]
    resampled: Resampled | None = None


@dataclass(frozen=True, eq=False)
class BackboneFronts:
    """Fronts of one backbone in one cost measure.

    `fixed_cost` and `fixed_score` are those of the fixed scales, `[num_scales]`. `lines` holds the mean costs
    and scores `[num_points]` at the operating points of each chooser, from cheap to expensive; `at_budgets`
    its scores at the shared budgets, `[num_budgets]`, and `means` their average.
    """

    name: str
    scales: tuple[int, ...]
    fixed_cost: Floats
    fixed_score: Estimate
    lines: Mapping[Chooser, tuple[Floats, Floats]]
    at_budgets: Mapping[Chooser, Estimate]
    means: Mapping[Chooser, Estimate]


@dataclass(frozen=True)
class BackboneDifference:
    """Score of backbone `second` minus that of `first`, averaged over the shared budgets.

    `p_value` is two-sided; `adjusted` is corrected (Holm) over all differences of its cost measure.
    """

    chooser: Chooser
    first: str
    second: str
    mean: Estimate
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class FixedDifference:
    """Score of a fixed scale of backbone `second` minus that of a scale of `first` with the same mean `cost`.

    `p_value` and `adjusted` as in `BackboneDifference`.
    """

    cost: float
    first: str
    second: str
    score: Estimate
    difference: Estimate
    p_value: float
    adjusted: float


@dataclass(frozen=True, eq=False)
class JointOracle:
    """The oracle that may choose among the scales of all backbones, at the shared budgets.

    `chooser` is the budgeted or a noise-free oracle. `mean` is its score averaged over the budgets, `gain`
    that score minus the best one of a single backbone's oracle.
    """

    chooser: Chooser
    mean: Estimate
    gain: Estimate


@dataclass(frozen=True, eq=False)
class MatchedCosts:
    """All backbones in one cost measure; `budgets` `[num_budgets]` are shared and log-spaced."""

    key: str
    unit: str
    label: str
    budgets: Floats
    backbones: Sequence[BackboneFronts]
    differences: Sequence[BackboneDifference]
    fixed: Sequence[FixedDifference]
    joint: Sequence[JointOracle]


@dataclass(frozen=True, eq=False)
class BackboneComparison:
    """Comparison of backbones on the same test samples.

    `answered` holds the share of the samples that all, no, or only one of the backbones answers correctly
    at some scale. `skipped` names the cost measures in which the costs of the backbones do not overlap.
    """

    names: Sequence[str]
    measures: Sequence[MatchedCosts]
    answered: Mapping[str, Estimate]
    skipped: Sequence[str]
    num_samples: int
    num_images: int
    bootstrap: Bootstrap


def compare_backbones(
    backbones: Sequence[BackboneSamples],
    grid: Grid,
    bootstrap: Bootstrap,
) -> BackboneComparison:
    """Compare backbones in every cost measure that all of them have; the first one is the reference.

    Choosers that not all backbones have are omitted. Raises ValueError for fewer than two backbones, for
    equal names, and for samples that differ.
    """
    check_samples(backbones)
    confidence = bootstrap.confidence
    measures, skipped = [], []
    for measure in backbones[0].measures:
        own = [_find_measure(backbone, measure.key) for backbone in backbones]
        if any(candidate is None for candidate in own):
            skipped.append(f"{measure.unit}: not known for every backbone")
            continue
        tables = [
            _MeasuredBackbone(backbone, candidate, grid)
            for backbone, candidate in zip(backbones, own, strict=True)
            if candidate is not None
        ]
        low = max(float(table.cheapest) for table in tables)
        high = min(float(table.dearest) for table in tables)
        if low >= high:
            skipped.append(f"{measure.unit}: the costs of the backbones do not overlap")
            continue
        budgets = np.geomspace(low, high, grid.num_budgets)
        measured = [table.resample(budgets, bootstrap) for table in tables]
        joint = _measure_joint(
            backbones[0].test.cluster_id, tables, measured, budgets, grid.num_prices, bootstrap
        )
        fronts = [table.describe(scores, confidence) for table, scores in zip(tables, measured, strict=True)]
        measures.append(
            MatchedCosts(
                measure.key,
                measure.unit,
                measure.label,
                budgets,
                fronts,
                _test_differences([backbone.name for backbone in backbones], measured, confidence),
                _test_fixed_scales(fronts, [scores[Bound.FIXED] for scores in measured], confidence),
                [
                    JointOracle(chooser, mean.estimate(confidence), gain.estimate(confidence))
                    for chooser, (mean, gain) in joint.items()
                ],
            )
        )
    first = backbones[0].test
    return BackboneComparison(
        names=[backbone.name for backbone in backbones],
        measures=measures,
        answered={
            name: share.estimate(confidence) for name, share in _share_answered(backbones, bootstrap).items()
        },
        skipped=skipped,
        num_samples=len(first),
        num_images=int(number_images(first.cluster_id).max()) + 1,
        bootstrap=bootstrap,
    )


def _list_samples(table: OutcomeTable) -> list[str]:
    """Return the sample ids without the name of the task, as a video task may be labelled under two names."""
    pairs = zip(table.sample_id, table.task, strict=True)
    return [str(sample_id).removeprefix(f"{task}/") for sample_id, task in pairs]


def check_samples(backbones: Sequence[BackboneSamples]) -> None:
    """Raise ValueError unless there are two or more backbones with different names and the same samples."""
    names = [backbone.name for backbone in backbones]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"give two or more different backbones, got {', '.join(names) or 'none'}")
    first = backbones[0]
    for backbone in backbones[1:]:
        if _list_samples(first.test) != _list_samples(backbone.test):
            raise ValueError(describe_other_samples(first.name, backbone.name))


def describe_other_samples(first: str, second: str) -> str:
    """Return an error message for two backbones that answered different test samples."""
    return (
        f"{first} and {second} answered different test samples: label the task with the same limits and seed "
        "for both; skipped.jsonl in each label folder lists the samples that could not be answered"
    )


def _find_measure(backbone: BackboneSamples, key: str) -> CostMeasure | None:
    return next((measure for measure in backbone.measures if measure.key == key), None)


class _MeasuredBackbone:
    """One backbone in one cost measure: its policy table, and its noise-free oracles."""

    def __init__(self, backbone: BackboneSamples, measure: CostMeasure, grid: Grid) -> None:
        self._measure, test = measure, backbone.test
        self.name, self.scales = backbone.name, test.scales
        self.table: PolicyTable = tabulate_policies(
            backbone.calibration, test, backbone.policies, measure, grid
        )
        self.cost = self.table.test.cost
        # Sampled answers may cover a part of the samples only, which another backbone may lack.
        self.expected = {
            NoiseFree(name): expected
            for name, expected in list_expected_scores(test, backbone.resampled).items()
            if len(expected.rows) == len(test)
        }
        self.noise_free = {
            chooser: OraclePoints(
                self.cost,
                expected.estimates,
                expected.score,
                test.cluster_id,
                num_prices=grid.num_prices,
                is_timed=measure.timings is not None,
            )
            for chooser, expected in self.expected.items()
        }
        timings = measure.timings
        ones = np.ones((1, self.table.num_images))
        self._points = self._measure_points(ones, None if timings is None else timings.means())
        (self._fixed_cost, _), self._lines = self._points
        self.cheapest = max(cost[0, 0] for cost, _ in self._lines.values())
        self.dearest = self._fixed_cost[0, -1]

    def _measure_points(
        self, weights: np.ndarray, milliseconds: TimingMeans | None = None
    ) -> tuple[tuple[Floats, Floats], dict[Chooser, tuple[Floats, Floats]]]:
        """Return costs and scores of the fixed scales, and of the operating points of each chooser."""
        resampled = self.table.measure(weights, milliseconds)
        fixed = resampled.points(Bound.FIXED)
        hull = Curve.of(*fixed).hull()
        lines: dict[Chooser, tuple[Floats, Floats]] = {
            Bound.MIX: (hull.cost, hull.score),
            **{Predictor(name): resampled.points(Predictor(name)) for name in self.table.policies},
            Bound.BUDGETED: resampled.points(Bound.BUDGETED),
        }
        for chooser, points in self.noise_free.items():
            lines[chooser] = points.measure(weights, milliseconds)[1]
        return fixed, lines

    def resample(self, budgets: Floats, bootstrap: Bootstrap) -> Mapping[Chooser, Bootstrapped]:
        """Return the scores of every chooser at `budgets`, and of the fixed scales, on the resamples."""

        def measure(weights: np.ndarray, milliseconds: TimingMeans | None = None) -> dict[Chooser, Floats]:
            fixed, lines = self._measure_points(weights, milliseconds)
            at = np.repeat(budgets[None], len(weights), axis=0)
            scores: dict[Chooser, Floats] = {
                chooser: Curve.of(*line).at(at) for chooser, line in lines.items()
            }
            return {**scores, Bound.FIXED: fixed[1]}

        return bootstrap.resample(measure, self.table.num_images, self._measure.timings)

    def describe(self, scores: Mapping[Chooser, Bootstrapped], confidence: float) -> BackboneFronts:
        """Return the fronts of this backbone, given its resampled scores."""
        choosers = [chooser for chooser in scores if chooser is not Bound.FIXED]
        return BackboneFronts(
            self.name,
            self.scales,
            self._fixed_cost[0],
            scores[Bound.FIXED].estimate(confidence),
            {chooser: (cost[0], score[0]) for chooser, (cost, score) in self._lines.items()},
            {chooser: scores[chooser].estimate(confidence) for chooser in choosers},
            {chooser: _average(scores[chooser]).estimate(confidence) for chooser in choosers},
        )


def _average(scores: Bootstrapped) -> Bootstrapped:
    """Return the mean over the budgets."""
    return Bootstrapped(average(scores.value), average(scores.resamples), scores.has_interval)


def _subtract(first: Bootstrapped, second: Bootstrapped) -> Bootstrapped:
    return Bootstrapped(first.value - second.value, first.resamples - second.resamples, first.has_interval)


def _test_differences(
    names: Sequence[str], measured: Sequence[Mapping[Chooser, Bootstrapped]], confidence: float
) -> list[BackboneDifference]:
    """Return the differences of every backbone to the first, for the choosers that all of them have."""
    first, *others = measured
    pairs = [
        (chooser, name, _subtract(_average(scores[chooser]), _average(first[chooser])))
        for name, scores in zip(names[1:], others, strict=True)
        for chooser in first
        if chooser is not Bound.FIXED and all(chooser in other for other in others)
    ]
    p_values = [float(difference.p_value()) for _, _, difference in pairs]
    return [
        BackboneDifference(chooser, names[0], name, difference.estimate(confidence), p_value, float(adjusted))
        for (chooser, name, difference), p_value, adjusted in zip(
            pairs, p_values, adjust_p_values(p_values), strict=True
        )
    ]


def _test_fixed_scales(
    fronts: Sequence[BackboneFronts], scores: Sequence[Bootstrapped], confidence: float
) -> list[FixedDifference]:
    """Return the differences of the fixed scales of every backbone to those of the first of equal cost."""
    first, *others = zip(fronts, scores, strict=True)
    pairs = []
    for column, cost in enumerate(first[0].fixed_cost):
        reference = _take(first[1], column)
        for backbone, fixed in others:
            for equal in np.flatnonzero(np.isclose(backbone.fixed_cost, cost, rtol=1e-9)).tolist():
                pairs.append((float(cost), backbone.name, _take(fixed, equal), reference))
    differences = [_subtract(score, reference) for _, _, score, reference in pairs]
    p_values = [float(difference.p_value()) for difference in differences]
    return [
        FixedDifference(
            cost,
            first[0].name,
            name,
            score.estimate(confidence),
            difference.estimate(confidence),
            p_value,
            float(adjusted),
        )
        for (cost, name, score, _), difference, p_value, adjusted in zip(
            pairs, differences, p_values, adjust_p_values(p_values), strict=True
        )
    ]


def _take(scores: Bootstrapped, column: int) -> Bootstrapped:
    """Return the score of one fixed scale."""
    return Bootstrapped(scores.value[column], scores.resamples[:, column], scores.has_interval)


def _measure_joint(
    image_id: np.ndarray,
    tables: Sequence[_MeasuredBackbone],
    measured: Sequence[Mapping[Chooser, Bootstrapped]],
    budgets: Floats,
    num_prices: int,
    bootstrap: Bootstrap,
) -> dict[Chooser, tuple[Bootstrapped, Bootstrapped]]:
    """Return mean and gain of each joint oracle; costs in milliseconds are means, held fixed."""
    cost = np.concatenate([table.cost for table in tables], axis=1)
    greedy = np.concatenate([table.table.test.score for table in tables], axis=1)[None]
    choices: dict[Chooser, tuple[Floats, Floats]] = {Bound.BUDGETED: (greedy, greedy)}
    for oracle in tables[0].expected:
        expected = [table.expected[oracle] for table in tables if oracle in table.expected]
        if len(expected) == len(tables) and len({len(part.score) for part in expected}) == 1:
            choices[oracle] = (
                np.concatenate([part.estimates for part in expected], axis=2),
                np.concatenate([part.score for part in expected], axis=2),
            )
    # The finest scale, whose mean cost is the unit of prices, is the last column.
    order = np.argsort(cost.mean(axis=0), kind="stable")
    joint: dict[Chooser, tuple[Bootstrapped, Bootstrapped]] = {}
    for chooser, (estimates, score) in choices.items():
        points = OraclePoints(
            cost[:, order],
            estimates[..., order],
            score[..., order],
            image_id,
            num_prices=num_prices,
            is_timed=False,
        )
        resampled = bootstrap.resample(partial(_score_at, points, budgets, chooser), points.num_images)
        mean = _average(resampled[chooser])
        single = [_average(entry[chooser]) for entry in measured]
        best = Bootstrapped(
            np.max([entry.value for entry in single], axis=0),
            np.max([entry.resamples for entry in single], axis=0),
            mean.has_interval,
        )
        joint[chooser] = (mean, _subtract(mean, best))
    return joint


def _score_at(
    points: OraclePoints, budgets: Floats, chooser: Chooser, weights: np.ndarray
) -> dict[Chooser, Floats]:
    """Return the scores of an oracle at the budgets, `[num_resamples, num_budgets]`."""
    _, line = points.measure(weights)
    return {chooser: Curve.of(*line).at(np.repeat(budgets[None], len(weights), axis=0))}


def _share_answered(backbones: Sequence[BackboneSamples], bootstrap: Bootstrap) -> dict[str, Bootstrapped]:
    """Return the shares of samples that all, none or only one of the backbones answers at some scale."""
    answered = np.stack([find_smallest_right(backbone.test.score) >= 0 for backbone in backbones], axis=1)
    groups: dict[str, Any] = {"all": answered.all(axis=1), "none": ~answered.any(axis=1)}
    for column, backbone in enumerate(backbones):
        groups[f"only {backbone.name}"] = answered[:, column] & (answered.sum(axis=1) == 1)
    image = number_images(backbones[0].test.cluster_id)
    counts = np.bincount(image).astype(np.float64)
    sums = {name: np.bincount(image, weights=members) for name, members in groups.items()}

    def measure(weights: np.ndarray) -> dict[str, Floats]:
        total = weights @ counts
        return {name: (weights @ per_image) / total for name, per_image in sums.items()}

    return bootstrap.resample(measure, len(counts))
