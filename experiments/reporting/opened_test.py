"""The test samples of an evaluation, and the answers of other backbones to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.evaluation.matching import describe_missing, match_all_samples
from experiments.evaluation.sensitive_groups import Deciding, Membership, find_membership
from experiments.labels.beside import find_labels_of
from experiments.labels.held_out import EvaluationRecord, EvaluationRecorder
from experiments.labels.resampled import Resampled, read_resampled
from experiments.reporting.sensitive import select_group, write_subset
from experiments.training.trained import TrainedPredictor
from m3_backbone.outcomes.labels import Labels
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable, check_split


def find_ladders(labels: Path, backbones: Sequence[str]) -> dict[str, Path]:
    """Return the label folders of other backbones, by name.

    Raises ValueError for the backbone of `labels` itself, and if one has no finished labels of these data, or
    fewer test samples.
    """
    if not backbones:
        return {}
    own = read_manifest(labels)
    if (evaluated := own["backbone"]) in backbones:
        raise ValueError(f"ladders={evaluated}: it is the backbone that is evaluated: leave it out")
    folders = {name: find_labels_of(name, labels, f"ladders={name}", "or leave it out") for name in backbones}
    check_split(own, HELD_OUT, labels)
    num_samples = own["counts"][HELD_OUT]
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        check_split(manifest, HELD_OUT, folder)
        if (num_answered := manifest["counts"][HELD_OUT]) < num_samples:
            raise ValueError(describe_missing(name, num_answered, num_samples))
    return folders


def _match_ladder(test: OutcomeTable, other: OutcomeTable, name: str) -> OutcomeTable:
    """Return the outcomes of another backbone on all test samples, in their order.

    Raises ValueError if it did not answer one of them, and for labels without FLOPs of the vision pass.
    """
    matched = match_all_samples(test, other, name)
    if test.vision_flops is not None and matched.vision_flops is None:
        raise ValueError(
            f"ladders={name}: its labels lack the FLOPs of the vision pass: label again with "
            f"`tokenscale label backbone={name} overwrite=true`, or leave it out"
        )
    return matched


@dataclass(frozen=True, eq=False)
class OpenedTest:
    """The evaluated test samples.

    `ladders` are their outcomes by other backbones, by name. `subset` describes the samples if they are not
    all; `membership` is None then.
    """

    labels: Labels
    record: EvaluationRecord
    resampled: Resampled | None
    membership: Membership | None
    ladders: Mapping[str, OutcomeTable]
    subset: str = ""


def open_test(
    trained: Sequence[TrainedPredictor],
    labels: Path,
    recorder: EvaluationRecorder,
    deciding: Deciding,
    other_labels: Mapping[str, Path],
    ladder_labels: Mapping[str, Path],
) -> OpenedTest:
    """Record the evaluation, open the test split, and return the samples that are evaluated.

    `other_labels` and `ladder_labels` are label folders of other backbones by name: of those whose answers
    decide (`find_other_labels`), and of those that are compared (`find_ladders`). Reading them is recorded
    too.
    """
    test, record = recorder.open_test(labels, {entry.name: entry.digest for entry in trained})
    resampled = read_resampled(labels, test.outcomes)

    @cache
    def read_outcomes(folder: Path) -> OutcomeTable:
        return recorder.open_test(folder)[0].outcomes

    membership = find_membership(
        test.outcomes, resampled, deciding, lambda backbone: read_outcomes(other_labels[backbone])
    )
    ladders = {
        name: _match_ladder(test.outcomes, read_outcomes(folder), name)
        for name, folder in ladder_labels.items()
    }
    if deciding.only is None or membership is None:
        return OpenedTest(test, record, resampled, membership, ladders)
    rows = select_group(membership, deciding)
    return OpenedTest(
        test.select(rows),
        record,
        None if resampled is None else resampled.select(rows),
        None,
        {name: outcomes.select(rows) for name, outcomes in ladders.items()},
        write_subset(membership, deciding),
    )
