"""The sensitive split of an evaluation: labels that decide about it, and its table and sentences."""

from pathlib import Path

import numpy as np

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.sensitive_groups import (
    GROUPS,
    SAMPLED,
    Deciding,
    Membership,
    check_downsampled_scale,
    describe_unsampled,
)
from experiments.evaluation.sensitivity import SensitiveSplit
from experiments.evaluation.statistics import Estimate
from experiments.labels.beside import find_labels_of
from experiments.labels.resampled import has_resampled
from experiments.reporting.numbers import format_difference, format_score, format_tokens
from experiments.reporting.tables import Table
from m3_backbone.outcomes.manifest import read_manifest

SENSITIVE, INSENSITIVE = (GROUPS.index(group) for group in ("sensitive", "insensitive"))
_SHOWN = {"sensitive": SENSITIVE, "insensitive": INSENSITIVE}


def find_other_labels(labels: Path, deciding: Deciding) -> dict[str, Path]:
    """Return the label folders of the backbones whose answers decide, by name: those beside `labels`.

    Raises ValueError if one of them has no labels of the task, or labels of other data, and for settings that
    the labels do not allow.
    """
    names = {setting: getattr(deciding, setting) for setting in ("finest", "downsampled")}
    folders = {
        name: find_labels_of(name, labels, f"sensitive.{setting}={name}", "or give sampled")
        for setting, name in names.items()
        if name != SAMPLED
    }
    if deciding.only is not None and SAMPLED in names.values() and not has_resampled(labels):
        raise ValueError(describe_unsampled(deciding.only))
    if deciding.scale is not None:
        answered = read_manifest(folders.get(deciding.downsampled, labels))
        check_downsampled_scale(deciding.scale, answered["scales"])
    return folders


def select_group(membership: Membership, deciding: Deciding) -> np.ndarray:
    """Return the test samples that are evaluated alone. Raises ValueError if there is none."""
    assert deciding.only is not None
    rows = membership.rows_of(deciding.only)
    if not len(rows):
        raise ValueError(
            f"sensitive.only={deciding.only}: no test question is {describe_group(deciding.only, membership)}"
        )
    return rows


def describe_group(group: str, membership: Membership) -> str:
    """Return which answers are right and which wrong in a group."""
    downsampled = "wrong" if group == "sensitive" else "right"
    return f"right by {membership.finest} and {downsampled} by {membership.downsampled}"


def write_subset(membership: Membership, deciding: Deciding) -> str:
    """Return the sentence that says which test questions alone were evaluated."""
    assert deciding.only is not None
    number = len(membership.rows_of(deciding.only))
    return (
        f"Only {number:,} of {len(membership.rows):,} test questions are evaluated, the {deciding.only} "
        f"ones: {describe_group(deciding.only, membership)}. Prices come from all calibration questions."
    )


def tabulate_sensitive(split: SensitiveSplit, comparison: Comparison) -> Table:
    """Tabulate costs and scores of fixed scales and policies on sensitive and on insensitive questions."""
    groups = [group for group in _SHOWN.values() if split.num_samples[group]]

    def show(cost: Estimate, score: Estimate, to_finest: Estimate | None) -> tuple[str, ...]:
        cells: list[str] = []
        for group in groups:
            difference = "-" if to_finest is None else format_difference(to_finest[group])
            cells += [format_tokens(cost.value[group]), format_score(score[group]), difference]
        return tuple(cells)

    rows = [
        (f"scale {scale}", *show(split.fixed_cost[:, column], split.fixed_score[:, column], None))
        for column, scale in enumerate(comparison.scales)
    ]
    rows += [
        (
            f"{policy.name}, default price",
            *show(*(values[policy.name] for values in (split.cost, split.score, split.to_finest))),
        )
        for policy in comparison.policies
    ]
    counts = "; ".join(
        f"{group}: {describe_group(group, split.membership)}, {split.num_samples[column]:,} questions, "
        f"{format_score(split.share[column])}%"
        for group, column in _SHOWN.items()
    )
    caption = (
        f"Sensitive split of {split.num_divided:,} questions ({counts}): mean {comparison.measure.noun}, "
        "score in percent, and difference to the finest scale in points"
    )
    header = ["policy"]
    for group, column in _SHOWN.items():
        if column in groups:
            header += [f"{group}: {comparison.measure.unit}", f"{group}: score", f"{group}: to finest"]
    return Table(caption, tuple(header), tuple(rows), name="sensitive")
