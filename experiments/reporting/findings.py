"""All that an evaluation found, as what is shown is made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.evaluation.figures import Comparison
from experiments.evaluation.figures_json import to_figure, to_json
from experiments.evaluation.published import Published
from experiments.evaluation.risk import Promise, Resplits
from experiments.held_out import HeldOutRead


@dataclass(frozen=True, eq=False)
class Findings:
    """A comparison with what belongs to it.

    `others` are the same comparison in other accounts of cost; `units` the visual tokens that each
    predictor's price is charged for in use; `published` what others have found, if there is anything;
    `cost_parts`, by account and part, what that part of an answer costs at each scale, `[num_scales]`.
    """

    comparison: Comparison
    others: Sequence[Comparison] = ()
    promises: Sequence[Promise] = ()
    units: Mapping[str, float] | None = None
    published: Published | None = None
    test_read: HeldOutRead | None = None
    cost_parts: Mapping[str, Mapping[str, np.ndarray]] | None = None


def collect_extras(findings: Findings) -> dict[str, Any]:
    """What `metrics.json` says of promises (`risk`) and of published values, for those that there are."""
    content: dict[str, Any] = {}
    if findings.promises:
        first = findings.promises[0].guarantee
        content["risk"] = {
            "alpha": to_json(first.alpha),
            "delta": to_json(first.delta),
            "num_images": first.num_images,
            "predictors": {
                promise.name: _collect_promise(promise, (findings.units or {})[promise.name])
                for promise in findings.promises
            },
        }
    if findings.published is not None:
        published = findings.published
        content["published"] = {
            "source": published.source,
            "table": published.table,
            "checkpoint": published.checkpoint,
            "scores": {str(scale): to_json(score) for scale, score in published.scores.items()},
            "oracle_scale": published.oracle_scale,
            "oracle_score": published.oracle_score,
        }
    return content


def _collect_promise(promise: Promise, unit: float) -> dict[str, Any]:
    guarantee, realised = promise.guarantee, promise.realised
    price = guarantee.price_per(unit)
    return {
        "price": None if price is None else to_json(price),
        "unit": to_json(unit),
        "num_needed": guarantee.num_needed,
        "calibration_cost": to_json(guarantee.cost),
        "calibration_drop": to_json(guarantee.drop),
        "cost": to_figure(realised.cost),
        "drop": to_figure(realised.drop),
        "resplits": promise.resplits and _collect_resplits(promise.resplits),
    }


def _collect_resplits(resplits: Resplits) -> dict[str, Any]:
    counts = {"num_splits": resplits.num_splits, "num_images": resplits.num_images}
    return counts | {key: to_json(getattr(resplits, key)) for key in ("feasible", "broken", "cost")}
