"""Costs by a tariff, in currency, joules or milliseconds, and what is left of a saving when answers are long.

A tariff is linear in what an answer uses. The cost of an answer of n tokens at scale s is

    request + input_token * (visual tokens(s) + question tokens) + gflop * GFLOPs(s) + output_token * n

with GFLOPs of vision pass, prefill and predictor. A predictor that reads the state of the decoder pays for
the input tokens of the coarsest scale too, unless its answer is decoded from them, and one that reads
self-asking for the visual tokens with which the model is asked. Visual tokens are saved once and output
tokens are paid at every scale, so the share that a coarser scale saves falls with n. An answer that a cascade
tries and rejects has n tokens too.

Milliseconds are measured instead (`tokenscale latency latency.output_tokens=N`): vision pass, prefill at s
and n - 1 times the time of a further token at s. For n = 1 this is the time to the first token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.costs import (
    TOKENS,
    CostMeasure,
    CostOf,
    Part,
    Timings,
    count_milliseconds,
    take_coarsest,
)
from experiments.evaluation.fronts import Floats
from experiments.evaluation.policies import ScoredSamples
from experiments.evaluation.statistics import Estimate, number_images
from m3_backbone.arguments import NonNegativeFloat, PositiveInt
from m3_backbone.outcomes.table import OutcomeTable

DECODE = "decode"


def check_lengths(output_tokens: Sequence[int]) -> None:
    """Raise ValueError if lengths of answers are not increasing."""
    if list(output_tokens) != sorted(set(output_tokens)):
        raise ValueError(f"tariff.output_tokens={list(output_tokens)}: give increasing numbers")


def find_measure(measures: Sequence[CostMeasure], key: str) -> CostMeasure | None:
    """Return the cost measure with this key, None if it is not among `measures`."""
    return next((measure for measure in measures if measure.key == key), None)


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """Prices in `unit` of one request, one input token, one output token and one GFLOP.

    Questions are counted without the rest of the prompt, which is the same at every scale: its price belongs
    to `request`. `output_tokens` are the lengths of answers that are compared; fronts are drawn for the
    first. Raises ValueError if everything is free, or if lengths are not increasing.
    """

    name: str
    unit: str
    request: NonNegativeFloat = 0.0
    input_token: NonNegativeFloat = 0.0
    output_token: NonNegativeFloat = 0.0
    gflop: NonNegativeFloat = 0.0
    output_tokens: Annotated[Sequence[PositiveInt], Len(1)] = (1, 30, 300, 3000)

    def __post_init__(self) -> None:
        if not self.input_token and not self.gflop:
            raise ValueError(
                f"tariff {self.name}: every scale costs the same: give a price for input_token or for gflop"
            )
        check_lengths(self.output_tokens)

    def list_measures(self, measures: Sequence[CostMeasure]) -> list[CostMeasure]:
        """Return the cost measure for each length of the answers.

        `measures` are the other costs of an evaluation. Raises ValueError if GFLOPs are not among them and
        have a price.
        """
        flops = find_measure(measures, "flops")
        if self.gflop and flops is None:
            raise ValueError(
                f"tariff {self.name} has a price for a GFLOP, and the labels have no FLOPs: run `tokenscale "
                "label` again with the same settings, or choose a tariff of tokens"
            )
        tokens = find_measure(measures, "tokens") or TOKENS
        return [self._measure(number, tokens, flops) for number in self.output_tokens]

    def _measure(self, num_output: int, tokens: CostMeasure, flops: CostMeasure | None) -> CostMeasure:
        prefill = partial(take_coarsest, partial(_price_tokens, 0.0, self.input_token))
        parts = [
            Part("input tokens", partial(_price_tokens, self.request, self.input_token)),
            Part(DECODE, partial(_price_answer, self.output_token * num_output)),
        ]
        measure = CostMeasure(
            "tariff",
            self.unit,
            f"mean {self.unit} per question by the tariff {self.name}, {num_output:,} output "
            f"token{'s' if num_output > 1 else ''}",
            parts,
            overhead={name: self.input_token * asked for name, asked in tokens.overhead.items()},
            state_readers=tokens.state_readers,
            coarsest_prefill=prefill,
        )
        if flops is None or not self.gflop:
            return measure
        priced = [replace(part, of=partial(_scale, self.gflop, part.of)) for part in flops.parts]
        of_flops = [] if flops.coarsest_prefill is None else [flops.coarsest_prefill]
        prefills = [prefill, *(partial(_scale, self.gflop, of) for of in of_flops)]
        return replace(
            measure,
            parts=[*priced, *parts],
            overhead={
                name: measure.overhead_of(name) + self.gflop * flops.overhead_of(name)
                for name in {**measure.overhead, **flops.overhead}
            },
            vision_readers=flops.vision_readers,
            state_readers=flops.state_readers,
            coarsest_prefill=partial(_add, prefills),
        )


@dataclass(frozen=True, kw_only=True)
class MeasuredTariff:
    """Milliseconds of answers of several lengths, from the timings of long answers.

    `output_tokens` are the lengths that are compared; fronts are drawn for the first.
    """

    name: str = "milliseconds"
    unit: str = "ms"
    output_tokens: Annotated[Sequence[PositiveInt], Len(1)] = (1, 30, 300, 3000)

    def __post_init__(self) -> None:
        check_lengths(self.output_tokens)

    def list_measures(self, measures: Sequence[CostMeasure]) -> list[CostMeasure]:
        """Return the cost measure for each length of the answers.

        Raises ValueError if `measures` have no milliseconds, or no timings of long answers.
        """
        milliseconds = find_measure(measures, "milliseconds")
        if milliseconds is None or milliseconds.timings is None:
            raise ValueError(
                f"tariff {self.name}: there are no timings of these predictors on this machine: run "
                "`tokenscale latency latency.output_tokens=30` with the same settings"
            )
        return [self._measure(number, milliseconds.timings) for number in self.output_tokens]

    def _measure(self, num_output: int, timings: Timings) -> CostMeasure:
        length = "the first token" if num_output == 1 else f"token {num_output:,}"
        return replace(
            count_milliseconds(timings.with_length(num_output)),
            key="tariff",
            label=f"milliseconds to {length} at batch size {timings.batch_size}, vision pass and predictor "
            "included",
        )


def _price_tokens(request: float, input_token: float, table: OutcomeTable) -> Floats:
    question = np.array([len(ids) for ids in table.question_ids], dtype=np.float64)
    return request + input_token * (table.cost + question[:, None])


def _price_answer(price: float, table: OutcomeTable) -> Floats:
    return np.full((len(table), len(table.scales)), price)


def _add(costs: Sequence[CostOf], table: OutcomeTable) -> Floats:
    return sum((of(table) for of in costs), np.zeros(1))


def _scale(factor: float, of: Any, table: OutcomeTable) -> Floats:
    scaled: Floats = factor * of(table)
    return scaled


@dataclass(frozen=True, eq=False)
class Savings:
    """Mean costs by a tariff at each length of the answers, with intervals over images.

    `finest` `[num_lengths]` are those of the finest scale; `cost` and `saved`, by policy, `[num_lengths]`
    those of its default price, and one minus their ratio.
    """

    tariff: Tariff | MeasuredTariff
    finest: Estimate
    cost: Mapping[str, Estimate]
    saved: Mapping[str, Estimate]


def measure_savings(
    comparison: Comparison,
    test: OutcomeTable,
    tariff: Tariff | MeasuredTariff,
    measures: Sequence[CostMeasure],
) -> Savings:
    """Return the costs of the policies of a comparison at their default prices.

    `measures` are those of the tariff (`Tariff.list_measures`), `test` the samples of the comparison.
    Intervals use as many resamples, and the same seed, as the comparison; they cover test images, not the
    noise of timings.
    """
    image, samples = number_images(test.cluster_id), np.arange(len(test))
    costs: dict[str, list[Floats]] = {"": [measure.of(test)[:, -1] for measure in measures]}
    for policy in comparison.policies:
        default = policy.default
        costs[policy.name] = [
            default.paths.cost(ScoredSamples.of(test, measure, policy.name))[samples, default.path]
            + measure.overhead_of(policy.name)
            for measure in measures
        ]
    sums = {
        name: np.column_stack([np.bincount(image, weights=cost) for cost in by_length])
        for name, by_length in costs.items()
    }
    counts = np.bincount(image).astype(np.float64)

    def measure_all(weights: Floats) -> dict[Any, Floats]:
        number = (weights @ counts)[:, None]
        means = {name: (weights @ summed) / number for name, summed in sums.items()}
        saved = {("saved", name): 1 - mean / means[""] for name, mean in means.items() if name}
        return {("cost", name): mean for name, mean in means.items()} | saved

    estimates = comparison.bootstrap.estimate(measure_all, len(counts))
    names = [policy.name for policy in comparison.policies]
    return Savings(
        tariff,
        estimates["cost", ""],
        {name: estimates["cost", name] for name in names},
        {name: estimates["saved", name] for name in names},
    )
