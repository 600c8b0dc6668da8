"""Compares predictors on one test split: operating points from calibration, figures from test."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation import figures as fig
from experiments.evaluation.accounts import TOKENS, Account
from experiments.evaluation.fronts import (
    CalibratedPolicy,
    Columns,
    Convention,
    Floats,
    choose_as_oracle,
    find_smallest_right,
    score_of_mix,
    trace_prices,
    upper_hull,
)
from experiments.evaluation.statistics import Estimate, ImageMeans, bootstrap, number_images
from m3_backbone.outcomes import OutcomeTable
from predictor.policy import Front, choose, find_unit, space_budgets, sweep
from predictor.pricing import OperatingPoint


def compare_predictors(
    calibration: OutcomeTable,
    test: OutcomeTable,
    estimates: Mapping[str, tuple[Floats, Floats]],
    defaults: Mapping[str, OperatingPoint],
    *,
    account: Account = TOKENS,
    reference: str | None = "question_only",
    num_budgets: int = 49,
    num_prices: int = 128,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> fig.Comparison:
    """Compare predictors by their estimates on (calibration, test), each `[num_samples, num_scales]`.

    `defaults` are the prices that the predictors are used at, from `predictor.pricing`. `reference` names the
    predictor that the others are compared with, if it is there. `num_prices` are traced at most. Costs,
    budgets and prices are those of `account`; the default price is one per visual token whatever the account.
    Raises ValueError when an image is in both splits or there is no predictor.
    """
    if not estimates:
        raise ValueError("there is no predictor to compare: train one with `python -m experiments.train`")
    if shared := set(calibration.image_id) & set(test.image_id):
        raise ValueError(f"image {min(shared)!r} is in calibration and in test: split by image")
    learned, bench = _Outcomes.of(calibration, account), _Outcomes.of(test, account)
    own = {name: account.own_of(name) for name in estimates}
    # What every predictor can meet, its own cost paid.
    budgets = space_budgets(learned.cost + max(own.values()), num_budgets)
    candidates = {
        name: _Candidate.prepare(
            first, second, learned, bench, budgets - own[name], own[name], defaults[name], num_prices
        )
        for name, (first, second) in estimates.items()
    }
    if reference not in candidates:
        reference = None
    best_fixed = int(learned.score.mean(axis=0).argmax())

    image = number_images(test.image_id)
    choices = {"fixed": np.tile(np.arange(len(test.scales))[:, None], len(test))}
    unit = find_unit(bench.cost)
    oracle_prices = trace_prices(bench.score, bench.cost, unit=unit, num_prices=num_prices)[::-1]
    choices["budgeted"] = np.stack(
        [choose(bench.score, bench.cost, price, unit=unit) for price in oracle_prices]
    )
    choices |= {rule: choose_as_oracle(bench.score, bench.cost, rule)[None] for rule in get_args(Convention)}
    choices |= {f"points of {name}": candidate.points for name, candidate in candidates.items()}
    choices |= {f"default of {name}": candidate.choice[None] for name, candidate in candidates.items()}
    paid = {f"{what} of {name}": own[name] for name in candidates for what in ("points", "default")}
    means = {
        key: (ImageMeans(rows, bench.cost + paid.get(key, 0.0), image), ImageMeans(rows, bench.score, image))
        for key, rows in choices.items()
    }

    def measure(weights: Floats) -> dict[tuple[str, str], Floats]:
        curves = {key: _Curve(costs(weights), scores(weights)) for key, (costs, scores) in means.items()}
        found = {(key, "cost"): curve.cost for key, curve in curves.items()}
        found |= {(key, "score"): curve.score for key, curve in curves.items()}
        compared_with = curves[f"points of {reference}"] if reference else None
        for name, candidate in candidates.items():
            measured = _measure_predictor(candidate, curves[f"points of {name}"], curves, compared_with)
            measured["to_best_fixed"] = (
                curves[f"default of {name}"].score[:, 0] - curves["fixed"].score[:, best_fixed]
            )
            found |= {(f"figures of {name}", figure): values for figure, values in measured.items()}
        return found

    num_images = int(image.max()) + 1
    estimated = bootstrap(measure, num_images, num_resamples=num_resamples, seed=seed, confidence=confidence)

    def point_of(key: str, index: int | slice = 0) -> fig.Point:
        return fig.Point(estimated[key, "cost"][index], estimated[key, "score"][index])

    everything = slice(None)
    fixed, oracle = point_of("fixed", everything), point_of("budgeted", everything)
    return fig.Comparison(
        account=account,
        scales=test.scales,
        num_samples=len(test),
        num_images=num_images,
        num_calibration_samples=len(calibration),
        confidence=confidence,
        num_resamples=num_resamples,
        budgets=budgets,
        fixed=fixed,
        best_fixed=best_fixed,
        mix=upper_hull(fixed.cost.value, fixed.score.value),
        oracle=Front(oracle.cost.value, oracle.score.value, oracle_prices),
        oracles={rule: point_of(rule) for rule in get_args(Convention)},
        predictors=[
            _collect(
                name,
                candidate,
                bench,
                {figure: value for (key, figure), value in estimated.items() if key == f"figures of {name}"},
                point_of(f"points of {name}", everything),
                point_of(f"default of {name}"),
                is_reference=name == reference or reference is None,
            )
            for name, candidate in candidates.items()
        ],
        reference=reference,
    )


@dataclass(frozen=True, eq=False)
class _Outcomes:
    cost: Floats
    score: Floats
    tokens: Floats

    @classmethod
    def of(cls, table: OutcomeTable, account: Account) -> "_Outcomes":
        return cls(account.of(table), table.score.astype(np.float64), TOKENS.of(table))


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A predictor with all that calibration chose for it, and what it then chooses on the test samples.

    `realised` and `trace` hold what the test samples cost, the predictor's `own` cost included.
    """

    policy: CalibratedPolicy
    plan: Floats
    default: OperatingPoint
    trace: Front
    points: np.ndarray
    choice: Columns
    realised: Floats

    @classmethod
    def prepare(
        cls,
        calibration_estimates: ArrayLike,
        test_estimates: ArrayLike,
        calibration: _Outcomes,
        test: _Outcomes,
        budgets: Floats,
        own: float,
        default: OperatingPoint,
        num_prices: int,
    ) -> "_Candidate":
        policy = CalibratedPolicy.from_calibration(
            calibration_estimates, calibration.cost, calibration.score, num_prices=num_prices
        )
        prices = trace_prices(
            calibration_estimates, calibration.cost, unit=policy.unit, num_prices=num_prices
        )
        plan = policy.plan(budgets)
        front = sweep(test_estimates, test.cost, test.score, policy.price, unit=policy.unit)
        trace = sweep(test_estimates, test.cost, test.score, prices, unit=policy.unit)
        return cls(
            policy=policy,
            plan=plan,
            default=default,
            trace=Front(trace.cost + own, trace.score, trace.price),
            points=policy.choose(test_estimates, test.cost),
            choice=choose(test_estimates, test.tokens, default.price, unit=default.unit),
            # The sweep sorts its prices, the policy holds them from cheap to dear.
            realised=plan @ front.cost[::-1] + own,
        )


@dataclass(frozen=True, eq=False)
class _Curve:
    """Points of one policy in each resample, `[num_resamples, num_points]`, mean costs rising."""

    cost: Floats
    score: Floats

    def at(self, cost: Floats) -> Floats:
        """Score on the line through the points, flat beyond, `[num_resamples, num_costs]` like `cost`."""
        return np.stack([np.interp(*row) for row in zip(cost, self.cost, self.score, strict=True)])


def _measure_predictor(
    candidate: _Candidate, own: _Curve, curves: Mapping[str, _Curve], reference: _Curve | None
) -> dict[str, Floats]:
    cost, score = own.cost @ candidate.plan.T, own.score @ candidate.plan.T
    mix = score_of_mix(curves["fixed"].cost, curves["fixed"].score, cost)
    gap = curves["budgeted"].at(cost) - mix
    found = {
        "score": own.at(np.broadcast_to(candidate.realised, cost.shape)),
        "to_mix": score - mix,
        "mean_to_mix": fig.average(score - mix),
        "gap_share": fig.divide(score - mix, gap),
        "mean_gap_share": fig.divide(fig.average(score - mix), fig.average(gap)),
    }
    if reference is not None:
        found["to_reference"] = score - reference.at(cost)
        found["mean_to_reference"] = fig.average(found["to_reference"])
    return found


def _collect(
    name: str,
    candidate: _Candidate,
    test: _Outcomes,
    found: Mapping[str, Estimate],
    front: fig.Point,
    default: fig.Point,
    *,
    is_reference: bool,
) -> fig.PredictorFigures:
    num_scales = test.score.shape[1]
    smallest = find_smallest_right(test.score)
    answerable = smallest >= 0
    steps = candidate.choice[answerable] - smallest[answerable]
    shares = [
        float(part.mean()) if steps.size else float("nan") for part in (steps == 0, steps < 0, steps > 0)
    ]
    return fig.PredictorFigures(
        name=name,
        policy=candidate.policy,
        trace=candidate.trace,
        front=Front(front.cost.value, front.score.value, candidate.policy.price),
        cost=candidate.realised,
        chosen=candidate.plan
        @ np.stack([(candidate.points == column).mean(axis=1) for column in range(num_scales)], axis=1),
        to_reference=None if is_reference else found["to_reference"],
        mean_to_reference=None if is_reference else found["mean_to_reference"],
        default=fig.DefaultPoint(
            candidate.default.price, candidate.choice, default, found["to_best_fixed"], *shares
        ),
        **{key: found[key] for key in ("score", "to_mix", "gap_share", "mean_to_mix", "mean_gap_share")},
    )
