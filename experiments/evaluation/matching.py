"""Answers of other backbones to the same samples."""

import numpy as np
from numpy.typing import NDArray

from m3_backbone.outcomes.table import OutcomeTable


def match_samples(
    test: OutcomeTable, other: OutcomeTable, name: str
) -> tuple[NDArray[np.int64], OutcomeTable]:
    """Return the rows of `test` that the backbone `name` answered, `[num_rows]`, and its outcomes there.

    Raises ValueError if the questions under one id differ.
    """
    row_of = {sample: row for row, sample in enumerate(other.sample_id)}
    rows = np.array([row for row, sample in enumerate(test.sample_id) if sample in row_of], dtype=np.int64)
    matched = other.select([row_of[test.sample_id[row]] for row in rows])
    if list(matched.question) != list(test.question[rows]):
        raise ValueError(f"labels of {name} have other questions under the same ids: label the same data")
    return rows, matched


def match_all_samples(test: OutcomeTable, other: OutcomeTable, name: str) -> OutcomeTable:
    """Return the outcomes of the backbone `name` on all samples of `test`, in the same order.

    Raises ValueError if it did not answer one of them, and as `match_samples`.
    """
    rows, matched = match_samples(test, other, name)
    if len(rows) < len(test):
        raise ValueError(describe_missing(name, len(rows), len(test)))
    return matched


def describe_missing(name: str, num_answered: int, num_samples: int) -> str:
    """Return an error message for a backbone that did not answer all test samples."""
    return (
        f"{name} answered only {num_answered:,} of the {num_samples:,} test questions: label the task with "
        "the same limits and seed; skipped.jsonl in its label folder lists what could not be answered"
    )
