"""What an answer costs, counted in one of three ways, with what the predictor itself adds.

Visual tokens are what the field compares by, and a predictor has none of its own. FLOPs are those of the
decoder's prefill, by formula (`m3_backbone.costs`), and milliseconds those of a whole answer at batch size 1
on the machine that labelled (`latency.json` beside the labels); the predictor's own, features included, are
added to both. Tokens are not latency: a decoder takes about as long for one visual token as for a hundred.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.evaluation.fronts import Floats
from experiments.label_folder import LATENCY
from experiments.latency import FEATURES, NUM_WARMUPS, describe_machine, time_call
from m3_backbone.labels import Inputs
from m3_backbone.outcomes import OutcomeTable
from predictor.base import ScalePredictor
from predictor.features import Features

log = logging.getLogger(__name__)

NUM_TIMED = 24


@dataclass(frozen=True, eq=False)
class Account:
    """One way of counting. `of` gives the cost of every sample at every scale, `[num_samples, num_scales]`.

    `own` is what each predictor adds to every answer; one that is not named adds nothing. `once` is what of
    the cost at any scale is paid once for all the scales that are tried: the vision pass.
    """

    key: str
    unit: str
    label: str
    of: Callable[[OutcomeTable], Floats]
    own: Mapping[str, float] = field(default_factory=dict)
    once: float = 0.0

    def own_of(self, predictor: str) -> float:
        """What the predictor of that name adds to every answer."""
        return self.own.get(predictor, 0.0)


def _visual_tokens(table: OutcomeTable) -> Floats:
    return table.visual_tokens.astype(np.float64)


def _prefill_gflops(table: OutcomeTable) -> Floats:
    return table.prefill_flops / 1e9


TOKENS = Account("tokens", "tokens", "mean visual tokens per question", _visual_tokens)


def open_accounts(labels: Path, predictors: Mapping[str, ScalePredictor], inputs: Inputs) -> list[Account]:
    """All accounts that the labels in the folder allow, visual tokens first.

    `inputs` are those on which the predictors' own cost is measured. Labels without `latency.json` (they
    were made by something else) have no milliseconds.
    """
    flops = {name: each.count_flops(inputs) / 1e9 for name, each in predictors.items()}
    label = "mean GFLOPs of prefill and predictor per question"
    accounts = [TOKENS, Account("flops", "GFLOPs", label, _prefill_gflops, flops)]
    path = labels / LATENCY
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        latency, there, here = content["milliseconds"], content.get("machine"), describe_machine()
        if there not in (None, here):
            log.warning("answers were timed on %s, predictors on %s: their sum is neither's", there, here)
        own = {
            name: time_predictor(each, inputs) + time_features(each.features, latency)
            for name, each in predictors.items()
        }
        label = "milliseconds per answer at batch size 1, vision pass and predictor included"
        once = float(latency["encode"])
        accounts.append(Account("milliseconds", "ms", label, partial(_milliseconds, latency), own, once))
    return accounts


def _milliseconds(latency: Mapping[str, Any], table: OutcomeTable) -> Floats:
    at_scales = [latency["encode"] + latency[str(scale)] for scale in table.scales]
    return np.tile(np.array(at_scales, dtype=np.float64), (len(table), 1))


def time_predictor(predictor: ScalePredictor, inputs: Inputs) -> float:
    """Median milliseconds of estimates for one sample, its features at hand, over the first few of these."""
    rows = [*range(NUM_WARMUPS), *range(min(NUM_TIMED, len(inputs)))]
    seconds = []
    for row in rows:
        single = inputs.select([row % len(inputs)])
        predictor.features.forget_sentences()  # a new question is encoded first
        seconds.append(time_call(partial(predictor.predict, single))[1])
    return 1000 * median(seconds[NUM_WARMUPS:])


def time_features(features: Features, latency: Mapping[str, float]) -> float:
    """Milliseconds that the features of an image took in labelling; 0 where labels are older than that."""
    parts = (*features.scales, *features.groups)
    return sum(latency.get(f"{FEATURES}{part}", 0.0) for part in parts)
