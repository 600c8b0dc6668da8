"""Rows of JSONL and JSON files, read so that no bad row ends a run and no long line fills the memory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from m3_backbone.reading import check_no_pointer

MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 29
MAX_NAME_CHARS = 1000  # of an id or a path
# The keys under which VQA, TextVQA, DocVQA and SEED-Bench keep their rows in a JSON document.
ROW_LISTS = ("data", "questions", "annotations")


class BadRow(ValueError):
    """A row that cannot be used. The message is the reason."""


@dataclass(frozen=True)
class Row:
    """A row, or what is wrong with it; `place` finds it again, `number` (from 1) is for people."""

    place: int
    number: int
    content: dict[str, Any] | BadRow


class RowFile:
    """The JSON objects of a file, one after the other or by place.

    A `.jsonl` file holds one object a line and is read line by line. Any other file is a JSON document of at
    most `MAX_DOCUMENT_BYTES`: a list of objects, an object with such a list under one of `ROW_LISTS`, or an
    object of objects, whose keys then count as `question_id`; or it is JSONL after all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}")
        check_no_pointer(self.path)

    @property
    def unit(self) -> str:
        """What `Row.number` counts: "line" or "row"."""
        return "line" if self._is_jsonl else "row"

    def __iter__(self) -> Iterator[Row]:
        if not self._is_jsonl:
            for place, value in enumerate(self._document):
                yield Row(place, place + 1, _checked(value))
            return
        with self.path.open("rb") as file:
            place = file.tell()
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                yield from self._parse_line(line, place, number)
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    pass
                place = file.tell()

    def read(self, place: int) -> dict[str, Any]:
        """The row at a place that iteration gave."""
        if self._is_jsonl:
            with self.path.open("rb") as file:
                file.seek(place)
                content = _parse(file.readline(MAX_LINE_BYTES + 1))
        else:
            content = _checked(self._document[place])
        if isinstance(content, BadRow):
            raise content
        return content

    @staticmethod
    def _parse_line(line: bytes, place: int, number: int) -> Iterator[Row]:
        if len(line) > MAX_LINE_BYTES:
            yield Row(place, number, BadRow(f"a line of more than {MAX_LINE_BYTES:,} bytes"))
        elif line.strip():
            yield Row(place, number, _parse(line))

    @cached_property
    def _is_jsonl(self) -> bool:
        if self.path.suffix == ".jsonl":
            return True
        with self.path.open("rb") as file:  # POPE's label files are JSONL under the name of .json
            first = file.readline(MAX_LINE_BYTES)
            return isinstance(_parse(first), dict) and bool(file.readline(MAX_LINE_BYTES).strip())

    @cached_property
    def _document(self) -> list[Any]:
        size = self.path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{self.path} is a JSON document of {size:,} bytes: write it as JSONL, one row a line"
            )
        try:
            document = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is neither JSON nor JSONL: {error}") from error
        if isinstance(document, list):
            return document
        if isinstance(document, dict):
            for key in ROW_LISTS:
                if isinstance(document.get(key), list):
                    return document[key]
            if document and all(isinstance(value, dict) for value in document.values()):
                return [{"question_id": key, **value} for key, value in document.items()]
        raise ValueError(f"{self.path} holds no rows: neither a list, nor one under {', '.join(ROW_LISTS)}")


def _parse(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return _checked(json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {error}")


def _checked(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow(f"not a JSON object but {type(value).__name__}")


def find_field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under the first of `names` that is there and not null, else None.

    A name may be a path, `types.structural` or `conversations.0.value`.
    """
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
            return value
    return None


def read_text(value: Any, name: str, max_chars: int) -> str:
    """A text of the row, as it is. Raises BadRow if it is none, too long, or cannot be written as UTF-8."""
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
    """An identifier, text or whole number, as text. Raises BadRow."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = read_text(value, name, max_chars)
    if not text.strip():
        raise BadRow(f"{name} is empty")
    return text
