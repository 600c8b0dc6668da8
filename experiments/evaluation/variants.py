"""Variants of one model on the same questions: what nesting, pooling and sampling are worth, with intervals.

An accuracy is the mean over the seeds of the mean over the questions. Its interval is over test images
(`evaluation.statistics`), the seeds held fixed; what seeds change is shown apart, as the standard
deviation over them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.evaluation.fronts import ORACLES, Floats, choose_as_oracle
from experiments.evaluation.statistics import Estimate, bootstrap, number_images
from m3_backbone.ladder import ScaleLadder
from m3_backbone.outcomes import OutcomeTable
from m3_backbone.pooling import PoolingMethod

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


def list_variants(ladder: ScaleLadder, nested: Sequence[Sequence[int]]) -> list[Variant]:
    """The nested model, the two samplings, and one model per scale, the finest first."""
    groups, scales = [list(group) for group in nested], ladder.scales
    variants = [Variant(NESTED, groups, scales)]
    variants += [Variant(pooling, groups, scales, pooling) for pooling in SAMPLINGS]
    variants += [
        # The finest one is compared at all scales: pooling that it was never trained for.
        Variant(f"only_{scale}", [[scale]], scales if scale == ladder.finest else (scale,))
        for scale in reversed(scales)
    ]
    return variants


@dataclass(frozen=True)
class Row:
    """One line of models at one scale (or an oracle); accuracy and differences as shares, not percent.

    `to_nested` is the nested model's accuracy at this scale less this one's; None for itself.
    """

    series: str
    scale: int | None
    visual_tokens: float
    accuracy: Estimate
    spread: float
    per_seed: tuple[float, ...]
    to_nested: Estimate | None = None


@dataclass(frozen=True)
class VariantComparison:
    """All rows, series by series, from coarse to fine."""

    rows: list[Row]
    seeds: tuple[int, ...]
    num_questions: int
    num_images: int
    confidence: float

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
    counts = np.bincount(image).astype(np.float64)
    means = scores.mean(axis=1)  # [num_rows, num_questions]
    nested = {scale: row for row, (series, scale) in enumerate(keys) if series == NESTED}
    base = np.array([nested.get(scale, row) for row, (_, scale) in enumerate(keys)])
    sums = np.stack([np.bincount(image, weights=mean) for mean in means])

    def measure(weights: Floats) -> dict[str, Floats]:
        accuracy = (weights @ sums.T) / (weights @ counts)[:, None]
        return {"accuracy": accuracy, "to_nested": accuracy[:, base] - accuracy}

    found = bootstrap(measure, len(counts), num_resamples=num_resamples, seed=0, confidence=confidence)
    per_seed = scores.mean(axis=2)
    rows = [
        Row(
            series,
            scale,
            float(costs[row]),
            found["accuracy"][row],
            float(per_seed[row].std(ddof=1)) if len(seeds) > 1 else 0.0,
            tuple(per_seed[row].tolist()),
            found["to_nested"][row] if series != NESTED and scale is not None else None,
        )
        for row, (series, scale) in enumerate(keys)
    ]
    return VariantComparison(rows, tuple(seeds), len(first), len(counts), confidence)


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
