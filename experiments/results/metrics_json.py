"""`metrics.json` and `milliseconds.json`: views of the metric tables for other programs.

Schema version 5. Scores are means in [0, 1], costs are means of `cost_name`. A metric is `{"value", "low",
"high"}` with the bounds of its bootstrap interval, which are null for fewer than 8 test images. Numbers are
rounded to six decimals, those below 0.001 to six digits and at most 12 decimals; null stands for a metric
that does not exist (for example the share of a gap of zero). The file has no times and no paths: the same
labels, predictors and seeds give the same bytes. `experiments.evaluation.metrics` defines the metrics;
`draws.safetensors` holds the compared ones on every resample (`results.resamples`).

    schema_version          5
    task, backbone          names
    cost_name               plural noun for the costs: "visual tokens", or that of imported outcomes
    fingerprints            weights, data, prompt and decoding of the labels
    split                   num_samples, num_images, num_calibration_samples
    bootstrap               num_resamples, confidence, seed (equal seeds give equal resamples in all runs)
    budgets                 [k] mean visual tokens at which predictors are compared
    fixed                   per scale: scale, cost, score; `on_mix`: it is a vertex of the mix; `best`: it is
                            the best on calibration; `coinciding`, only if any scales coincide: share of the
                            samples on which it coincides with the next coarser scale
    oracles                 authors (failures charged the coarsest scale), honest (the finest), stable (the
                            smallest scale from which on the answer stays right): cost, score
    luck_free.NAME          noise-free oracles that the outcomes allow (likelihood, resampled): num_samples,
                            num_runs; fixed per scale and front from cheap to expensive: cost, expected
                            score; gap
    bounds                  mix, budgeted: at_budgets [k] scores, and merits as below
    oracle_gap              from mix to budgeted oracle, averaged over log-spaced budgets
    nothing_to_gain         true if all scales cost the same, or the oracle is nowhere above the mix
    finer_scales_help       false if no fixed scale scores more than the cheapest one
    budgeted_oracle         cost [t], score [t]: all vertices of its front, or the most evenly spread ones
    kinds                   per question type: num_samples, score [num_scales]
    reference               the predictor that the others are compared with, or null
    differences             every policy minus the mix, the first one minus the others: first (a name), second
                            (a name, {"bound": "mix"} for the mix of fixed scales, {"ladder": NAME} for that
                            of another backbone), mean over log-spaced budgets at matched cost, p_value,
                            adjusted (Holm over all of them); floor, adjusted_floor: lowest possible p-values
                            with this number of resamples
    ladders.NAME            only with `ladders`: fixed, per scale of another backbone: scale, cost, score; and
                            difference, the main predictor minus the mix of these, as in differences, over
                            the budgets from lowest_cost on, which that mix can meet
    predictors.NAME         the main predictor of the report comes first
        seed, starts_from   training seed; predictor that a cascade starts from; or null
        mean_to_mix, mean_to_reference, mean_gap_share      over log-spaced budgets
        reachable.NAME      per noise-free oracle that all test samples have: to_mix in expected scores, and
                            gap_share, the share of the oracle's gain
        at_budgets          per budget: budget, cost, chosen, score, to_mix, to_reference, gap_share
        merits              average_quality (AIQ), average_gap_recovered (APGR), hypervolume,
                            call_shares (CPT) by share of the gap recovered
        non_inferiority     per baseline (finest, best fixed) and margin: scale; front_cost, front_saving of
                            the front on test; for the operating point chosen on calibration prices, cost,
                            saving, difference, is_shown, or null if there is none
        reliability         null, or brier and error per scale, edges of the bins, and count, estimate, score
                            [num_scales, num_bins]
        front               per operating point, from cheap to expensive: price, calibration_cost,
                            calibration_score, cost, score
        trace               per traced price: price, cost, score
        unit                number of visual tokens that a price is for
        default             price, cost, score, to_best_fixed, chosen; shares smallest_right, too_coarse,
                            too_fine of the samples that some scale answers; confusion: samples by needed
                            scale (rows; last: no scale answers) and chosen scale
    guarantee               alpha, delta: with probability 1 - delta the mean score is at most alpha below the
                            finest scale's (`evaluation.guarantee`); level: delta, or with `guarantee.joint`
                            delta divided by the number of predictors
        predictors.NAME     price per unit visual tokens, null if infeasible; num_images (of calibration);
                            num_needed: number of images that would suffice, null if unknown;
                            most_questions that an image counts for; calibration_cost and calibration_drop at
                            that price, or at the safest; cost and drop on test, of the finest scale if
                            infeasible; resplit_check: null, or num_resplits, num_images, num_population,
                            num_certified, num_failed, failed (share), cost
                            (`evaluation.guarantee.ResplitCheck`)
    published               only if there are published values: source, table, checkpoint, split, relation of
                            our test split to it (same, part, other, unknown), scores by scale, oracle_scale,
                            oracle_score (`evaluation.published`)
    sensitive               only if answers decide about it (`evaluation.sensitivity`): num_divided questions,
                            finest, downsampled (the deciding answers); per group (sensitive, insensitive,
                            unanswered) num_samples, share, fixed (cost, score per scale), and per policy
                            cost, score, to_finest at its default price
    output_lengths          only with a tariff (`evaluation.tariff`): tariff, unit; per number of output
                            tokens finest (cost), and per policy cost and saved (share of that cost)
    tariff                  only with a tariff: the same comparison in its unit, as `flops`, for answers
                            of its first number of output tokens
    flops                   the same comparison with costs in GFLOPs of vision pass, prefill and predictor:
                            unit, budgets (lowest, highest), fixed (cost per scale); per predictor own (its
                            overhead per answer), mean_to_mix, mean_to_reference, mean_gap_share, merits,
                            non_inferiority, default; ladders as above. Before schema 5 these costs lacked
                            the vision pass, so they cannot be compared with those of schema 4
    digest                  of all other content (`m3_backbone.outcomes.manifest`)

`milliseconds.json` has the form of `flops`, with measured costs of answers (`evaluation.costs`). Its
`timings` are num_pictures, num_rounds, batch_size, and the costs `fixed` with their intervals. Intervals
cover the noise of these timings, but not drift of the machine between runs.

`chosen` [num_scales] are shares of the samples.
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.evaluation.calibration import Reliability
from experiments.evaluation.comparison import Comparison, Difference, PolicyResult
from experiments.evaluation.guarantee import CheckedGuarantee, ResplitCheck
from experiments.evaluation.metric_table import (
    Bound,
    Family,
    Key,
    Ladder,
    MetricTable,
    Opponent,
    PolicyKey,
    Predictor,
)
from experiments.evaluation.metrics import (
    default_cost,
    default_score,
    list_metrics,
    point_cost,
    point_score,
    reachable_gap_share,
)
from experiments.evaluation.needs import list_types
from experiments.evaluation.noise_free import NoiseFreeOracle
from experiments.evaluation.published import Published
from experiments.evaluation.sensitive_groups import GROUPS
from experiments.evaluation.sensitivity import SensitiveSplit
from experiments.evaluation.statistics import Estimate
from experiments.evaluation.tariff import Savings
from experiments.results.resamples import RESAMPLES, collect_resamples, write_resamples
from m3_backbone.outcomes.manifest import seal
from m3_backbone.outcomes.options import NamedScale
from m3_backbone.outcomes.shards import write_bytes, write_text
from m3_backbone.outcomes.table import OutcomeTable

METRICS, MILLISECONDS, TABLE = "metrics.json", "milliseconds.json", "metric_table.parquet"
PICTURE = "front.png"
SCHEMA_VERSION = 5
# Rounding hides the noise of summation, which differs between machines, and keeps small costs apart.
_DECIMALS, _MOST_DECIMALS, _SMALL = 6, 12, 0.001


def to_json(values: Any) -> Any:
    """Return a rounded number or nested lists of them, None as it is; nan becomes None, -0.0 becomes 0.0."""
    if values is None:
        return None
    if np.ndim(values):
        return [to_json(value) for value in values]
    value = float(values)
    if math.isnan(value):
        return None
    decimals = _DECIMALS
    if 0 < abs(value) < _SMALL:
        decimals = min(_DECIMALS - 1 - math.floor(math.log10(abs(value))), _MOST_DECIMALS)
    return round(value, decimals) + 0.0


def metric_to_json(estimate: Estimate | None, index: Any = ...) -> dict[str, Any] | None:
    """Return one metric with its interval; None if it does not exist."""
    if estimate is None or np.isnan(estimate.value[index]):
        return None
    return {name: to_json(getattr(estimate, name)[index]) for name in ("value", "low", "high")}


def metrics_to_json(estimate: Estimate) -> list[Any]:
    """Return each metric of an array with its interval."""
    return [metric_to_json(estimate, index) for index in range(len(estimate.value))]


def collect_metrics(
    comparison: Comparison,
    test: OutcomeTable,
    *,
    task: str,
    backbone: str,
    seeds: Mapping[str, int | None] | None = None,
    starts_from: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return the content of `metrics.json`, without the parts of other cost measures and `collect_extras`.

    By name of a policy, `seeds` are training seeds and `starts_from` the predictors that cascades start from.
    """
    seeds, starts_from = seeds or {}, starts_from or {}
    return {
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "backbone": backbone,
        "cost_name": comparison.measure.noun,
        "fingerprints": dict(sorted(test.fingerprints.items())),
        "split": {
            "num_samples": comparison.num_samples,
            "num_images": comparison.num_images,
            "num_calibration_samples": comparison.num_calibration_samples,
        },
        "bootstrap": asdict(comparison.bootstrap),
        "budgets": to_json(comparison.budgets),
        "fixed": [
            {
                "scale": scale,
                **({"name": str(scale)} if isinstance(scale, NamedScale) else {}),
                "cost": metric_to_json(comparison.fixed_cost, column),
                "score": metric_to_json(comparison.fixed_score, column),
                "on_mix": column in comparison.mix,
                "best": column == comparison.best_fixed,
                **({"coinciding": to_json(share)} if comparison.coinciding.any() else {}),
            }
            for column, (scale, share) in enumerate(
                zip(comparison.scales, comparison.coinciding, strict=True)
            )
        ],
        "oracles": {
            name: dict(zip(("cost", "score"), map(metric_to_json, comparison.rule(rule)), strict=True))
            for name, rule in (("authors", "coarsest"), ("honest", "finest"), ("stable", "stable"))
        },
        "luck_free": {name: _noise_free(oracle) for name, oracle in comparison.noise_free.items()},
        "bounds": {
            bound.value: {
                "at_budgets": metrics_to_json(comparison.bound_scores(bound)),
                **_front_metrics(comparison.metrics, bound),
            }
            for bound in (Bound.MIX, Bound.BUDGETED)
        },
        "oracle_gap": metric_to_json(comparison.oracle_gap),
        "nothing_to_gain": comparison.nothing_to_gain,
        "finer_scales_help": comparison.finer_scales_help,
        "budgeted_oracle": {
            "cost": to_json(comparison.oracle.cost),
            "score": to_json(comparison.oracle.score),
        },
        "kinds": _question_types(test),
        "reference": comparison.reference,
        "differences": [_difference(difference) for difference in comparison.differences],
        **_ladders(comparison),
        "predictors": {
            result.name: {
                "seed": seeds.get(result.name),
                "starts_from": starts_from.get(result.name),
                **_policy(result, comparison),
            }
            for result in comparison.policies
        },
    }


def collect_measure(comparison: Comparison) -> dict[str, Any]:
    """Return the part of `metrics.json` for another cost measure, or the content of `milliseconds.json`."""
    measure = comparison.measure
    timings = {}
    if measure.timings is not None:
        timings = {"timings": {**measure.timings.describe(), "fixed": metrics_to_json(comparison.fixed_cost)}}
    return {
        "unit": measure.unit,
        **timings,
        "budgets": to_json(comparison.budgets[[0, -1]]),
        "fixed": to_json(comparison.fixed_cost.value),
        **_ladders(comparison),
        "predictors": {
            result.name: {
                "own": to_json(measure.overhead_of(result.name)),
                **_family(result, Family.MEANS),
                "merits": _front_metrics(result.metrics, result.key),
                "non_inferiority": _non_inferiority(result, comparison.scales),
                "default": {
                    "cost": metric_to_json(result.find(default_cost)),
                    "score": metric_to_json(result.find(default_score)),
                },
            }
            for result in comparison.policies
        },
    }


def _policy(result: PolicyResult, comparison: Comparison) -> dict[str, Any]:
    default = result.default
    chosen = np.bincount(default.choice, minlength=len(comparison.scales)) / comparison.num_samples
    points = zip(result.policy.price, result.policy.cost, result.policy.score, strict=True)
    trace = zip(result.trace.price, result.trace.cost, result.trace.score, strict=True)
    return {
        **_family(result, Family.MEANS),
        "reachable": {
            name: _family(result, Family.REACHABLE, name)
            for name in comparison.noise_free
            if Key(result.key, reachable_gap_share, name) in result.metrics
        },
        "at_budgets": [
            {
                "budget": to_json(budget),
                "cost": to_json(result.cost[k]),
                "chosen": to_json(result.chosen[k]),
                **_family(result, Family.AT_BUDGETS, index=k),
            }
            for k, budget in enumerate(comparison.budgets)
        ],
        "merits": _front_metrics(result.metrics, result.key),
        "non_inferiority": _non_inferiority(result, comparison.scales),
        "reliability": _reliability(result.reliability),
        "front": [
            {
                "price": to_json(price),
                "calibration_cost": to_json(cost),
                "calibration_score": to_json(score),
                "cost": metric_to_json(result[point_cost], k),
                "score": metric_to_json(result[point_score], k),
            }
            for k, (price, cost, score) in enumerate(points)
        ],
        "trace": [dict(zip(("price", "cost", "score"), map(to_json, point), strict=True)) for point in trace],
        "unit": to_json(result.policy.unit),
        "default": {
            "price": to_json(default.price),
            **_family(result, Family.DEFAULT),
            "chosen": to_json(chosen),
            "confusion": default.confusion.tolist(),
        },
    }


def _family(
    result: PolicyResult, family: Family, at: Hashable = None, index: Any = ...
) -> dict[str, dict[str, Any] | None]:
    """Return the metrics of a family by name; None for those that do not exist."""
    return {metric.name: metric_to_json(result.find(metric, at), index) for metric in list_metrics(family)}


def _front_metrics(metrics: MetricTable, policy: PolicyKey) -> dict[str, Any]:
    """Return the metrics of a single front by name; a metric with values of `at` is an object by `at`."""
    content: dict[str, Any] = {}
    for metric in list_metrics(Family.FRONT):
        by_at = {key.at: metrics.find(*key) for key in metrics if key[:2] == (policy, metric)}
        if by_at.keys() == {None}:
            content[metric.name] = metric_to_json(by_at[None])
        else:
            content[metric.name] = {f"{at:g}": metric_to_json(estimate) for at, estimate in by_at.items()}
    return content


def _non_inferiority(result: PolicyResult, scales: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "baseline": verdict.baseline[0],
            "scale": scales[verdict.column],
            "margin": verdict.baseline[1],
            **_family(result, Family.NON_INFERIORITY, verdict.baseline),
            "prices": to_json(verdict.prices),
            "is_shown": verdict.is_shown,
        }
        for verdict in result.verdicts
    ]


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "first": difference.first.name,
        "second": _opponent(difference.second),
        "mean": metric_to_json(difference.mean),
        **{
            name: to_json(getattr(difference, name))
            for name in ("p_value", "adjusted", "floor", "adjusted_floor")
        },
    }


def _opponent(opponent: Opponent) -> str | dict[str, str]:
    match opponent:
        case Predictor(name):
            return name
        case Ladder(name):
            return {"ladder": name}
    return {"bound": opponent.value}


def _ladders(comparison: Comparison) -> dict[str, Any]:
    """Return the part `ladders`, if other backbones are compared."""
    content = {
        ladder.name: {
            "fixed": [
                {"scale": scale, "cost": cost, "score": score}
                for scale, cost, score in zip(
                    ladder.scales, metrics_to_json(ladder.cost), metrics_to_json(ladder.score), strict=True
                )
            ],
            "difference": metric_to_json(ladder.difference.mean),
            "lowest_cost": to_json(ladder.lowest_cost),
        }
        for ladder in comparison.ladders
    }
    return {"ladders": content} if content else {}


def _reliability(reliability: Reliability | None) -> dict[str, Any] | None:
    if reliability is None:
        return None
    bins = {name: to_json(getattr(reliability, name)) for name in ("edges", "count", "estimate", "score")}
    return {"brier": metrics_to_json(reliability.brier), "error": metrics_to_json(reliability.error), **bins}


def _noise_free(oracle: NoiseFreeOracle) -> dict[str, Any]:

    def pair(costs: Estimate, scores: Estimate) -> list[dict[str, Any]]:
        pairs = zip(metrics_to_json(costs), metrics_to_json(scores), strict=True)
        return [{"cost": cost, "score": score} for cost, score in pairs]

    return {
        "num_samples": oracle.num_samples,
        "num_runs": oracle.num_runs,
        "fixed": pair(oracle.fixed_cost, oracle.fixed_score),
        "front": pair(oracle.cost, oracle.score),
        "gap": metric_to_json(oracle.gap),
    }


def _question_types(test: OutcomeTable) -> dict[str, Any]:
    """Return number of samples and mean scores of each question type."""
    names, number_of = np.unique(list_types(test), return_inverse=True)
    num_samples = np.bincount(number_of)
    scores = [np.bincount(number_of, weights=column) / num_samples for column in test.score.T]
    return {
        str(name): {
            "num_samples": int(num_samples[number]),
            "score": to_json([column[number] for column in scores]),
        }
        for number, name in enumerate(names)
    }


def collect_extras(
    guarantees: Sequence[CheckedGuarantee],
    units: Mapping[str, float],
    published: Published | None,
    stored_unit: float = 1.0,
) -> dict[str, Any]:
    """Return the parts `guarantee` and `published` of `metrics.json`, as far as they exist.

    `units` are the numbers of visual tokens that each predictor's price is for, or of multiples of
    `stored_unit` in which labels store imported costs.
    """
    content: dict[str, Any] = {}
    if guarantees:
        first = guarantees[0].guarantee
        content["guarantee"] = {
            **{name: to_json(getattr(first, name)) for name in ("alpha", "delta", "level")},
            "predictors": {
                checked.name: collect_guarantee(checked, units[checked.name], stored_unit)
                for checked in guarantees
            },
        }
    if published is not None:
        content["published"] = {
            **{
                name: getattr(published, name)
                for name in ("source", "table", "checkpoint", "split", "relation")
            },
            "scores": {str(scale): to_json(score) for scale, score in published.scores.items()},
            "oracle_scale": published.oracle_scale,
            "oracle_score": published.oracle_score,
        }
    return content


def collect_sensitive(split: SensitiveSplit) -> dict[str, Any]:
    """Return the part `sensitive` of `metrics.json`."""

    def collect_group(group: int) -> dict[str, Any]:
        fixed = {"cost": split.fixed_cost, "score": split.fixed_score}
        of_policies = {"cost": split.cost, "score": split.score, "to_finest": split.to_finest}
        return {
            "num_samples": int(split.num_samples[group]),
            "share": metric_to_json(split.share[group]),
            "fixed": [
                {name: metric_to_json(values[group, column]) for name, values in fixed.items()}
                for column in range(split.fixed_cost.value.shape[1])
            ],
            "predictors": {
                policy: {name: metric_to_json(values[policy][group]) for name, values in of_policies.items()}
                for policy in split.cost
            },
        }

    membership = split.membership
    return {
        "num_divided": split.num_divided,
        "finest": membership.finest,
        "downsampled": membership.downsampled,
        **{name: collect_group(group) for group, name in enumerate(GROUPS)},
    }


def collect_savings(savings: Savings) -> dict[str, Any]:
    """Return the part `output_lengths` of `metrics.json`."""
    return {
        "tariff": savings.tariff.name,
        "unit": savings.tariff.unit,
        "lengths": [
            {
                "output_tokens": number,
                "finest": metric_to_json(savings.finest, position),
                "predictors": {
                    name: {
                        "cost": metric_to_json(savings.cost[name], position),
                        "saved": metric_to_json(savings.saved[name], position),
                    }
                    for name in savings.cost
                },
            }
            for position, number in enumerate(savings.tariff.output_tokens)
        ],
    }


def collect_guarantee(checked: CheckedGuarantee, unit: float, stored_unit: float = 1.0) -> dict[str, Any]:
    """Return a guarantee with its price per `unit` visual tokens, or multiples of `stored_unit`."""
    guarantee, realized = checked.guarantee, checked.realized
    return {
        "price": to_json(guarantee.price_per(unit)),
        "unit": to_json(unit * stored_unit),
        "num_images": guarantee.num_images,
        "num_needed": guarantee.num_needed,
        "most_questions": guarantee.most_questions,
        "calibration_cost": to_json(guarantee.cost),
        "calibration_drop": to_json(guarantee.drop),
        "cost": metric_to_json(realized.cost),
        "drop": metric_to_json(realized.drop),
        "resplit_check": checked.check and _resplit_check(checked.check),
    }


def _resplit_check(check: ResplitCheck) -> dict[str, Any]:
    low, high = check.interval
    names = ("num_resplits", "num_images", "num_population", "num_certified", "num_failed")
    return {
        **{name: getattr(check, name) for name in names},
        "failed": {"value": to_json(check.failed), "low": to_json(low), "high": to_json(high)},
        "cost": to_json(check.cost),
    }


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics with their digest as UTF-8 JSON, in the order of the keys."""
    text = json.dumps(seal(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_results(
    folder: Path,
    metrics: Mapping[str, Any],
    comparison: Comparison,
    others: Sequence[Comparison] = (),
    guarantees: Sequence[CheckedGuarantee] = (),
) -> None:
    """Write `metrics.json` with the cost measures of `others`, the resamples and the tidy metric table.

    Milliseconds differ from run to run, so they are in a separate file and `metrics.json` can be compared
    byte by byte.
    """
    by_measure = {other.measure.key: other for other in others}
    timed = by_measure.pop("milliseconds", None)
    # The resamples are removed first and written last, so that existing ones always match the metrics.
    (folder / RESAMPLES).unlink(missing_ok=True)
    # A folder that is used again may have those of an earlier evaluation.
    (folder / MILLISECONDS).unlink(missing_ok=True)
    if timed is not None:
        write_metrics(folder / MILLISECONDS, collect_measure(timed))
    parts = {key: collect_measure(other) for key, other in by_measure.items()}
    write_metrics(folder / METRICS, {**metrics, **parts})
    tidy = pa.concat_tables(
        in_measure.metrics.to_arrow(in_measure.measure.key) for in_measure in (comparison, *others)
    )
    content = pa.BufferOutputStream()
    pq.write_table(tidy, content)
    write_bytes(folder / TABLE, content.getvalue().to_pybytes())
    write_resamples(folder, collect_resamples(comparison, list(by_measure.values()), guarantees))
