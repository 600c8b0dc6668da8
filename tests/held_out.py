"""Reading any split of a label folder in tests, the test split without a record."""

from pathlib import Path

from m3_backbone.outcomes.labels import SPLITS, Labels, read_labels
from m3_backbone.outcomes.table import HeldOutAccess, OutcomeTable


def grant(folder: str | Path) -> HeldOutAccess:
    """Access to the test split of a folder, as a recorded evaluation has it."""
    return HeldOutAccess(Path(folder).resolve(), "tests")


def read_split(folder: str | Path, split: str) -> Labels:
    """The labels of a split."""
    return read_labels(folder, split, grant(folder))


def read_outcomes(folder: str | Path, split: str | None = None) -> OutcomeTable:
    """The outcomes of a split, or of all splits."""
    tables = [OutcomeTable.read(folder, name, grant(folder)) for name in ([split] if split else SPLITS)]
    return OutcomeTable.concat(tables)
