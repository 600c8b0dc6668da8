"""Rules that choose a scale by reading the outcomes, score included: bounds, never methods.

These rules and the budgeted oracle (`fronts.find_budgeted_oracle`) take a maximum over outcomes that are in
part luck, and are therefore optimistic: a sample that is answered at random is right at some scale more often
than not. `noise_free` has oracles without that luck.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.evaluation.fronts import ORACLES, Columns, choose_as_oracle, find_smallest_right

# Oracles that choose one scale per sample, without a price.
RULES: Mapping[str, str] = dict(ORACLES) | {"stable": "stable oracle"}


def choose_by_rule(score: ArrayLike, rule: str) -> Columns:
    """The choice `[num_samples]` of one of `RULES`, from `score` `[num_samples, num_scales]`."""
    if rule == "stable":
        return choose_stably(score)
    return choose_as_oracle(score, score, rule)  # type: ignore[arg-type]


def choose_stably(score: ArrayLike) -> Columns:
    """The stable oracle's choice `[num_samples]`: the smallest scale from which on the answer stays right.

    Right is the best score that any scale gives to the sample, as in `find_smallest_right`. A sample that is
    not right at the finest scale, or at none, has no such scale and is charged the finest.
    """
    scores = np.asarray(score)
    smallest, finest = find_smallest_right(scores), scores.shape[1] - 1
    best = np.where(smallest >= 0, scores[np.arange(len(scores)), smallest], np.inf)
    stable, stays = np.full(len(scores), finest), np.ones(len(scores), dtype=bool)
    for column in range(finest, -1, -1):
        stays &= scores[:, column] == best
        stable[stays] = column
    return stable
