"""Comparison of variants of one model on the same questions: nested or not, pooled or sampled.

An accuracy is the mean over questions, averaged over the training seeds. Its interval covers other test
images and other trainings from the same initialization (`statistics.combine_seeds`); the standard deviation
over the seeds is reported separately. P-values of the differences have Holm's correction over all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.fronts import ORACLES, Floats, choose_as_oracle
from experiments.evaluation.statistics import (
    Bootstrap,
    Bootstrapped,
    Estimate,
    adjust_p_values,
    combine_seeds,
    number_images,
)
from m3_backbone.llava.pooling import PoolingMethod
from m3_backbone.outcomes.table import OutcomeTable

NESTED, PER_SCALE, UNTRAINED = "nested", "one model per scale", "finest only, pooled"
SAMPLINGS: tuple[PoolingMethod, ...] = ("spatial", "sequential")


@dataclass(frozen=True)
class Variant:
    """A training variant: each step pools the grid, by `pooling`, to a random scale of each scale group.

    `scales` are those at which the variant is compared.
    """

    name: str
    scale_groups: list[list[int]]
    scales: tuple[int, ...]
    pooling: PoolingMethod = "average"


def list_variants(scales: tuple[int, ...], nested: Sequence[Sequence[int]]) -> list[Variant]:
    """Return the nested model, the two samplings, and one model per scale, the finest first."""
    groups = [list(group) for group in nested]
    variants = [Variant(NESTED, groups, scales)]
    variants += [Variant(pooling, groups, scales, pooling) for pooling in SAMPLINGS]
    variants += [
        # The finest model is compared at all scales, with pooling that it was not trained for.
        Variant(f"only_{scale}", [[scale]], scales if scale == scales[-1] else (scale,))
        for scale in reversed(scales)
    ]
    return variants


@dataclass(frozen=True)
class Row:
    """Accuracy of a series of models at one scale, or of an oracle; accuracies are shares, not percent.

    `to_nested` is the nested model's accuracy at this scale minus this one, and `p_value` that of no
    difference, after Holm's correction over all rows. Both are None for the nested model and for oracles.
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
    bootstrap: Bootstrap

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
    bootstrap: Bootstrap,
) -> VariantComparison:
    """Compare models that answered the same questions; `tables` is keyed by (name of a variant, seed).

    Raises ValueError if the questions differ.
    """
    first = tables[variants[0].name, seeds[0]]
    for (name, seed), table in tables.items():
        if list(table.sample_id) != list(first.sample_id):
            raise ValueError(f"{name} of seed {seed} answered other questions than {variants[0].name}")
    keys, scores, costs = _collect(variants, tables, seeds)
    image = number_images(first.cluster_id)
    accuracy = _resample_accuracies(scores, image, seeds, bootstrap)
    nested = {scale: row for row, (series, scale) in enumerate(keys) if series == NESTED}
    compared = [row for row, (series, scale) in enumerate(keys) if series != NESTED and scale is not None]
    base = [nested[keys[row][1]] for row in compared]
    to_nested = Bootstrapped(
        accuracy.value[base] - accuracy.value[compared],
        accuracy.resamples[:, base] - accuracy.resamples[:, compared],
        accuracy.has_interval,
    )
    p_values = adjust_p_values(to_nested.p_value()).tolist()
    accuracies, differences = (part.estimate(bootstrap.confidence) for part in (accuracy, to_nested))
    number_of = {row: number for number, row in enumerate(compared)}
    per_seed = scores.mean(axis=2)
    rows = [
        Row(
            series,
            scale,
            float(costs[row]),
            accuracies[row],
            float(per_seed[row].std(ddof=1)) if len(seeds) > 1 else 0.0,
            tuple(per_seed[row].tolist()),
            differences[number_of[row]] if row in number_of else None,
            p_values[number_of[row]] if row in number_of else None,
        )
        for row, (series, scale) in enumerate(keys)
    ]
    num_images = int(image.max()) + 1
    return VariantComparison(rows, tuple(seeds), len(first), num_images, bootstrap)


def _resample_accuracies(
    scores: Floats, image: NDArray[np.int64], seeds: Sequence[int], bootstrap: Bootstrap
) -> Bootstrapped:
    """Return accuracies `[num_rows]` over the seeds, from scores `[num_rows, num_seeds, num_questions]`."""
    counts = np.bincount(image).astype(np.float64)

    sums_by_seed = {
        seed: np.stack([np.bincount(image, weights=row) for row in scores[:, position]])
        for position, seed in enumerate(seeds)
    }

    def measure(weights: Floats) -> dict[int, Floats]:
        num_questions = (weights @ counts)[:, None]
        return {seed: (weights @ sums.T) / num_questions for seed, sums in sums_by_seed.items()}

    return combine_seeds(bootstrap.resample(measure, len(counts)), seed=bootstrap.seed)


def _collect(
    variants: Sequence[Variant], tables: Mapping[tuple[str, int], OutcomeTable], seeds: Sequence[int]
) -> tuple[list[tuple[str, int | None]], Floats, Floats]:
    """Return series and scale of each row, scores `[num_rows, num_seeds, num_questions]` and costs."""
    scales = tables[NESTED, seeds[0]].scales
    by_name = {variant.name: variant for variant in variants}
    # Series -> name of its variant at a scale.
    patterns = {NESTED: NESTED, PER_SCALE: "only_{}", UNTRAINED: f"only_{scales[-1]}"}
    patterns |= {name: name for name in SAMPLINGS}
    keys: list[tuple[str, int | None]] = []
    scores, costs = [], []
    for series, pattern in patterns.items():
        for column, scale in enumerate(scales):
            variant = by_name[pattern.format(scale)]
            assert scale in variant.scales
            by_seed = [tables[variant.name, seed] for seed in seeds]
            keys.append((series, scale))
            scores.append([table.score[:, column] for table in by_seed])
            costs.append(np.mean([table.visual_tokens[:, column].mean() for table in by_seed]))
    nested = [tables[NESTED, seed] for seed in seeds]
    for convention, label in ORACLES.items():
        choices = [choose_as_oracle(table.score, table.visual_tokens, convention) for table in nested]
        samples = np.arange(len(nested[0]))
        pairs = list(zip(nested, choices, strict=True))
        keys.append((label, None))
        scores.append([table.score[samples, choice] for table, choice in pairs])
        costs.append(np.mean([table.visual_tokens[samples, choice].mean() for table, choice in pairs]))
    return keys, np.array(scores, np.float64), np.array(costs, np.float64)
