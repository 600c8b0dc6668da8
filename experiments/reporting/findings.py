"""All that an evaluation found, as what is shown is made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.evaluation.figures import Comparison
from experiments.evaluation.published import Published
from experiments.evaluation.risk import CheckedGuarantee, ResplitCheck
from experiments.labels.held_out import EvaluationRecord
from experiments.results.metrics_json import to_figure, to_json
from experiments.tasks.sizes import Banner


@dataclass(frozen=True, eq=False)
class Findings:
    """A comparison with what belongs to it.

    `others` are the same comparison in other accounts of cost; `units` the visual tokens that each
    predictor's price is charged for in use; `published` the published values, if there are any; `record` that
    of this evaluation; `banners` warn of small numbers of images and samples; `cost_parts`, by account and
    part, the cost of that part of an answer at each scale, `[num_scales]`.
    """

    comparison: Comparison
    others: Sequence[Comparison] = ()
    guarantees: Sequence[CheckedGuarantee] = ()
    units: Mapping[str, float] | None = None
    published: Published | None = None
    record: EvaluationRecord | None = None
    banners: Sequence[Banner] = ()
    cost_parts: Mapping[str, Mapping[str, np.ndarray]] | None = None


def collect_extras(findings: Findings) -> dict[str, Any]:
    """Content of `metrics.json` about guarantees (`risk`) and published values, if there are any."""
    content: dict[str, Any] = {}
    if findings.guarantees:
        first = findings.guarantees[0].guarantee
        content["risk"] = {
            "alpha": to_json(first.alpha),
            "delta": to_json(first.delta),
            "level": to_json(first.level),
            "predictors": {
                checked.name: collect_guarantee(checked, (findings.units or {})[checked.name])
                for checked in findings.guarantees
            },
        }
    if findings.published is not None:
        published = findings.published
        content["published"] = {
            "source": published.source,
            "table": published.table,
            "checkpoint": published.checkpoint,
            "split": published.split,
            "relation": published.relation,
            "scores": {str(scale): to_json(score) for scale, score in published.scores.items()},
            "oracle_scale": published.oracle_scale,
            "oracle_score": published.oracle_score,
        }
    return content


def collect_guarantee(checked: CheckedGuarantee, unit: float) -> dict[str, Any]:
    """A guarantee with its price per `unit` visual tokens, for `metrics.json`."""
    guarantee, realized = checked.guarantee, checked.realized
    return {
        "price": _to_json_or_none(guarantee.price_per(unit)),
        "unit": to_json(unit),
        "num_images": guarantee.num_images,
        "num_needed": guarantee.num_needed,
        "most_questions": guarantee.most_questions,
        "calibration_cost": _to_json_or_none(guarantee.cost),
        "calibration_drop": _to_json_or_none(guarantee.drop),
        "cost": to_figure(realized.cost),
        "drop": to_figure(realized.drop),
        "resplit_check": checked.check and _collect_check(checked.check),
    }


def _collect_check(check: ResplitCheck) -> dict[str, Any]:
    low, high = check.interval
    return {
        "num_resplits": check.num_resplits,
        "num_images": check.num_images,
        "num_population": check.num_population,
        "num_certified": check.num_certified,
        "num_failed": check.num_failed,
        "failed": {"value": to_json(check.failed), "low": to_json(low), "high": to_json(high)},
        "cost": _to_json_or_none(check.cost),
    }


def _to_json_or_none(value: float | None) -> Any:
    return None if value is None else to_json(value)
