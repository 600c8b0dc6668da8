"""Rows of JSONL and JSON files, and the values of their fields.

A bad row does not end a run, and a long line does not fill the memory.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from m3_backbone.reading import check_no_pointer

MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 29
MAX_NAME_CHARS = 1000  # characters of an id or a path
# Keys of the rows in the JSON documents of VQA, TextVQA, DocVQA and SEED-Bench.
ROW_LISTS = ("data", "questions", "annotations")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WAY_OUT = "write one JSON object a line (.jsonl) or one list of objects (.json)"


class BadRow(ValueError):
    """A row that cannot be used. The message is the reason."""


@dataclass(frozen=True)
class Row:
    """A row, or the reason why it cannot be read; `place` is for `RowFile.read`, `number` starts from 1."""

    place: int
    number: int
    content: dict[str, Any] | BadRow


class RowFile:
    """Reader of the JSON objects in a file, in order or by place.

    The format is detected from the content, not the name. A file is JSONL, read line by line, if it has
    several lines that are not blank and the first of them is a whole object. Any other file is one JSON
    document of at most `MAX_DOCUMENT_BYTES`: a list of objects, an object with such a list under one of
    `ROW_LISTS` or under its only key that has one, an object of objects, whose keys are used as
    `question_id`, or a single row. A file named .jsonl that is no such document is JSONL with bad rows.

    Args:
        path: the file, in UTF-8 with or without a byte order mark.
        row_keys: names of fields; an object with at least two of them is a row.

    Raises FileNotFoundError if there is no file, and ValueError, at the first reading, if it has no rows.
    """

    def __init__(self, path: str | Path, row_keys: Collection[str] = ()) -> None:
        self.path = Path(path)
        self._row_keys = frozenset(row_keys)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}: give the path of an existing file")
        check_no_pointer(self.path)

    @property
    def unit(self) -> str:
        """Unit that `Row.number` counts: "line" or "row"."""
        return "line" if self._is_jsonl else "row"

    def __iter__(self) -> Iterator[Row]:
        if not self._is_jsonl:
            for place, value in enumerate(self._document):
                yield Row(place, place + 1, _check_object(value))
            return
        with self.path.open("rb") as file:
            place = file.tell()
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                yield from self._parse_line(line, place, number)
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    pass
                place = file.tell()

    def read(self, place: int) -> dict[str, Any]:
        """Return the row at `place` (`Row.place`). Raises BadRow."""
        if self._is_jsonl:
            with self.path.open("rb") as file:
                file.seek(place)
                content = _parse(file.readline(MAX_LINE_BYTES + 1))
        else:
            content = _check_object(self._document[place])
        if isinstance(content, BadRow):
            raise content
        return content

    @staticmethod
    def _parse_line(line: bytes, place: int, number: int) -> Iterator[Row]:
        if len(line) > MAX_LINE_BYTES:
            yield Row(place, number, BadRow(f"a line of more than {MAX_LINE_BYTES:,} bytes"))
        elif line.removeprefix(_BYTE_ORDER_MARK).strip():
            yield Row(place, number, _parse(line))

    @cached_property
    def _is_jsonl(self) -> bool:
        self._check_encoding()
        has_jsonl_name = self.path.suffix == ".jsonl"
        with self.path.open("rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
            non_blank = (line for line in lines if line.removeprefix(_BYTE_ORDER_MARK).strip())
            first, is_only = next(non_blank, b""), next(non_blank, None) is None
        content = _parse(first)
        # The label files of POPE are JSONL with names that end in .json.
        if isinstance(content, dict) and (not is_only or (has_jsonl_name and self._is_row(content))):
            return True
        return has_jsonl_name and not self._is_document

    def _is_row(self, document: Mapping[str, Any]) -> bool:
        return len(self._row_keys & document.keys()) >= 2

    @property
    def _is_document(self) -> bool:
        """Whether the whole file is one JSON value that has rows."""
        try:
            return bool(self._document)
        except (ValueError, RecursionError):
            return False

    @cached_property
    def _document(self) -> list[Any]:
        size = self.path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{self.path} is a JSON document of {size:,} bytes: write it as JSONL, one row a line"
            )
        if not size:
            raise ValueError(f"{self.path} is empty: {_WAY_OUT}")
        try:
            document = _load(self.path.read_bytes())
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is {_describe_encoding(error)}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is neither JSON nor JSONL ({error}): {_WAY_OUT}") from error
        if isinstance(document, list):
            return document
        if isinstance(document, dict):
            for key in ROW_LISTS:
                if isinstance(document.get(key), list):
                    return document[key]
            if self._is_row(document):
                return [document]
            if document and all(isinstance(value, dict) for value in document.values()):
                return [{"question_id": key, **value} for key, value in document.items()]
            lists = [value for value in document.values() if _is_list_of_objects(value)]
            if len(lists) == 1:
                return lists[0]
        raise ValueError(
            f"{self.path} holds no rows, neither a list nor one under {', '.join(ROW_LISTS)}: {_WAY_OUT}"
        )

    def _check_encoding(self) -> None:
        """Raise ValueError for UTF-16 and UTF-32, the "Unicode text" of Windows programs."""
        with self.path.open("rb") as file:
            start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            raise ValueError(f"{self.path} is UTF-16, UTF-32 or binary: save it as UTF-8")


def _load(data: bytes) -> Any:
    # pandas writes a missing value as NaN.
    return json.loads(
        data.decode("utf-8-sig"), parse_constant=lambda name: None if name == "NaN" else float(name)
    )


def _parse(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return _check_object(_load(line))
    except UnicodeDecodeError as error:
        return BadRow(_describe_encoding(error))
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON ({error}): write one object a line")


def _check_object(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow(f"not a JSON object but {type(value).__name__}: write one object a line")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _describe_encoding(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}): save the file as UTF-8"


def list_reasons(skipped: Iterable[Mapping[str, Any]]) -> str:
    """Return the three most frequent reasons of skipped rows, with their counts; empty for none."""
    reasons = Counter(row["reason"] for row in skipped).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons)


def find_field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first value under `names` that is not blank (`is_blank`).

    If all are blank, returns the first that is not null, else None. A name may be a dotted path, as
    `types.structural` or `conversations.0.value`.
    """
    values = [value for _, value in find_fields(row, names)]
    return next((value for value in values if not is_blank(value)), values[0] if values else None)


def find_fields(row: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield each of `names` whose value in the row is not null, with the value."""
    for name in names:
        value: Any = row
        for step in [name] if name in row else name.split("."):
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                value = None
        if value is not None:
            yield name, value


def is_blank(value: Any, depth: int = 2) -> bool:
    """Whether a value is null, nan, white space, or a list or object of only such values.

    Looks at `depth` levels of nested lists and objects; deeper ones count as not blank.
    """
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping | list) and value and not depth:
        return False
    if isinstance(value, Mapping):
        return all(is_blank(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return all(is_blank(item, depth - 1) for item in value)
    return value is None


def read_text(value: Any, name: str, max_chars: int) -> str:
    """Return a text unchanged, or a number as text (`write_number`).

    Raises BadRow for anything else, for text that is too long, and for text that cannot be encoded as UTF-8.
    """
    if isinstance(value, bool):
        shown = "true" if value else "false"
        raise BadRow(f'{name} is {shown} and not a text: write it in quotes, "{shown}" or "yes"/"no"')
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        value = write_number(value, name)
    if not isinstance(value, str):
        raise BadRow(f"no {name}" if value is None else f"{name} is not a text but {type(value).__name__}")
    if len(value) > max_chars:
        raise BadRow(f"{name} has {len(value):,} characters (at most {max_chars:,})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} is not valid Unicode: {error.reason}") from error
    return value


def read_id(value: Any, name: str, max_chars: int) -> str:
    """Return an identifier, text or number, as text. Raises BadRow if it is blank."""
    text = read_text(value, name, max_chars)
    if not text.strip():
        raise BadRow(f"{name} is empty")
    return text


def write_number(value: float, name: str) -> str:
    """Format a finite number as text. Whole floats, as pandas writes integers with gaps, lose their ".0".

    Raises BadRow for integers of some thousand digits, which Python refuses to format.
    """
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    try:
        return str(int(value) if is_whole else value)
    except ValueError as error:
        raise BadRow(f"{name} is a number of too many digits") from error


def describe_value(value: Any) -> str | None:
    """Format a value used only for analysis, with at most `MAX_NAME_CHARS`. None if it is blank.

    Never raises, as a sample must not be lost because of such a field.
    """
    if is_blank(value):
        return None
    try:
        if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            text = ", ".join(str(describe_value(item)) for item in value if not is_blank(item))
        elif isinstance(value, str):
            text = value.strip()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            text = write_number(value, "number")
        else:
            text = json.dumps(value, ensure_ascii=False)
    except (BadRow, RecursionError) as error:
        text = f"not shown ({type(error).__name__})"
    return text.encode("utf-8", "replace").decode()[:MAX_NAME_CHARS]
