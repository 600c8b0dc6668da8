"""Stability of choices: one predictor at one price on two versions of the same test samples.

The versions have the same samples and references, but other words or other images, so that choices can be
compared sample by sample, and losses are paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.fronts import Columns, Floats
from experiments.evaluation.schedules import ImageMeans
from experiments.evaluation.statistics import Bootstrap, Estimate, combine_seeds, number_images
from m3_backbone.outcomes.table import OutcomeTable


@dataclass(frozen=True, eq=False)
class Stability:
    """What changes from the original to the changed version of test samples, at one price.

    `same_scale` and `within_one_step` are shares of the samples. `tokens` is the difference in mean visual
    tokens, changed minus original; the others are differences in mean score, original minus changed: `lost`
    with the choices of each version, `lost_finest` with the finest scale for all samples. `lost_by_choices`
    is what the changed choices lose on the changed version: the score there with the choices of the original
    minus that with its own.
    """

    num_samples: int
    num_images: int
    same_scale: Estimate
    within_one_step: Estimate
    tokens: Estimate
    lost: Estimate
    lost_finest: Estimate
    lost_by_choices: Estimate


def find_pairs(original: OutcomeTable, changed: OutcomeTable) -> NDArray[np.int64] | None:
    """Return the row of `original` for each row of `changed`, `[num_samples]`, for two versions of a task.

    Ids are compared without the name of the task, or of the joined labels, which tasks and `training.joining`
    put before `/`. None unless all samples of `changed` are in `original` with the same references.
    """
    for strip in (_strip_task, _strip_first):
        row_of = {sample_id: row for row, sample_id in enumerate(strip(original))}
        rows = [row_of.get(sample_id) for sample_id in strip(changed)]
        if None not in rows:
            break
    if not rows or any(
        row is None or original.references[row] != references
        for row, references in zip(rows, changed.references, strict=True)
    ):
        return None
    return np.array(rows, dtype=np.int64)


def _strip_first(table: OutcomeTable) -> list[str]:
    """Return the sample ids without a prefix up to `/`."""
    return [str(sample_id).partition("/")[2] or str(sample_id) for sample_id in table.sample_id]


def _strip_task(table: OutcomeTable) -> list[str]:
    """Return the sample ids without the name of the task, which may stand before them twice."""
    samples = []
    for sample_id, task in zip(table.sample_id, table.task, strict=True):
        name, prefix = str(sample_id), f"{task}/"
        while name.startswith(prefix):
            name = name.removeprefix(prefix)
        samples.append(name)
    return samples


def measure_stability(
    original: OutcomeTable,
    changed: OutcomeTable,
    choices: Mapping[int, tuple[Columns, Columns]],
    rows: NDArray[np.int64],
    bootstrap: Bootstrap,
) -> Stability:
    """Measure the stability of the choices on the original and the changed version, averaged over seeds.

    `choices` are columns of scales on both versions, by training seed, and `rows` those of `find_pairs`.
    Images and, if there are several, seeds are resampled.
    """
    means = ImageMeans(number_images(changed.cluster_id))
    for seed, (before, after) in choices.items():
        means.add_columns(seed, _compare_choices(original, changed, before[rows], after, rows))

    def measure(weights: Floats) -> dict[int, Floats]:
        return {seed: values[0] for seed, values in means(weights).items()}

    by_seed = bootstrap.resample(measure, means.num_images)
    estimates = combine_seeds(by_seed, seed=bootstrap.seed).estimate(bootstrap.confidence)
    return Stability(len(rows), means.num_images, *(estimates[column] for column in range(6)))


def _compare_choices(
    original: OutcomeTable, changed: OutcomeTable, before: Columns, after: Columns, rows: NDArray[np.int64]
) -> Floats:
    """Return the quantities of `Stability` for each sample of the changed version, `[num_samples, 6]`."""
    before, after = before.astype(np.int64), after.astype(np.int64)
    former = {name: getattr(original, name)[rows].astype(np.float64) for name in ("score", "cost")}
    score, cost = changed.score.astype(np.float64), changed.cost
    sample = np.arange(len(rows))
    columns = np.column_stack(
        [
            before == after,
            abs(before - after) <= 1,
            cost[sample, after] - former["cost"][sample, before],
            former["score"][sample, before] - score[sample, after],
            former["score"][:, -1] - score[:, -1],
            score[sample, before] - score[sample, after],
        ]
    )
    return np.asarray(columns, dtype=np.float64)
