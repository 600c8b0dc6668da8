"""Sensitive split: results on the questions that need resolution, apart from those that do not.

A benchmark may be insensitive to resolution: if most of its questions are answered as well from a shrunk
image, saving visual tokens costs nothing, whatever the method (VTC-Bench, arXiv 2510.07143). Questions are
divided into three groups:

    sensitive       right at the finest scale, wrong when downsampled
    insensitive     right at both
    unanswered      wrong at the finest scale

`evaluation.sensitive_groups` says which answers decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.curves import divide
from experiments.evaluation.fronts import Floats
from experiments.evaluation.sensitive_groups import GROUPS, Membership
from experiments.evaluation.statistics import Estimate, number_images
from m3_backbone.outcomes.table import OutcomeTable


@dataclass(frozen=True, eq=False)
class SensitiveSplit:
    """Results by group, with intervals over images; arrays of groups are in the order of `GROUPS`.

    `share` `[num_groups]` is the share of the questions. Costs are mean visual tokens, scores are means.
    `fixed_cost`, `fixed_score` `[num_groups, num_scales]` are those of the fixed scales; `cost`, `score` and
    `to_finest`, by policy, `[num_groups]` those at its default price, and the score minus that of the finest
    scale on the same questions. What does not exist, in a group without questions, is nan.
    """

    membership: Membership
    num_samples: NDArray[np.int64]
    share: Estimate
    fixed_cost: Estimate
    fixed_score: Estimate
    cost: Mapping[str, Estimate]
    score: Mapping[str, Estimate]
    to_finest: Mapping[str, Estimate]

    @property
    def num_divided(self) -> int:
        """Number of questions with a group."""
        return len(self.membership.rows)


def divide_by_sensitivity(
    comparison: Comparison, test: OutcomeTable, membership: Membership
) -> SensitiveSplit:
    """Return the results of a comparison by group.

    `test` are the samples of the comparison, whose costs are visual tokens. Questions without a group are
    left out. Intervals use as many resamples, and the same seed, as the comparison.
    """
    rows = membership.rows
    table = test.select(rows)
    image = number_images(table.cluster_id)
    is_in_group = membership.group[:, None] == np.arange(len(GROUPS))
    values: dict[Any, Floats] = {
        ("fixed", "cost"): table.cost,
        ("fixed", "score"): table.score.astype(np.float64),
    }
    for policy in comparison.policies:
        values[policy.name, "cost"] = policy.default.cost[rows, None]
        values[policy.name, "score"] = policy.default.score[rows, None]

    def add_up(column: Floats) -> Floats:
        """Return sums per image, `[num_images]`."""
        return np.bincount(image, weights=column).astype(np.float64)

    counts = np.column_stack([add_up(column) for column in is_in_group.T.astype(np.float64)])
    # Sums per image, `[num_images, num_groups * num_columns]`.
    sums = {
        key: np.column_stack([add_up(members * column) for members in is_in_group.T for column in columns.T])
        for key, columns in values.items()
    }

    def measure(weights: Floats) -> dict[Any, Floats]:
        number = weights @ counts
        measured: dict[Any, Floats] = {"share": number / number.sum(axis=1, keepdims=True)}
        for key, summed in sums.items():
            total = (weights @ summed).reshape(len(weights), len(GROUPS), -1)
            measured[key] = divide(total, np.broadcast_to(number[:, :, None], total.shape))
        finest = measured["fixed", "score"][:, :, -1]
        for policy in comparison.policies:
            for name in ("cost", "score"):
                measured[policy.name, name] = measured[policy.name, name][:, :, 0]
            measured[policy.name, "to finest"] = measured[policy.name, "score"] - finest
        return measured

    estimates = comparison.bootstrap.estimate(measure, len(counts))
    names = [policy.name for policy in comparison.policies]
    return SensitiveSplit(
        membership,
        is_in_group.sum(axis=0),
        estimates["share"],
        estimates["fixed", "cost"],
        estimates["fixed", "score"],
        **{
            quantity.replace(" ", "_"): {name: estimates[name, quantity] for name in names}
            for quantity in ("cost", "score", "to finest")
        },
    )
