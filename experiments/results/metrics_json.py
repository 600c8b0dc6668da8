"""`metrics.json` and `milliseconds.json`: views of the metric tables, for other programs to read.

Figures as JSON: six decimals, intervals as `{"value", "low", "high"}`, null for what does not exist.

`metrics.json`: what an evaluation found, for other programs to read.

Schema version 5. Scores are means in [0, 1], costs mean visual tokens. A figure is `{"value", "low", "high"}`
with the bounds of its bootstrap interval, null for fewer than 8 test images. Numbers are rounded to six
decimals; null stands for a figure that does not exist (the share of a gap of zero), in place of the whole
figure. No times and no paths: the same labels, predictors and seeds give the same bytes.
`experiments.evaluation.figures` defines every figure; `draws.safetensors` beside it holds the headline
figures on every resample (`experiments.results.resamples`).

    schema_version          5
    task, backbone          names
    fingerprints            weights, data, prompt and decoding of the labels
    split                   num_samples, num_images, num_calibration_samples
    bootstrap               num_resamples, confidence, seed (the same one draws the same images in every run)
    budgets                 [k] mean visual tokens at which predictors are compared
    fixed                   per scale: scale, cost, score; `on_mix`: it is a vertex of the mix; `best`: it is
                            the best on calibration
    oracles                 authors (failures charged the coarsest scale), honest (the finest), stable (the
                            smallest scale from which on the answer stays right): cost, score
    luck_free.NAME          likelihood, resampled; those that the outcomes allow: num_samples, num_runs; fixed
                            per scale and front from cheap to dear: expected cost, score; gap
    bounds                  mix, budgeted: at_budgets [k] scores, and merits as below
    oracle_gap              from mix to budgeted oracle, over log budgets
    nothing_to_gain         true where all scales cost the same, or the oracle is nowhere above the mix
    finer_scales_help       false where no fixed scale that costs more than the cheapest scores more
    budgeted_oracle         cost [t], score [t]: all vertices of its front, or the most evenly spread ones
    kinds                   per kind of question: num_samples, score [num_scales]
    reference               the predictor that the others are compared with, or null
    differences             every policy to the mix, the first one to the others: first (a name), second (a
                            name, or {"bound": "mix"} for the mix of fixed scales), mean over log budgets at
                            matched cost, p_value, adjusted (Holm over all of them); floor, adjusted_floor:
                            the least that these can be with so many resamples
    predictors.NAME         the one that the report is about comes first
        seed, starts_from   that it was trained with; predictor that a cascade starts from; or null
        mean_to_mix, mean_to_reference, mean_gap_share      over log budgets
        at_budgets          per budget: budget, cost, chosen, score, to_mix, to_reference, gap_share
        merits              average_quality (AIQ), average_gap_recovered (APGR), hypervolume,
                            call_shares (CPT) by share of the gap recovered
        non_inferiority     per baseline (finest, best fixed) and margin: scale; front_cost, front_saving of
                            the front on test; of the operating point that calibration chose prices, cost,
                            saving, difference, is_shown, or null where it chose none
        reliability         null, or brier and error per scale, edges of the bins, and count, estimate, score
                            [num_scales, num_bins]
        front               per operating point, from cheap to dear: price, calibration_cost,
                            calibration_score, cost, score
        trace               per traced price: price, cost, score
        unit                visual tokens that one price is charged for
        default             price, cost, score, to_best_fixed, chosen, and of the samples that some scale
                            answers the shares smallest_right, too_coarse, too_fine; confusion, samples by
                            needed scale (rows; last: none is enough) and chosen scale
    risk                    alpha, delta: with probability 1 - delta the mean score is at most alpha below the
                            finest scale's (`evaluation.risk`); level: delta, or with `risk.joint` delta over
                            the number of predictors
        predictors.NAME     price per unit visual tokens, null where infeasible; num_images (of calibration);
                            num_needed: images that would do, null where there is no such number;
                            most_questions that an image counts for; calibration_cost and calibration_drop at
                            that price, or at the safest; cost and drop on test, of the finest scale where
                            infeasible; resplit_check: null, or num_resplits, num_images, num_population,
                            num_certified, num_failed, failed (share), cost (`evaluation.risk.ResplitCheck`)
    published               where there are any: source, table, checkpoint, split, relation (of our test split
                            to it: same, part, other, unknown), scores by scale, oracle_scale, oracle_score
                            (`evaluation.published`)
    flops                   the same comparison with costs in GFLOPs of vision pass, prefill and predictor:
                            unit, budgets (lowest, highest), fixed (cost per scale); per predictor own (what
                            it adds to an answer), mean_to_mix, mean_to_reference, mean_gap_share, merits,
                            non_inferiority, default. Before schema 5 these costs lacked the vision pass:
                            costs, differences and shares of schema 4 are others, and not to be compared
    digest                  of all the rest (`m3_backbone.outcomes.manifest`)

`milliseconds.json`, of that last form, has the costs of answers as measured (`evaluation.accounts`), and as
`timings` num_pictures, num_rounds, batch_size, and the costs `fixed` with their intervals. Intervals cover
the noise of these timings, but not how the machine drifts between runs.

`chosen` [num_scales] are shares of the samples.

What an evaluation leaves for programs: `metrics.json`, `draws.safetensors` and `milliseconds.json`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.calibration import Reliability
from experiments.evaluation.figures import (
    Comparison,
    Difference,
    Merits,
    NonInferiority,
    Point,
    PredictorFigures,
)
from experiments.evaluation.keys import Bound
from experiments.evaluation.oracles import LuckFree
from experiments.evaluation.risk import CheckedGuarantee
from experiments.evaluation.statistics import Estimate
from experiments.results.resamples import DRAWS, collect_draws, write_draws
from m3_backbone.outcomes.manifest import seal
from m3_backbone.outcomes.shards import write_text
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import Front

_DECIMALS = 6


def to_json(values: Any) -> Any:
    """Numbers, arrays as lists; nan as null and -0.0 as 0.0."""
    if np.ndim(values):
        return [to_json(value) for value in values]
    value = float(values)
    return None if math.isnan(value) else round(value, _DECIMALS) + 0.0


def to_figure(estimate: Estimate | None, index: Any = ...) -> dict[str, Any] | None:
    """One figure with its interval; None where it does not exist."""
    if estimate is None or np.isnan(estimate.value[index]):
        return None
    return {name: to_json(getattr(estimate, name)[index]) for name in ("value", "low", "high")}


def list_estimates(estimate: Estimate) -> list[Any]:
    """Each of an array of figures."""
    return [to_figure(estimate, index) for index in range(len(estimate.value))]


def describe_point(point: Point, index: Any = ...) -> dict[str, Any]:
    """Cost and score."""
    return {"cost": to_figure(point.cost, index), "score": to_figure(point.score, index)}


def describe_merits(merits: Merits) -> dict[str, Any]:
    """Figures of a front alone."""
    return {
        "average_quality": to_figure(merits.average_quality),
        "average_gap_recovered": to_figure(merits.average_gap_recovered),
        "hypervolume": to_figure(merits.hypervolume),
        "call_shares": {f"{x:g}": to_figure(share) for x, share in merits.call_shares.items()},
    }


def describe_non_inferiority(found: NonInferiority, scales: tuple[int, ...]) -> dict[str, Any]:
    """What it takes not to be inferior to a fixed scale at a margin."""
    figures = {
        name: to_figure(getattr(found, name))
        for name in ("front_cost", "front_saving", "cost", "saving", "difference")
    }
    return {
        "baseline": found.baseline,
        "scale": scales[found.column],
        "margin": found.margin,
        **figures,
        "prices": to_json(found.prices),
        "is_shown": found.is_shown,
    }


def describe_difference(difference: Difference) -> dict[str, Any]:
    """One row of the comparison of policies."""
    return {
        "first": difference.first,
        "second": {"bound": difference.second.value}
        if isinstance(difference.second, Bound)
        else difference.second,
        "mean": to_figure(difference.mean),
        **{
            name: to_json(getattr(difference, name))
            for name in ("p_value", "adjusted", "floor", "adjusted_floor")
        },
    }


def describe_reliability(found: Reliability | None) -> dict[str, Any] | None:
    """Calibration of estimates, scale by scale."""
    if found is None:
        return None
    bins = {name: to_json(getattr(found, name)) for name in ("edges", "count", "estimate", "score")}
    return {"brier": list_estimates(found.brier), "error": list_estimates(found.error), **bins}


def describe_luck_free(found: Mapping[str, LuckFree]) -> dict[str, Any]:
    """Oracles without luck, those that there are."""
    return {
        name: {
            "num_samples": each.num_samples,
            "num_runs": each.num_runs,
            "fixed": [
                {"cost": cost, "score": score}
                for cost, score in zip(
                    list_estimates(each.fixed_cost), list_estimates(each.fixed_score), strict=True
                )
            ],
            "front": [
                {"cost": cost, "score": score}
                for cost, score in zip(list_estimates(each.cost), list_estimates(each.score), strict=True)
            ],
            "gap": to_figure(each.gap),
        }
        for name, each in found.items()
    }


SCHEMA_VERSION = 5


def collect_metrics(
    comparison: Comparison,
    test: OutcomeTable,
    *,
    task: str,
    backbone: str,
    seeds: Mapping[str, int | None] | None = None,
    starts_from: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """The content of `metrics.json`; by name, `seeds` of trainings and where cascades start from."""
    seeds, starts_from = seeds or {}, starts_from or {}
    return {
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "backbone": backbone,
        "fingerprints": dict(sorted(test.fingerprints.items())),
        "split": {
            "num_samples": comparison.num_samples,
            "num_images": comparison.num_images,
            "num_calibration_samples": comparison.num_calibration_samples,
        },
        "bootstrap": {
            "num_resamples": comparison.num_resamples,
            "confidence": comparison.confidence,
            "seed": comparison.bootstrap_seed,
        },
        "budgets": to_json(comparison.budgets),
        "fixed": [
            {
                "scale": scale,
                **describe_point(comparison.fixed, column),
                "on_mix": column in comparison.mix,
                "best": column == comparison.best_fixed,
            }
            for column, scale in enumerate(comparison.scales)
        ],
        "oracles": {
            "authors": describe_point(comparison.oracles["coarsest"]),
            "honest": describe_point(comparison.oracles["finest"]),
            "stable": describe_point(comparison.oracles["stable"]),
        },
        "luck_free": describe_luck_free(comparison.luck_free),
        "bounds": {
            bound.value: {"at_budgets": list_estimates(scores), **describe_merits(comparison.bounds[bound])}
            for bound, scores in (
                (Bound.MIX, comparison.mix_scores),
                (Bound.BUDGETED, comparison.oracle_scores),
            )
        },
        "oracle_gap": to_figure(comparison.oracle_gap),
        "nothing_to_gain": comparison.nothing_to_gain,
        "finer_scales_help": comparison.finer_scales_help,
        "budgeted_oracle": {
            "cost": to_json(comparison.oracle.cost),
            "score": to_json(comparison.oracle.score),
        },
        "kinds": _describe_kinds(test),
        "reference": comparison.reference,
        "differences": [describe_difference(difference) for difference in comparison.differences],
        "predictors": {
            name: {"seed": seeds.get(name), "starts_from": starts_from.get(name), **figures}
            for name, figures in ((each.name, _predictor(each, comparison)) for each in comparison.predictors)
        },
    }


def collect_account(comparison: Comparison) -> dict[str, Any]:
    """Content of `metrics.json` for costs in another unit, and of `milliseconds.json`."""
    timings, fixed = comparison.account.timings, comparison.fixed.cost
    return {
        "unit": comparison.account.unit,
        **({} if timings is None else {"timings": timings.describe() | {"fixed": list_estimates(fixed)}}),
        "budgets": to_json(comparison.budgets[[0, -1]]),
        "fixed": to_json(fixed.value),
        "predictors": {
            figures.name: {
                "own": to_json(comparison.account.own_of(figures.name)),
                "mean_to_mix": to_figure(figures.mean_to_mix),
                "mean_to_reference": to_figure(figures.mean_to_reference),
                "mean_gap_share": to_figure(figures.mean_gap_share),
                "merits": describe_merits(figures.merits),
                "non_inferiority": [
                    describe_non_inferiority(found, comparison.scales) for found in figures.non_inferiority
                ],
                "default": describe_point(figures.default.point),
            }
            for figures in comparison.predictors
        },
    }


def split_kinds(table: OutcomeTable) -> dict[str, np.ndarray]:
    """Rows of each kind of question as masks, in alphabetical order; a task without kinds is one kind."""
    kinds = _list_kinds(table)
    return {str(kind): kinds == kind for kind in np.unique(kinds)}


def _list_kinds(table: OutcomeTable) -> np.ndarray:
    """The type of each question, `[num_samples]`; the name of the task where a question has none."""
    return np.array([kind or task for kind, task in zip(table.kind, table.task, strict=True)], dtype=str)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write them, with their digest, as UTF-8 JSON, keys in their order."""
    text = json.dumps(seal(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _describe_kinds(test: OutcomeTable) -> dict[str, Any]:
    """Number of samples and mean scores of each question type."""
    names, kind = np.unique(_list_kinds(test), return_inverse=True)
    num_samples = np.bincount(kind)
    scores = [np.bincount(kind, weights=column) / num_samples for column in test.score.T]
    return {
        str(name): {
            "num_samples": int(num_samples[number]),
            "score": to_json([each[number] for each in scores]),
        }
        for number, name in enumerate(names)
    }


def _predictor(figures: PredictorFigures, comparison: Comparison) -> dict[str, Any]:
    chosen = np.bincount(figures.default.choice, minlength=len(comparison.scales)) / comparison.num_samples
    at_budgets = [
        {
            "budget": to_json(budget),
            "cost": to_json(figures.cost[k]),
            "chosen": to_json(figures.chosen[k]),
            "score": to_figure(figures.score, k),
            "to_mix": to_figure(figures.to_mix, k),
            "to_reference": to_figure(figures.to_reference, k),
            "gap_share": to_figure(figures.gap_share, k),
        }
        for k, budget in enumerate(comparison.budgets)
    ]
    calibrated = zip(
        to_json(figures.policy.price),
        to_json(figures.policy.cost),
        to_json(figures.policy.score),
        strict=True,
    )
    return {
        "mean_to_mix": to_figure(figures.mean_to_mix),
        "mean_to_reference": to_figure(figures.mean_to_reference),
        "mean_gap_share": to_figure(figures.mean_gap_share),
        "at_budgets": at_budgets,
        "merits": describe_merits(figures.merits),
        "non_inferiority": [
            describe_non_inferiority(found, comparison.scales) for found in figures.non_inferiority
        ],
        "reliability": describe_reliability(figures.reliability),
        "front": [
            {
                "price": price,
                "calibration_cost": cost,
                "calibration_score": score,
                **describe_point(figures.points, k),
            }
            for k, (price, cost, score) in enumerate(calibrated)
        ],
        "trace": _points(figures.trace),
        "unit": to_json(figures.policy.unit),
        "default": {
            "price": to_json(figures.default.price),
            **describe_point(figures.default.point),
            "to_best_fixed": to_figure(figures.default.to_best_fixed),
            "chosen": to_json(chosen),
            "smallest_right": to_figure(figures.default.smallest_right),
            "too_coarse": to_figure(figures.default.too_coarse),
            "too_fine": to_figure(figures.default.too_fine),
            "confusion": figures.default.confusion.tolist(),
        },
    }


def _points(front: Front) -> list[dict[str, Any]]:
    columns = zip(to_json(front.price), to_json(front.cost), to_json(front.score), strict=True)
    return [{"price": price, "cost": cost, "score": score} for price, cost, score in columns]


METRICS, MILLISECONDS = "metrics.json", "milliseconds.json"


def write_run(
    folder: Path,
    metrics: Mapping[str, Any],
    comparison: Comparison,
    others: Sequence[Comparison],
    guarantees: Sequence[CheckedGuarantee],
) -> None:
    """Write them, `metrics` together with what the accounts of `others` add to it.

    Milliseconds are another number every time: they stay out of what can be compared byte by byte.
    """
    counted = {other.account.key: other for other in others}
    timed = counted.pop("milliseconds", None)
    if timed is not None:
        write_metrics(folder / MILLISECONDS, collect_account(timed))
    # Draws go first and come last: where they are, they are those of the metrics.
    (folder / DRAWS).unlink(missing_ok=True)
    accounts = {key: collect_account(other) for key, other in counted.items()}
    write_metrics(folder / METRICS, {**metrics, **accounts})
    write_draws(folder, collect_draws(comparison, list(counted.values()), guarantees))
