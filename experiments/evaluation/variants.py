"""Variants of one model on the same questions: what nesting, pooling and sampling are worth, with intervals.

An accuracy is the mean over the seeds of the mean over the questions. Its interval covers other test images
and other trainings from the same start (`statistics.combine_seeds`); what seeds change is also shown apart,
as the standard deviation over them. P-values of the differences are Holm's, over all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.fronts import ORACLES, Floats, choose_as_oracle
from experiments.evaluation.statistics import (
    Bootstrapped,
    Estimate,
    adjust_p_values,
    combine_seeds,
    number_images,
    resample,
)
from m3_backbone.llava.pooling import PoolingMethod
from m3_backbone.outcomes.table import OutcomeTable

NESTED, PER_SCALE, UNTRAINED = "nested", "one model per scale", "finest only, pooled"
SAMPLINGS: tuple[PoolingMethod, ...] = ("spatial", "sequential")


@dataclass(frozen=True)
class Variant:
    """A way to train: `pooling` reduces the grid to a scale drawn from each of `scale_groups` at every step.

    `scales` are those it is compared at.
    """

    name: str
    scale_groups: list[list[int]]
    scales: tuple[int, ...]
    pooling: PoolingMethod = "average"


def list_variants(scales: tuple[int, ...], nested: Sequence[Sequence[int]]) -> list[Variant]:
    """The nested model, the two samplings, and one model per scale, the finest first."""
    groups = [list(group) for group in nested]
    variants = [Variant(NESTED, groups, scales)]
    variants += [Variant(pooling, groups, scales, pooling) for pooling in SAMPLINGS]
    variants += [
        # The finest one is compared at all scales: pooling that it was never trained for.
        Variant(f"only_{scale}", [[scale]], scales if scale == scales[-1] else (scale,))
        for scale in reversed(scales)
    ]
    return variants


@dataclass(frozen=True)
class Row:
    """One line of models at one scale (or an oracle); accuracy and differences as shares, not percent.

    `to_nested` is the nested model's accuracy at this scale less this one's, `p_value` that of no difference
    after Holm's correction over all rows; None for itself and for oracles.
    """

    series: str
    scale: int | None
    visual_tokens: float
    accuracy: Estimate
    spread: float
    per_seed: tuple[float, ...]
    to_nested: Estimate | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class VariantComparison:
    """All rows, series by series, from coarse to fine."""

    rows: list[Row]
    seeds: tuple[int, ...]
    num_questions: int
    num_images: int
    confidence: float
    num_resamples: int

    @property
    def num_tests(self) -> int:
        """Number of differences whose p-values are corrected together."""
        return sum(row.p_value is not None for row in self.rows)

    def of(self, series: str) -> list[Row]:
        return [row for row in self.rows if row.series == series]


def compare_variants(
    variants: Sequence[Variant],
    tables: Mapping[tuple[str, int], OutcomeTable],
    seeds: Sequence[int],
    *,
    num_resamples: int,
    confidence: float = 0.95,
) -> VariantComparison:
    """Compare models that answered the same questions; `tables` holds one per name of a variant and seed.

    ValueError where the questions differ.
    """
    first = tables[variants[0].name, seeds[0]]
    for (name, seed), table in tables.items():
        if list(table.sample_id) != list(first.sample_id):
            raise ValueError(f"{name} of seed {seed} answered other questions than {variants[0].name}")
    keys, scores, costs = _collect(variants, tables, seeds)
    image = number_images(first.image_id)
    accuracy = _draw_accuracies(scores, image, seeds, num_resamples)
    nested = {scale: row for row, (series, scale) in enumerate(keys) if series == NESTED}
    compared = [row for row, (series, scale) in enumerate(keys) if series != NESTED and scale is not None]
    base = [nested[keys[row][1]] for row in compared]
    to_nested = Bootstrapped(
        accuracy.value[base] - accuracy.value[compared],
        accuracy.resamples[:, base] - accuracy.resamples[:, compared],
        accuracy.has_interval,
    )
    p_values = adjust_p_values(to_nested.p_value()).tolist()
    accuracies, differences = accuracy.estimate(confidence), to_nested.estimate(confidence)
    place = {row: number for number, row in enumerate(compared)}
    per_seed = scores.mean(axis=2)
    rows = [
        Row(
            series,
            scale,
            float(costs[row]),
            accuracies[row],
            float(per_seed[row].std(ddof=1)) if len(seeds) > 1 else 0.0,
            tuple(per_seed[row].tolist()),
            differences[place[row]] if row in place else None,
            p_values[place[row]] if row in place else None,
        )
        for row, (series, scale) in enumerate(keys)
    ]
    num_images = int(image.max()) + 1
    return VariantComparison(rows, tuple(seeds), len(first), num_images, confidence, num_resamples)


def _draw_accuracies(
    scores: Floats, image: NDArray[np.int64], seeds: Sequence[int], num_resamples: int
) -> Bootstrapped:
    """Accuracies `[num_rows]` over the seeds, of scores `[num_rows, num_seeds, num_questions]`."""
    counts = np.bincount(image).astype(np.float64)

    sums = {
        seed: np.stack([np.bincount(image, weights=row) for row in scores[:, place]])
        for place, seed in enumerate(seeds)
    }

    def measure(weights: Floats) -> dict[int, Floats]:
        num_questions = (weights @ counts)[:, None]
        return {seed: (weights @ sums_of_seed.T) / num_questions for seed, sums_of_seed in sums.items()}

    return combine_seeds(resample(measure, len(counts), num_resamples=num_resamples, seed=0), seed=0)


def _collect(
    variants: Sequence[Variant], tables: Mapping[tuple[str, int], OutcomeTable], seeds: Sequence[int]
) -> tuple[list[tuple[str, int | None]], Floats, Floats]:
    """Series and scale of each row, scores `[num_rows, num_seeds, num_questions]`, costs `[num_rows]`."""
    scales = tables[NESTED, seeds[0]].scales
    by_name = {variant.name: variant for variant in variants}
    named = {NESTED: NESTED, PER_SCALE: "only_{}", UNTRAINED: f"only_{scales[-1]}"}
    named |= {name: name for name in SAMPLINGS}
    keys: list[tuple[str, int | None]] = []
    scores, costs = [], []
    for series, name in named.items():
        for column, scale in enumerate(scales):
            variant = by_name[name.format(scale)]
            assert scale in variant.scales
            own = [tables[variant.name, seed] for seed in seeds]
            keys.append((series, scale))
            scores.append([table.score[:, column] for table in own])
            costs.append(np.mean([table.visual_tokens[:, column].mean() for table in own]))
    nested = [tables[NESTED, seed] for seed in seeds]
    for convention, label in ORACLES.items():
        choices = [choose_as_oracle(table.score, table.visual_tokens, convention) for table in nested]
        every = np.arange(len(nested[0]))
        pairs = list(zip(nested, choices, strict=True))
        keys.append((label, None))
        scores.append([table.score[every, choice] for table, choice in pairs])
        costs.append(np.mean([table.visual_tokens[every, choice].mean() for table, choice in pairs]))
    return keys, np.array(scores, np.float64), np.array(costs, np.float64)
