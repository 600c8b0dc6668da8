"""`metrics.json`: what an evaluation found, for other programs to read.

Schema version 4. Scores are means in [0, 1], costs mean visual tokens. A figure is `{"value", "low", "high"}`
with the bounds of its bootstrap interval. Numbers are rounded to six decimals; null stands for a figure that
does not exist (the share of a gap of zero). No times and no paths: the same labels, predictors and seeds give
the same bytes. `experiments.evaluation.figures` defines every figure; `draws.safetensors` beside it holds
the headline figures on every resample (`experiments.evaluation.draws`).

    schema_version          4
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
    budgeted_oracle         cost [t], score [t]: all vertices of its front, or the most evenly spread ones
    kinds                   per kind of question: num_samples, score [num_scales]
    reference               the predictor that the others are compared with, or null
    differences             every policy to the mix, the first one to the others: first, second, mean over log
                            budgets at matched cost, p_value, adjusted (Holm over all of them)
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
    risk                    alpha, delta, num_images (of calibration): with probability 1 - delta the mean
                            score is at most alpha below the finest scale's (`evaluation.risk`)
        predictors.NAME     price per unit visual tokens, null where infeasible; num_needed: images that would
                            do, null where there is no such number; calibration_cost and calibration_drop at
                            that price, or at the safest; cost and drop on test, of the finest scale where
                            infeasible; resplits: null, or num_splits, num_images, feasible, broken, cost of
                            the same promise made on halves of the test images (`evaluation.risk.Resplits`)
    published               where there are any: source, table, checkpoint, scores by scale, oracle_scale,
                            oracle_score (`evaluation.published`)
    flops                   the same comparison with costs in GFLOPs of vision pass, prefill and predictor:
                            unit, budgets (lowest, highest), fixed (cost per scale); per predictor own (what
                            it adds to an answer), mean_to_mix, mean_to_reference, mean_gap_share, merits,
                            non_inferiority, default

`milliseconds.json`, of that last form, has the costs of answers as measured (`evaluation.accounts`).

`chosen` [num_scales] are shares of the samples.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.bench import BUDGETED, MIX
from experiments.evaluation.figures import Comparison, PredictorFigures
from experiments.evaluation.figures_json import (
    describe_difference,
    describe_luck_free,
    describe_merits,
    describe_non_inferiority,
    describe_point,
    describe_reliability,
    list_estimates,
    to_figure,
    to_json,
)
from m3_backbone.outcomes import OutcomeTable
from predictor.policy import Front

SCHEMA_VERSION = 4


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
            name: {"at_budgets": list_estimates(scores), **describe_merits(comparison.bounds[name])}
            for name, scores in ((MIX, comparison.mix_scores), (BUDGETED, comparison.oracle_scores))
        },
        "oracle_gap": to_figure(comparison.oracle_gap),
        "budgeted_oracle": {
            "cost": to_json(comparison.oracle.cost),
            "score": to_json(comparison.oracle.score),
        },
        "kinds": {
            kind: {
                "num_samples": int(rows.sum()),
                "score": to_json(test.score[rows].mean(axis=0, dtype=np.float64)),
            }
            for kind, rows in split_kinds(test).items()
        },
        "reference": comparison.reference,
        "differences": [describe_difference(difference) for difference in comparison.differences],
        "predictors": {
            name: {"seed": seeds.get(name), "starts_from": starts_from.get(name), **figures}
            for name, figures in ((each.name, _predictor(each, comparison)) for each in comparison.predictors)
        },
    }


def collect_account(comparison: Comparison) -> dict[str, Any]:
    """What `metrics.json` says of costs in another unit."""
    return {
        "unit": comparison.account.unit,
        "budgets": to_json(comparison.budgets[[0, -1]]),
        "fixed": to_json(comparison.fixed.cost.value),
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
    kinds = np.array([kind or task for kind, task in zip(table.kind, table.task, strict=True)], dtype=str)
    return {str(kind): kinds == kind for kind in np.unique(kinds)}


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write them as UTF-8 JSON, keys in their order."""
    text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


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
