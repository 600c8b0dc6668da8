"""Stability of choices on two versions of the same samples, with numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.stability import find_pairs, measure_stability
from experiments.evaluation.statistics import Bootstrap
from tests.predictor.synthetic import make_labels


def make_versions(num_images=12):
    """An original, and the same samples in another order: named as those of tasks `a` and `b`."""
    original = make_labels(num_images, 0, questions_per_image=1).outcomes
    score = np.tile(np.array([0, 1, 1], dtype=np.float32), (num_images, 1))
    original = replace(original, score=score)
    changed = original.select(np.arange(num_images)[::-1])
    changed = replace(changed, score=np.tile(np.array([0, 0, 1], dtype=np.float32), (num_images, 1)))
    return tuple(
        replace(
            table,
            sample_id=np.array([f"{task}/{name}" for name in table.sample_id], dtype=object),
            image_id=np.array([f"{task}/{name}" for name in table.image_id], dtype=object),
            task=np.full(len(table), task, dtype=object),
        )
        for task, table in (("a", original), ("b", changed))
    )


def test_choices_and_losses_are_paired_by_sample():
    original, changed = make_versions()
    rows = find_pairs(original, changed)
    assert rows is not None and rows.tolist() == list(range(12))[::-1]
    # Scale 9 (column 1) for all; on the changed version, three go up by one step and three down by one.
    before, after = np.ones(12, dtype=int), np.array([2] * 3 + [0] * 3 + [1] * 6)
    stability = measure_stability(original, changed, {0: (before, after)}, rows, bootstrap=Bootstrap(200))
    assert (stability.num_samples, stability.num_images) == (12, 12)
    assert stability.same_scale.value == pytest.approx(0.5)
    assert stability.within_one_step.value == 1
    assert stability.tokens.value == pytest.approx((3 * 27 - 3 * 8) / 12)
    # Right on the original everywhere; on the changed version only where the choice is the finest scale.
    assert stability.lost.value == pytest.approx(0.75)
    assert stability.lost_finest.value == 0
    assert stability.lost_by_choices.value == pytest.approx(-0.25)
    assert stability.same_scale.low < 0.5 < stability.same_scale.high
    # Another training that changes no choice: means over both.
    choices = {0: (before, after), 1: (before, before)}
    over_seeds = measure_stability(original, changed, choices, rows, bootstrap=Bootstrap(200))
    assert over_seeds.same_scale.value == pytest.approx(0.75)


@pytest.mark.parametrize("prefix", ["", "{task}/", "{task}/{task}/"])
def test_ids_may_begin_with_the_name_of_the_task(prefix):
    """Tasks of files begin their ids with it, and joined labels add it."""
    named = []
    for table in make_versions():
        ids = [str(name).partition("/")[2] for name in table.sample_id]
        start = prefix.format(task=table.task[0])
        named.append(replace(table, sample_id=np.array([f"{start}{name}" for name in ids], dtype=object)))
    rows = find_pairs(*named)
    assert rows is not None and rows.tolist() == list(range(12))[::-1]


def test_samples_with_other_references_are_no_pairs():
    """`scenes_shifted` has the ids of `scenes`, with other scenes."""
    original, changed = make_versions()
    assert find_pairs(original, replace(changed, references=[["no"]] * 12)) is None
    some = changed.select(np.arange(5))
    rows = find_pairs(original, some)
    assert rows is not None and rows.tolist() == [11, 10, 9, 8, 7]
    assert find_pairs(some, original) is None
