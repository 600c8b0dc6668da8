"""Columns of a table of outcomes: those of its options, and the values in its rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from experiments.tasks.base import Split
from experiments.tasks.questions import OWN_SPLITS
from experiments.tasks.rows import BadRow

# Endings of the columns of an option, if `options` is None: NAME.score, NAME.cost, ...
PARTS = ("score", "cost", "answer", "confidence")
# A cascade has n (n + 1) / 2 paths over n options, numbered in 16 bits.
MOST_OPTIONS = 255
_MOST_NAME_CHARS = 100
# Questions may have line breaks.
_CSV = pa.csv.ParseOptions(newlines_in_values=True)


@dataclass(frozen=True)
class OptionColumns:
    """Columns of one option; `cost` is a column or a number, `answer` and `confidence` may be missing."""

    score: str
    cost: str | float
    answer: str | None = None
    confidence: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [
            name for name in (self.score, self.cost, self.answer, self.confidence) if isinstance(name, str)
        ]


def find_options(
    options: Mapping[str, Mapping[str, str | float | int]] | None, present: Sequence[str], file: Path
) -> dict[str, OptionColumns]:
    """Return the columns of each option, by name (see `OutcomeFile`). Raises ValueError without any."""
    if options is None:
        names = [
            name.removesuffix(".score")
            for name in present
            if name.endswith(".score") and f"{name.removesuffix('.score')}.cost" in present
        ]
        options = {
            name: {part: f"{name}.{part}" for part in PARTS if f"{name}.{part}" in present} for name in names
        }
    if not options:
        raise ValueError(
            f"{file} has no columns NAME.score and NAME.cost, only {list_names(present)}: name those of "
            "each option with options='{NAME: {score: COLUMN, cost: COLUMN or number}}'"
        )
    if len(options) > MOST_OPTIONS:
        raise ValueError(
            f"{file} has {len(options):,} options, and at most {MOST_OPTIONS} can be compared: name some of "
            "them with options='{NAME: {score: COLUMN, cost: COLUMN}}'"
        )
    columns = {}
    for name, parts in options.items():
        # Names are printed in every table.
        if not name.strip() or not name.isprintable() or len(name) > _MOST_NAME_CHARS:
            raise ValueError(
                f"option {name[:40]!r} of {file}: a name has 1 to {_MOST_NAME_CHARS} printable characters: "
                "give another one with options='{NAME: {score: COLUMN, cost: COLUMN}}'"
            )
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"options.{name}.{min(unknown)}: give {', '.join(PARTS)}")
        for part in ("score", "cost"):
            if part not in parts:
                raise ValueError(
                    f"options.{name}.{part} is missing: give a column{' or a number' * (part == 'cost')}"
                )
        texts = {part: str(value) for part, value in parts.items() if part != "cost"}
        cost = parts["cost"]
        columns[name] = OptionColumns(cost=cost if isinstance(cost, str) else float(cost), **texts)
    return columns


def read_names(file: Path) -> list[str]:
    """Return the names of the columns of a CSV or Parquet file. Raises OSError or ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give the CSV or Parquet file of the outcomes with file=...")
    with _naming(file):
        if file.suffix == ".parquet":
            names = pq.read_schema(file).names
        elif file.suffix == ".csv":
            names = pa.csv.open_csv(file, parse_options=_CSV).schema.names
        else:
            raise ValueError(
                f"{file} ends neither in .csv nor in .parquet: convert it, for example by pandas"
            )
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{file} has two columns {min(duplicates)!r}: rename one of them")
    return list(names)


def read_rows(file: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or Parquet file, with the columns in `names`."""
    with _naming(file):
        if file.suffix == ".parquet":
            batches: Iterator[pa.RecordBatch] = pq.ParquetFile(file).iter_batches(columns=list(names))
        else:
            convert = pa.csv.ConvertOptions(include_columns=list(names), strings_can_be_null=True)
            table = pa.csv.read_csv(file, parse_options=_CSV, convert_options=convert)
            # PyArrow reads a column as bytes if one of its rows is not UTF-8.
            if in_bytes := [field.name for field in table.schema if pa.types.is_binary(field.type)]:
                raise ValueError(f"{file} is not UTF-8 (column {in_bytes[0]!r}): save it as UTF-8")
            batches = iter(table.to_batches())
        for batch in batches:
            yield from batch.select(list(names)).to_pylist()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn errors of pyarrow into a ValueError that names the file."""
    try:
        yield
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{file} cannot be read ({reason})") from error


def read_number(value: Any, name: str, low: float | None = None, high: float = math.inf) -> float:
    """Return a number, or 0 and 1 for false and true. Raises BadRow unless it is in the range.

    Without `low`, the number must be positive.
    """
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise BadRow(f"{name} is {str(value)[:40]!r} and not a number")
    number = float(value)
    if low is None and number <= 0:
        raise BadRow(f"{name} is {number:g} and not positive")
    if low is not None and not low <= number <= high:
        raise BadRow(f"{name} is {number:g} and not between {low:g} and {high:g}")
    return number


def read_split(value: Any) -> Split | None:
    """Return the split that a value names, None for none. Raises BadRow for another value."""
    if value is None:
        return None
    split = str(value).strip().lower()
    if split not in OWN_SPLITS:
        raise BadRow(f"split is {split[:40]!r} and none of {', '.join(OWN_SPLITS)}")
    return OWN_SPLITS[split]


def list_names(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name[:60]) for name in names[:20])
    return f"{listed} and {len(names) - 20} more" if len(names) > 20 else listed
