"""Lookup of the fields of a row, and conversion of their values to text."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.tasks.rows import BadRow

MAX_NAME_CHARS = 1000  # of an id or a path


def find_field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first value under `names` that is not blank (`is_blank`).

    If none does, the first that is not null, else None. A name may be a path, `types.structural` or
    `conversations.0.value`.
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

    Looks `depth` lists or objects deep: a row may hold any number of them, one in the other.
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

    Raises BadRow for anything else, and for text too long or that cannot be written as UTF-8.
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

    Raises BadRow for integers of some thousand digits, which Python does not write.
    """
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    try:
        return str(int(value) if is_whole else value)
    except ValueError as error:
        raise BadRow(f"{name} is a number of too many digits") from error


def describe_value(value: Any) -> str | None:
    """Format a value used only for analysis, with at most `MAX_NAME_CHARS`. None if it is blank.

    Never raises: such a field costs no sample.
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
