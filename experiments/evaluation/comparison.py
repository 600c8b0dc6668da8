"""Compares policies on one test split: operating points from calibration, figures from test."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from experiments.evaluation import figures as fig
from experiments.evaluation.bench import Bench
from experiments.evaluation.candidates import Baseline
from experiments.evaluation.costs import TOKENS, Account
from experiments.evaluation.fronts import Floats
from experiments.evaluation.keys import Bound, Key, Metric, Policy, Predictor, Rule
from experiments.evaluation.merits import count_confusions
from experiments.evaluation.oracles import (
    EXACT,
    RULES,
    LuckFree,
    expect_scores,
    leave_one_out,
    measure_luck_free,
)
from experiments.evaluation.policies import Contender, Outcomes
from experiments.evaluation.statistics import (
    Draws,
    Estimate,
    adjust_p_values,
    check_confidence,
    number_images,
    resample,
)
from experiments.labels.resampled import Resampled
from experiments.results.resamples import list_headlines
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import Front, upper_hull


def compare_policies(
    calibration: OutcomeTable,
    test: OutcomeTable,
    contenders: Sequence[Contender],
    *,
    account: Account = TOKENS,
    resampled: Resampled | None = None,
    reference: str | None = "question_only",
    num_budgets: int = 49,
    num_prices: int = 128,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> fig.Comparison:
    """Compare contenders; the first is the one that the comparison is about.

    `reference` names the contender that the others are compared with, if it is there. `num_prices` are traced
    at most. Costs and budgets are those of `account`. `resampled` are scores of drawn answers, for an oracle
    without luck. `seed` is that of the bootstrap: on the same test samples it draws the same images, whatever
    contenders and account are. If the account has timings, the timed pictures are drawn too. Raises
    ValueError when an image is in both splits, a split is empty, or contenders are none or share a name.
    """
    check_settings(
        num_budgets=num_budgets, num_prices=num_prices, num_resamples=num_resamples, confidence=confidence
    )
    check_names([contender.name for contender in contenders])
    for split, table in (("calibration", calibration), ("test", test)):
        if not len(table):
            raise ValueError(f"the {split} split is empty, and nothing can be compared: label images of it")
    if shared := set(calibration.image_id) & set(test.image_id):
        raise ValueError(f"image {min(shared)!r} is in calibration and in test: split by image")
    bench = Bench(
        Outcomes.of(calibration, account),
        Outcomes.of(test, account),
        number_images(test.image_id),
        contenders,
        own={contender.name: account.own_of(contender.name) for contender in contenders},
        reference=reference,
        num_budgets=num_budgets,
        num_prices=num_prices,
        timed=account.timings is not None,
    )
    num_images = bench.means.images.num_images
    draws = resample(
        bench.measure, num_images, num_resamples=num_resamples, seed=seed, timings=account.timings
    )
    estimated = {key: each.estimate(confidence) for key, each in draws.items()}
    fixed = _point(estimated, Bound.FIXED)
    settings = {
        "num_resamples": num_resamples,
        "confidence": confidence,
        "seed": seed,
        "timings": account.timings,
    }
    return fig.Comparison(
        account=account,
        scales=test.scales,
        num_samples=len(test),
        num_images=num_images,
        num_calibration_samples=len(calibration),
        confidence=confidence,
        num_resamples=num_resamples,
        bootstrap_seed=seed,
        budgets=bench.budgets,
        fixed=fixed,
        best_fixed=bench.best_fixed,
        mix=upper_hull(fixed.cost.value, fixed.score.value),
        oracle=bench.oracle,
        oracles={rule: _point(estimated, Rule(rule)) for rule in RULES},
        mix_scores=estimated[Key(Bound.MIX, Metric.SCORE_AT_BUDGETS)],
        oracle_scores=estimated[Key(Bound.BUDGETED, Metric.SCORE_AT_BUDGETS)],
        oracle_gap=estimated[Key(Bound.BUDGETED, Metric.MEAN_GAP)],
        bounds={bound: _collect_merits(estimated, bound) for bound in (Bound.MIX, Bound.BUDGETED)},
        luck_free=_measure_luck_free(test, bench.outcomes.cost, resampled, num_budgets, num_prices, settings),
        differences=_test_differences(bench, draws, estimated),
        predictors=[_collect(name, bench, estimated) for name in bench.candidates],
        reference=bench.reference,
        draws={name: dict(list_headlines(name, draws)) for name in bench.candidates},
    )


def check_settings(*, num_budgets: int, num_prices: int, num_resamples: int, confidence: float) -> None:
    """Raise ValueError for settings that no comparison can be made with."""
    check_confidence(confidence)
    counts = {"num_budgets": num_budgets, "num_prices": num_prices, "num_resamples": num_resamples}
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"{name} is at least 1, got {number}")


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if there is no policy to compare, or if two policies share a name."""
    if not names:
        raise ValueError("there is no predictor to compare: train one with `python -m experiments.train`")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"two policies of the comparison are called {twice!r}: give each a name of its own")


def _point(
    estimated: Mapping[Key, Estimate],
    policy: Policy,
    metrics: tuple[Metric, Metric] = (Metric.POINT_COST, Metric.POINT_SCORE),
) -> fig.Point:
    cost, score = (estimated[Key(policy, metric)] for metric in metrics)
    return fig.Point(cost, score)


def _collect_merits(estimated: Mapping[Key, Estimate], policy: Policy) -> fig.Merits:
    return fig.Merits(
        average_quality=estimated[Key(policy, Metric.AVERAGE_QUALITY)].or_none(),
        average_gap_recovered=estimated[Key(policy, Metric.AVERAGE_GAP_RECOVERED)].or_none(),
        hypervolume=estimated[Key(policy, Metric.HYPERVOLUME)],
        call_shares={
            recovered: estimated[Key(policy, Metric.CALL_SHARE, recovered)].or_none()
            for recovered in fig.RECOVERED
        },
    )


def _measure_luck_free(
    test: OutcomeTable,
    cost: Floats,
    resampled: Resampled | None,
    num_budgets: int,
    num_prices: int,
    settings: Mapping[str, Any],
) -> dict[str, LuckFree]:
    counts: dict[str, Any] = {"num_budgets": num_budgets, "num_prices": num_prices}
    found = {}
    if all(len(its) == 1 for its in test.references) and set(test.metric) == {EXACT}:
        once = expect_scores(test.nll, test.reference_tokens)[None]
        found["likelihood"] = measure_luck_free(cost, once, once, test.image_id, **counts, **settings)
    if resampled is not None:
        rows, drawn = resampled.rows, resampled.score
        by = leave_one_out(drawn)
        found["resampled"] = measure_luck_free(
            cost[rows], by, drawn, test.image_id[rows], **counts, **settings
        )
    return found


def _test_differences(
    bench: Bench, draws: Mapping[Key, Draws], estimated: Mapping[Key, Estimate]
) -> list[fig.Difference]:
    keys = [Key(first, Metric.MEAN_DIFFERENCE, second) for first, second in bench.pairs]
    p_values = [float(draws[key].p_value()) for key in keys]
    floors = [draws[key].floor for key in keys]
    adjusted, adjusted_floors = adjust_p_values(p_values), adjust_p_values(floors)
    return [
        fig.Difference(
            first.name,
            second.name if isinstance(second, Predictor) else second,
            mean=estimated[key],
            p_value=p_values[number],
            adjusted=float(adjusted[number]),
            floor=floors[number],
            adjusted_floor=float(adjusted_floors[number]),
        )
        for number, (key, (first, second)) in enumerate(zip(keys, bench.pairs, strict=True))
    ]


def _collect(name: str, bench: Bench, estimated: Mapping[Key, Estimate]) -> fig.PredictorFigures:
    policy, candidate = Predictor(name), bench.candidates[name]

    def find(metric: Metric, at: Hashable = None) -> Estimate:
        return estimated[Key(policy, metric, at)]

    points, to_reference, mean_to_reference = _point(estimated, policy), None, None
    if bench.reference is not None and bench.reference != name:
        to_reference = find(Metric.TO_REFERENCE)
        mean_to_reference = find(Metric.MEAN_DIFFERENCE, Predictor(bench.reference))
    reliability = None
    if name in bench.reliabilities:
        reliability = bench.reliabilities[name].describe(find(Metric.BRIER), find(Metric.CALIBRATION_ERROR))
    return fig.PredictorFigures(
        name=name,
        policy=candidate.policy,
        trace=candidate.trace,
        front=Front(points.cost.value, points.score.value, candidate.policy.price),
        points=points,
        plan=candidate.plan,
        budgets=bench.budgets,
        cost=candidate.realised,
        chosen=candidate.chosen,
        score=find(Metric.SCORE_AT_BUDGETS),
        to_mix=find(Metric.TO_MIX),
        to_reference=to_reference,
        gap_share=find(Metric.GAP_SHARE),
        mean_to_mix=find(Metric.MEAN_DIFFERENCE, Bound.MIX),
        mean_to_reference=mean_to_reference,
        mean_gap_share=find(Metric.MEAN_GAP_SHARE).or_none(),
        default=fig.DefaultPoint(
            candidate.default.price,
            candidate.default_scale,
            _point(estimated, policy, (Metric.DEFAULT_COST, Metric.DEFAULT_SCORE)),
            find(Metric.TO_BEST_FIXED),
            find(Metric.SMALLEST_RIGHT).or_none(),
            find(Metric.TOO_COARSE).or_none(),
            find(Metric.TOO_FINE).or_none(),
            count_confusions(bench.outcomes.score, candidate.default_scale),
        ),
        merits=_collect_merits(estimated, policy),
        non_inferiority=[
            _judge(policy, baseline, bench, chance, estimated)
            for baseline, chance in candidate.reaching.items()
        ],
        reliability=reliability,
    )


def _judge(
    policy: Predictor,
    baseline: Baseline,
    bench: Bench,
    chance: Floats | None,
    estimated: Mapping[Key, Estimate],
) -> fig.NonInferiority:
    name, margin = baseline
    cost, saving, difference = (
        estimated.get(Key(policy, metric, baseline))
        for metric in (Metric.REACHED_COST, Metric.REACHED_SAVING, Metric.REACHED_DIFFERENCE)
    )
    price = bench.candidates[policy.name].policy.price
    return fig.NonInferiority(
        name,
        bench.baselines[name],
        margin,
        estimated[Key(policy, Metric.FRONT_COST, baseline)].or_none(),
        estimated[Key(policy, Metric.FRONT_SAVING, baseline)].or_none(),
        prices=() if chance is None else tuple(price[chance > 0].tolist()),
        cost=cost,
        saving=saving,
        difference=difference,
        is_shown=None if difference is None else bool(difference.low >= -margin - 1e-12),
    )
