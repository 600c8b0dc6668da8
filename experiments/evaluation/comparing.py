"""Compares policies on one test split: operating points from calibration, metrics from test."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from experiments.evaluation.comparison import (
    Comparison,
    DefaultPrice,
    Difference,
    LadderResult,
    PolicyResult,
    Verdict,
)
from experiments.evaluation.costs import TOKENS, CostMeasure, TimingMeans
from experiments.evaluation.curves import Curve
from experiments.evaluation.fronts import (
    RULES,
    Columns,
    Floats,
    Grid,
    find_smallest_right,
    raise_budgets,
)
from experiments.evaluation.metric_table import (
    Bound,
    Key,
    Ladder,
    MetricTable,
    Opponent,
    PolicyKey,
    Predictor,
    Rule,
)
from experiments.evaluation.metrics import (
    FrontView,
    PolicyView,
    brier,
    calibration_error,
    find_met,
    mean_difference,
    mean_gap,
    measure_bound,
    measure_policy,
    point_cost,
    point_score,
    reached_difference,
    score_at_budgets,
)
from experiments.evaluation.noise_free import list_noise_free
from experiments.evaluation.policies import Policy, ScoredSamples
from experiments.evaluation.policy_table import PolicyTable
from experiments.evaluation.reachable import ReachableGap
from experiments.evaluation.statistics import (
    Bootstrap,
    Bootstrapped,
    adjust_p_values,
    number_images,
)
from experiments.labels.resampled import Resampled
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import upper_hull

log = logging.getLogger(__name__)


def compare_policies(
    calibration: OutcomeTable,
    test: OutcomeTable,
    policies: Sequence[Policy],
    *,
    measure: CostMeasure = TOKENS,
    resampled: Resampled | None = None,
    ladders: Mapping[str, OutcomeTable] | None = None,
    reference: str | None = "question_only",
    grid: Grid = Grid(),
    bootstrap: Bootstrap = Bootstrap(),
) -> Comparison:
    """Compare policies on the test samples; the first policy is the main one.

    `reference` names the policy that the others are compared with; it is ignored if no policy has that name.
    Costs and the budgets of `grid` are in `measure`. `resampled` holds scores of sampled answers, for a
    noise-free oracle. `ladders` are outcomes of other backbones on the test samples, by name, in the same
    order; they are left out if the cost measure has timings. All policies and cost measures have the same
    resamples of the test samples. If the cost measure has timings, the timed images are resampled too. Raises
    ValueError if an image is in both splits, a split is empty, there is no policy, two policies share a name,
    or a ladder has other samples.
    """
    check_names([policy.name for policy in policies])
    for split, outcomes in (("calibration", calibration), ("test", test)):
        if not len(outcomes):
            raise ValueError(f"the {split} split is empty, and nothing can be compared: label images of it")
    if shared := set(calibration.cluster_id) & set(test.cluster_id):
        raise ValueError(
            f"image {min(shared)!r} is in calibration and in test: split by image, or by cluster if samples "
            "have one"
        )
    others = {} if measure.timings is not None else dict(ladders or {})
    for name, outcomes in others.items():
        if list(outcomes.sample_id) != list(test.sample_id):
            raise ValueError(f"{name} has other samples, or the same in another order")
    table = tabulate_policies(calibration, test, policies, measure, grid, others)
    reachable = ReachableGap.list_all(
        table, test, resampled, num_prices=grid.num_prices, is_timed=measure.timings is not None
    )
    if reference is not None and reference not in table.policies:
        log.info("no policy is called %r: there is no reference to compare with", reference)
        reference = None
    bootstrapped = bootstrap.resample(
        partial(measure_table, table, reference, reachable=reachable), table.num_images, measure.timings
    )
    metrics = MetricTable.from_bootstrap(bootstrapped, bootstrap.confidence)
    differences = _test_differences(list_pairs(table), bootstrapped, metrics)
    del bootstrapped
    fixed_cost, fixed_score = (
        metrics[Key(Bound.FIXED, metric)].value for metric in (point_cost, point_score)
    )
    return Comparison(
        measure=measure,
        scales=test.scales,
        num_samples=len(test),
        num_images=table.num_images,
        num_calibration_samples=len(calibration),
        bootstrap=bootstrap,
        budgets=table.budgets,
        best_fixed=table.best_fixed,
        mix=upper_hull(fixed_cost, fixed_score),
        coinciding=table.test.repeats.mean(axis=0),
        oracle=table.oracle,
        noise_free=list_noise_free(
            test, table.test.cost, resampled, grid=grid, bootstrap=bootstrap, timings=measure.timings
        ),
        differences=differences,
        policies=[_describe(name, table, metrics) for name in table.policies],
        reference=reference,
        metrics=metrics,
        ladders=[
            LadderResult(
                ladder.name,
                others[ladder.name].scales,
                cost=metrics[Key(ladder, point_cost)],
                score=metrics[Key(ladder, point_score)],
                difference=difference,
                lowest_cost=_find_lowest_cost(table, ladder),
            )
            for difference in differences
            if isinstance(ladder := difference.second, Ladder)
        ],
    )


def _find_lowest_cost(table: PolicyTable, ladder: Ladder) -> float | None:
    """Return the lowest cost at which the first policy is compared with a ladder, None if at no cost."""
    realized = next(iter(table.policies.values())).realized
    is_met = find_met(realized, table.ladders[ladder])
    return float(realized[is_met].min()) if is_met.any() else None


def tabulate_policies(
    calibration: OutcomeTable,
    test: OutcomeTable,
    policies: Sequence[Policy],
    measure: CostMeasure,
    grid: Grid,
    ladders: Mapping[str, OutcomeTable] | None = None,
) -> PolicyTable:
    """Return the policy table of these samples, with the costs that each policy pays in `measure`."""
    return PolicyTable(
        ScoredSamples.of(calibration, measure),
        ScoredSamples.of(test, measure),
        number_images(test.cluster_id),
        policies,
        overhead={policy.name: measure.overhead_of(policy.name) for policy in policies},
        grid=grid,
        own_costs={
            policy.name: (
                ScoredSamples.of(calibration, measure, policy.name),
                ScoredSamples.of(test, measure, policy.name),
            )
            for policy in policies
            if measure.has_sunk(test, policy.name)
        },
        ladders={name: ScoredSamples.of(outcomes, measure) for name, outcomes in (ladders or {}).items()},
        timed=measure.timings is not None,
    )


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if there is no policy to compare, or if two policies share a name."""
    if not names:
        raise ValueError("there is no predictor to compare: train one with `tokenscale train`")
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"two policies of the comparison are called {duplicate!r}: rename one of them")


def count_confusions(score: Floats, choice: Columns) -> Columns:
    """Count samples by smallest sufficient scale and chosen scale, `[num_scales + 1, num_scales]`.

    Rows are needed scales, coarsest first; the last row counts the samples that no scale answers.
    """
    scores = np.asarray(score)
    num_scales = scores.shape[1]
    needed = find_smallest_right(scores)
    needed = np.where(needed < 0, num_scales, needed)
    cells = np.bincount(needed * num_scales + np.asarray(choice), minlength=(num_scales + 1) * num_scales)
    return cells.reshape(num_scales + 1, num_scales)


def list_pairs(table: PolicyTable) -> list[tuple[Predictor, Opponent]]:
    """Return the tested differences.

    They are every policy minus the mix, and the first one minus every other policy and other ladder.
    """
    first, *others = map(Predictor, table.policies)
    pairs: list[tuple[Predictor, Opponent]] = [(policy, Bound.MIX) for policy in (first, *others)]
    pairs += [(first, other) for other in others]
    return pairs + [(first, ladder) for ladder in table.ladders]


def measure_table(
    table: PolicyTable,
    reference: str | None,
    weights: np.ndarray,
    milliseconds: TimingMeans | None = None,
    reachable: Mapping[str, ReachableGap] | None = None,
) -> dict[Key, Floats]:
    """Return every metric, `[num_resamples, ...]`, under image weights `[num_resamples, num_images]`.

    If costs are timed, `milliseconds` are the means under the same resamples. `reachable` are the gaps to the
    noise-free oracles, by name.
    """
    return dict(_measure(table, reference, weights, milliseconds, reachable or {}))


def _measure(
    table: PolicyTable,
    reference: str | None,
    weights: np.ndarray,
    milliseconds: TimingMeans | None,
    reachable: Mapping[str, ReachableGap],
) -> Iterator[tuple[Key, Floats]]:
    pairs = list_pairs(table)
    gains = {name: gap.measure(weights, milliseconds) for name, gap in reachable.items()}
    resampled = table.measure(weights, milliseconds)
    fixed = resampled.points(Bound.FIXED)
    policies = list(map(Predictor, table.policies))
    fronts: list[PolicyKey] = [Bound.BUDGETED, *policies]
    lines = {policy: Curve.of(*resampled.points(policy)) for policy in fronts}
    lines[Bound.MIX] = Curve.of(*fixed).hull()
    coarsest, finest = ((fixed[0][:, column], fixed[1][:, column]) for column in (0, -1))
    yield Key(Bound.FIXED, point_cost), fixed[0]
    yield Key(Bound.FIXED, point_score), fixed[1]
    for ladder in table.ladders:
        cost, score = resampled.points(ladder)
        lines[ladder] = Curve.of(cost, score).hull()
        yield Key(ladder, point_cost), cost
        yield Key(ladder, point_score), score
    for rule in map(Rule, RULES):
        cost, score = resampled.points(rule)
        yield Key(rule, point_cost), cost[:, 0]
        yield Key(rule, point_score), score[:, 0]
    budgets = raise_budgets(table.budgets, fixed[0])
    mix, oracle = (lines[bound].at(budgets) for bound in (Bound.MIX, Bound.BUDGETED))
    yield Key(Bound.MIX, score_at_budgets), mix
    yield Key(Bound.BUDGETED, score_at_budgets), oracle
    yield Key(Bound.BUDGETED, mean_gap), mean_gap(oracle, mix)
    for bound in (Bound.MIX, Bound.BUDGETED):
        yield from measure_bound(FrontView(lines[bound], coarsest, finest), bound)
    for policy in policies:
        points = table.policies[policy.name]
        yield from measure_policy(
            PolicyView(
                curve=lines[policy],
                coarsest=coarsest,
                finest=finest,
                policy=policy,
                points=resampled.points(policy),
                plan=points.plan,
                realized=points.realized,
                lines=lines,
                fixed=fixed,
                best_fixed=table.best_fixed,
                default=resampled.default(policy),
                choices=resampled.choices(policy),
                baselines=table.baselines,
                reaching=points.reaching,
                calibration=resampled.calibration(policy),
                opponents=tuple(second for first, second in pairs if first == policy),
                reference=None if reference is None else Predictor(reference),
                reachable={name: gain[policy.name] for name, gain in gains.items()},
                ladder_costs=table.ladders,
            )
        )


def _test_differences(
    pairs: Sequence[tuple[Predictor, Opponent]],
    bootstrapped: Mapping[Key, Bootstrapped],
    metrics: MetricTable,
) -> list[Difference]:
    keys = [Key(first, mean_difference, second) for first, second in pairs]
    p_values = [float(bootstrapped[key].p_value()) for key in keys]
    floors = [bootstrapped[key].floor for key in keys]
    adjusted, adjusted_floors = adjust_p_values(p_values), adjust_p_values(floors)
    return [
        Difference(
            first,
            second,
            mean=metrics[key],
            p_value=p_values[number],
            adjusted=float(adjusted[number]),
            floor=floors[number],
            adjusted_floor=float(adjusted_floors[number]),
        )
        for number, (key, (first, second)) in enumerate(zip(keys, pairs, strict=True))
    ]


def _describe(name: str, table: PolicyTable, metrics: MetricTable) -> PolicyResult:
    policy, points = Predictor(name), table.policies[name]
    reliability = None
    if name in table.reliabilities:
        binned = table.reliabilities[name]
        reliability = binned.describe(metrics[Key(policy, brier)], metrics[Key(policy, calibration_error)])
    verdicts = []
    for baseline, probability in points.reaching.items():
        difference = metrics.get(Key(policy, reached_difference, baseline))
        verdicts.append(
            Verdict(
                baseline,
                table.baselines[baseline[0]],
                prices=() if probability is None else tuple(points.policy.price[probability > 0].tolist()),
                is_shown=None if difference is None else bool(difference.low >= -baseline[1] - 1e-12),
            )
        )
    choice = points.default_scale
    is_best_fixed = bool((choice == table.test.coarsest[:, table.best_fixed]).all())
    confusion = count_confusions(table.test.score, choice)
    samples = np.arange(len(choice))
    return PolicyResult(
        name=name,
        policy=points.policy,
        trace=points.trace,
        plan=points.plan,
        budgets=table.budgets,
        cost=points.realized,
        chosen=points.chosen,
        default=DefaultPrice(
            points.default.price,
            choice,
            points.paths,
            points.default.choice,
            points.default_start,
            points.cost[samples, points.default.choice],
            points.score[samples, points.default.choice],
            is_best_fixed,
            confusion,
        ),
        verdicts=verdicts,
        reliability=reliability,
        metrics=metrics,
        key=policy,
    )
