"""What an answer costs, counted in one of three ways, with what the predictor itself adds.

A cost has named parts:

    vision      the vision pass
    prefill     the decoder on the whole prompt, until the first token of the answer
    decode      the decoder on the further tokens of the answer
    predictor   features, question encoder and estimates of the policy that chooses the scale

Visual tokens are what the field compares by; they have no parts, and a predictor has none of its own. FLOPs
are vision + prefill + predictor, by formula (`m3_backbone.costs`), up to the first token of the answer: the
answers' further tokens, which differ in number, are not counted.
Milliseconds are vision + prefill and decode + predictor, all of them measured in one process on one machine
(`experiments.latency`). Tokens are not latency: a decoder takes about as long for one visual token as for a
hundred.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from experiments.evaluation.fronts import Floats
from experiments.evaluation.timings import Timings
from m3_backbone.outcomes.labels import Inputs
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import ScalePredictor

log = logging.getLogger(__name__)

# Function from a table to the cost of every sample at every scale, `[num_samples, num_scales]`.
CostOf = Callable[[OutcomeTable], Floats]

VISION, PREFILL, PREFILL_AND_DECODE, PREDICTOR = "vision", "prefill", "prefill and decode", "predictor"


@dataclass(frozen=True, eq=False)
class Account:
    """One way of counting. `of` gives the cost of every sample at every scale, `[num_samples, num_scales]`.

    `own` is the cost of the predictor, by name, which is added to every answer; a policy without an entry
    adds nothing. `once` is the cost that is paid once per question however many scales are tried (the vision
    pass): a number, or a function from a table to `[num_samples]`. `parts` are the named parts that `of` sums
    up, if it has any. `timings` are the measured samples whose means are the costs.
    """

    key: str
    unit: str
    label: str
    of: CostOf
    own: Mapping[str, float] = field(default_factory=dict)
    once: Callable[[OutcomeTable], Floats] | float = 0.0
    parts: Mapping[str, CostOf] = field(default_factory=dict)
    timings: Timings | None = None

    def own_of(self, predictor: str) -> float:
        """What the predictor of that name adds to every answer."""
        return self.own.get(predictor, 0.0)

    def once_of(self, table: OutcomeTable) -> Floats:
        """Cost of each sample that is paid once however many scales are tried, `[num_samples]`."""
        if callable(self.once):
            return self.once(table)
        return np.full(len(table), self.once, dtype=np.float64)

    def mean_parts(self, table: OutcomeTable) -> dict[str, Floats]:
        """Mean of each part over the samples at every scale, `[num_scales]`."""
        return {name: part(table).mean(axis=0) for name, part in self.parts.items()}


def _visual_tokens(table: OutcomeTable) -> Floats:
    return table.visual_tokens.astype(np.float64)


def _vision_gflops(table: OutcomeTable) -> Floats:
    assert table.vision_flops is not None, "open_accounts leaves FLOPs out where they are not recorded"
    return table.vision_flops / 1e9


def _prefill_gflops(table: OutcomeTable) -> Floats:
    return table.prefill_flops / 1e9


def _answer_gflops(table: OutcomeTable) -> Floats:
    return _vision_gflops(table) + _prefill_gflops(table)


def _shared_gflops(table: OutcomeTable) -> Floats:
    """GFLOPs of the vision pass if they are equal at all scales (one pass serves them); else 0."""
    vision = _vision_gflops(table)
    return np.where((vision == vision[:, :1]).all(axis=1), vision[:, 0], 0.0)


TOKENS = Account("tokens", "tokens", "mean visual tokens per question", _visual_tokens)


def open_accounts(
    outcomes: OutcomeTable,
    predictors: Mapping[str, ScalePredictor],
    inputs: Inputs,
    *,
    starts_from: Mapping[str, str] | None = None,
    timings: Timings | None = None,
) -> list[Account]:
    """All accounts that labels and timings allow, visual tokens first.

    `outcomes` are those of any split. The predictors' own FLOPs are counted on `inputs`. `starts_from` maps
    the name of another policy to the predictor whose estimates it needs and pays for. FLOPs are left out if
    the labels lack those of the vision pass, milliseconds if there are no `timings`.
    """
    trained = {name: name for name in predictors} | dict(starts_from or {})
    accounts = [TOKENS]
    if outcomes.vision_flops is None:
        log.warning(
            "the labels were made by an earlier version and lack FLOPs of the vision pass, so no cost is "
            "counted in FLOPs: run `python -m experiments.label` again with the same settings, which adds "
            "them without answering anything"
        )
    else:
        own = {name: predictor.count_flops(inputs) / 1e9 for name, predictor in predictors.items()}
        accounts.append(count_flops({name: own[source] for name, source in trained.items()}))
    if timings is not None:
        accounts.append(count_milliseconds(timings.with_names(trained)))
    return accounts


def count_flops(own: Mapping[str, float]) -> Account:
    """The account of FLOPs; `own` are the predictors' GFLOPs per question."""
    return Account(
        "flops",
        "GFLOPs",
        "mean GFLOPs of vision pass, prefill and predictor per question",
        _answer_gflops,
        own,
        _shared_gflops,
        {VISION: _vision_gflops, PREFILL: _prefill_gflops},
    )


def count_milliseconds(timings: Timings) -> Account:
    """The account of milliseconds: means of the timed pictures, the same for every sample."""
    means = timings.means()
    (cost,), (vision,) = means.cost, means.shared
    return Account(
        "milliseconds",
        "ms",
        f"milliseconds per answer at batch size {timings.batch_size}, vision pass and predictor included",
        partial(_repeat, cost),
        {name: float(taken[0]) for name, taken in means.overhead.items()},
        float(vision),
        {
            VISION: partial(_repeat, np.full_like(cost, vision)),
            PREFILL_AND_DECODE: partial(_repeat, cost - vision),
        },
        timings,
    )


def _repeat(at_scales: Floats, table: OutcomeTable) -> Floats:
    """Repeat `[num_scales]` for every sample of a table: `[num_samples, num_scales]`."""
    assert len(at_scales) == len(table.scales)
    return np.tile(at_scales, (len(table), 1))
