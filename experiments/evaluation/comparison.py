"""Compares predictors on one test split: operating points from calibration, figures from test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from experiments.evaluation import figures as fig
from experiments.evaluation.accounts import TOKENS, Account
from experiments.evaluation.candidates import Candidate
from experiments.evaluation.contenders import Contender, Outcomes
from experiments.evaluation.fronts import (
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
from predictor.policy import Front, choose_at_prices, find_unit, space_budgets


def compare_policies(
    calibration: OutcomeTable,
    test: OutcomeTable,
    contenders: Sequence[Contender],
    *,
    account: Account = TOKENS,
    reference: str | None = "question_only",
    num_budgets: int = 49,
    num_prices: int = 128,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> fig.Comparison:
    """Compare contenders; the first is the one that the comparison is about.

    `reference` names the contender that the others are compared with, if it is there. `num_prices` are traced
    at most. Costs and budgets are those of `account`. Raises ValueError when an image is in both splits or
    there is no contender.
    """
    if not contenders:
        raise ValueError("there is no predictor to compare: train one with `python -m experiments.train`")
    if shared := set(calibration.image_id) & set(test.image_id):
        raise ValueError(f"image {min(shared)!r} is in calibration and in test: split by image")
    learned, bench = Outcomes.of(calibration, account), Outcomes.of(test, account)
    own = {contender.name: account.own_of(contender.name) for contender in contenders}
    # What every policy can meet, its own cost paid.
    budgets = space_budgets(learned.cost + max(own.values()), num_budgets)
    candidates = {
        contender.name: Candidate.prepare(
            contender.decide(learned, bench.asked, num_prices), learned, bench, budgets, own[contender.name]
        )
        for contender in contenders
    }
    if reference not in candidates:
        reference = None
    best_fixed = int(learned.score.mean(axis=0).argmax())

    image = number_images(test.image_id)
    choices: dict[str, np.ndarray] = {"fixed": np.tile(np.arange(len(test.scales))[:, None], len(test))}
    unit = find_unit(bench.cost)
    oracle_prices = trace_prices(bench.score, bench.cost, unit=unit, num_prices=num_prices)[::-1]
    choices["budgeted"] = choose_at_prices(bench.score, bench.cost, oracle_prices, unit=unit)
    choices |= {rule: choose_as_oracle(bench.score, bench.cost, rule)[None] for rule in get_args(Convention)}
    means = {
        key: (ImageMeans(rows, bench.cost, image), ImageMeans(rows, bench.score, image))
        for key, rows in choices.items()
    }
    for name, candidate in candidates.items():
        for key, rows in (("points", candidate.points), ("default", candidate.choice[None])):
            means[f"{key} of {name}"] = (
                ImageMeans(rows, candidate.cost, image),
                ImageMeans(rows, candidate.score, image),
            )

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
                bench.score,
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
class _Curve:
    """Points of one policy in each resample, `[num_resamples, num_points]`, mean costs rising."""

    cost: Floats
    score: Floats

    def at(self, cost: Floats) -> Floats:
        """Score on the line through the points, flat beyond, `[num_resamples, num_costs]` like `cost`."""
        return np.stack([np.interp(*row) for row in zip(cost, self.cost, self.score, strict=True)])


def _measure_predictor(
    candidate: Candidate, own: _Curve, curves: Mapping[str, _Curve], reference: _Curve | None
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
    candidate: Candidate,
    score: Floats,
    found: Mapping[str, Estimate],
    front: fig.Point,
    default: fig.Point,
    *,
    is_reference: bool,
) -> fig.PredictorFigures:
    stop = candidate.ways.stop
    smallest, choice = find_smallest_right(score), stop[candidate.choice]
    answerable = smallest >= 0
    steps = choice[answerable] - smallest[answerable]
    shares = [
        float(part.mean()) if steps.size else float("nan") for part in (steps == 0, steps < 0, steps > 0)
    ]
    return fig.PredictorFigures(
        name=name,
        policy=candidate.policy,
        trace=candidate.trace,
        front=Front(front.cost.value, front.score.value, candidate.policy.price),
        plan=candidate.plan,
        cost=candidate.realised,
        chosen=candidate.plan
        @ np.stack(
            [(stop[candidate.points] == column).mean(axis=1) for column in range(score.shape[1])], axis=1
        ),
        to_reference=None if is_reference else found["to_reference"],
        mean_to_reference=None if is_reference else found["mean_to_reference"],
        default=fig.DefaultPoint(candidate.default_price, choice, default, found["to_best_fixed"], *shares),
        **{key: found[key] for key in ("score", "to_mix", "gap_share", "mean_to_mix", "mean_gap_share")},
    )
