"""Compares policies on one test split: operating points from calibration, figures from test."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evaluation import figures as fig
from experiments.evaluation.accounts import TOKENS, Account
from experiments.evaluation.bench import BUDGETED, MIX, Bench
from experiments.evaluation.calibration import measure_calibration
from experiments.evaluation.contenders import Contender, Outcomes
from experiments.evaluation.draws import list_headlines
from experiments.evaluation.fronts import Floats
from experiments.evaluation.merits import count_confusions
from experiments.evaluation.oracles import (
    EXACT,
    RULES,
    LuckFree,
    expect_scores,
    leave_one_out,
    measure_luck_free,
)
from experiments.evaluation.resampled import Resampled
from experiments.evaluation.statistics import (
    Draws,
    Estimate,
    adjust_p_values,
    check_confidence,
    number_images,
    resample,
)
from m3_backbone.outcomes import OutcomeTable
from predictor.hull import upper_hull
from predictor.policy import Front


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
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> fig.Comparison:
    """Compare contenders; the first is the one that the comparison is about.

    `reference` names the contender that the others are compared with, if it is there. `num_prices` are traced
    at most. Costs and budgets are those of `account`. `resampled` are scores of drawn answers, for an oracle
    without luck. `seed` is that of the bootstrap: on the same test samples it draws the same images, whatever
    the contenders are. Raises ValueError when an image is in both splits or there is no contender.
    """
    check_confidence(confidence)
    if not contenders:
        raise ValueError("there is no predictor to compare: train one with `python -m experiments.train`")
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
    )
    draws = resample(bench.measure, bench.means.num_images, num_resamples=num_resamples, seed=seed)
    estimated = {key: each.estimate(confidence) for key, each in draws.items()}
    fixed, oracle = _point(estimated, "fixed"), _point(estimated, BUDGETED)
    settings = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    return fig.Comparison(
        account=account,
        scales=test.scales,
        num_samples=len(test),
        num_images=bench.means.num_images,
        num_calibration_samples=len(calibration),
        confidence=confidence,
        num_resamples=num_resamples,
        bootstrap_seed=seed,
        budgets=bench.budgets,
        fixed=fixed,
        best_fixed=bench.best_fixed,
        mix=upper_hull(fixed.cost.value, fixed.score.value),
        oracle=Front(oracle.cost.value, oracle.score.value, bench.oracle_prices),
        oracles={rule: _point(estimated, rule, 0) for rule in RULES},
        mix_scores=estimated[MIX, "at budgets"],
        oracle_scores=estimated[BUDGETED, "at budgets"],
        oracle_gap=estimated[BUDGETED, "gap"],
        bounds={name: _merits(estimated, name) for name in (MIX, BUDGETED)},
        luck_free=_measure_luck_free(test, bench.outcomes.cost, resampled, num_budgets, num_prices, settings),
        differences=_test_differences(bench, draws, confidence),
        predictors=[_collect(name, bench, estimated, settings) for name in bench.candidates],
        reference=bench.reference,
        draws={name: dict(list_headlines(name, draws)) for name in bench.candidates},
    )


def _point(estimated: Mapping[Any, Estimate], key: str, index: Any = ...) -> fig.Point:
    return fig.Point(estimated[key, "cost"][index], estimated[key, "score"][index])


def _merits(estimated: Mapping[Any, Estimate], key: str) -> fig.Merits:
    found = {figure: value for (owner, figure), value in estimated.items() if owner == f"merits of {key}"}
    shares = {recovered: found.pop(("call_share", recovered)) for recovered in fig.RECOVERED}
    return fig.Merits(call_shares=shares, **found)


def _measure_luck_free(
    test: OutcomeTable,
    cost: Floats,
    resampled: Resampled | None,
    num_budgets: int,
    num_prices: int,
    settings: Mapping[str, Any],
) -> dict[str, LuckFree]:
    counts = {"num_budgets": num_budgets, "num_prices": num_prices}
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


def _test_differences(bench: Bench, draws: Mapping[Any, Draws], confidence: float) -> list[fig.Difference]:
    found = [draws[f"figures of {first}", ("mean to", second)] for first, second in bench.pairs]
    p_values = [float(each.p_value()) for each in found]
    return [
        fig.Difference(*pair, each.estimate(confidence), p_value, float(adjusted))
        for pair, each, p_value, adjusted in zip(
            bench.pairs, found, p_values, adjust_p_values(p_values), strict=True
        )
    ]


def _collect(
    name: str, bench: Bench, estimated: Mapping[Any, Estimate], settings: Mapping[str, Any]
) -> fig.PredictorFigures:
    candidate = bench.candidates[name]
    found = {figure: value for (owner, figure), value in estimated.items() if owner == f"figures of {name}"}
    is_reference = name == bench.reference or bench.reference is None
    points = _point(estimated, f"points of {name}")
    right, coarse, fine = (found["choices"][index] for index in range(3))
    reliability = None
    if candidate.estimates is not None:
        reliability = measure_calibration(candidate.estimates, bench.outcomes.score, bench.image, **settings)
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
        to_reference=None if is_reference else found["to_reference"],
        mean_to_reference=None if is_reference else found["mean_to_reference"],
        mean_to_mix=found["mean to", MIX],
        default=fig.DefaultPoint(
            candidate.default.price,
            candidate.default_scale,
            _point(estimated, f"default of {name}", 0),
            found["to_best_fixed"],
            right,
            coarse,
            fine,
            count_confusions(bench.outcomes.score, candidate.default_scale),
        ),
        merits=_merits(estimated, f"points of {name}"),
        non_inferiority=[
            _judge(baseline, margin, bench, candidate.policy.price, chance, found)
            for (baseline, margin), chance in candidate.reaching.items()
        ],
        reliability=reliability,
        **{key: found[key] for key in ("score", "to_mix", "gap_share", "mean_gap_share")},
    )


def _judge(
    baseline: str,
    margin: float,
    bench: Bench,
    price: Floats,
    chance: Floats | None,
    found: Mapping[Any, Estimate],
) -> fig.NonInferiority:
    mine = {what: found.get((baseline, margin, what)) for what in ("cost", "saving", "difference")}
    difference = mine["difference"]
    return fig.NonInferiority(
        baseline,
        bench.baselines[baseline],
        margin,
        found[baseline, margin, "front_cost"],
        found[baseline, margin, "front_saving"],
        prices=() if chance is None else tuple(price[chance > 0].tolist()),
        is_shown=None if difference is None else bool(difference.low >= -margin - 1e-12),
        **mine,
    )
