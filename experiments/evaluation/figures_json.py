"""Figures as JSON: six decimals, intervals as `{"value", "low", "high"}`, null for what does not exist."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.evaluation.calibration import Reliability
from experiments.evaluation.figures import Difference, Merits, NonInferiority, Point
from experiments.evaluation.keys import Bound
from experiments.evaluation.oracles import LuckFree
from experiments.evaluation.statistics import Estimate

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
