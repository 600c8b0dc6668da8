"""Fields of a row: paths to them, and what they hold.

Resolution of paths from question files and the command line, with suggestions for missing files.

Lookup of the fields of a row, and conversion of their values to text.
"""

import difflib
import functools
import json
import math
import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tasks.rows import BadRow

# Where conf/task looks for the files of benchmarks.
DATA_VARIABLE = "TOKENSCALE_DATA"


def find_written_form(folder: Path, name: str) -> str:
    """Return the name in the Unicode form and with the separators that exist in `folder`.

    macOS writes accents as characters of their own (NFD), others as one with the letter (NFC), and Windows
    separates folders by backslashes. One image must have one name, or it could come to lie in two splits.
    """
    if (name.isascii() and "\\" not in name) or _is_file(folder, name):
        return name
    slashed = posixpath.normpath(name.replace("\\", "/"))
    forms = [unicodedata.normalize(form, path) for path in (name, slashed) for form in ("NFC", "NFD")]
    return next((form for form in [slashed, *forms] if _is_file(folder, form)), name)


def find_similar(folder: Path, name: str) -> str | None:
    """Suggest an existing image for a missing name. None if the name exists or nothing is similar.

    That name without white space around it, percent-encoding or leading folders, in another case, or with
    another file extension.
    """
    if _is_file(folder, name):
        return None
    plain = urllib.parse.unquote(name).strip().replace("\\", "/")
    parts = [part for part in plain.split("/") if part]
    shorter = ["/".join(parts[start:]) for start in range(len(parts))]
    for path in [plain, *shorter]:
        if path and _is_file(folder, path):
            return path
    parent, _, last = plain.rpartition("/")
    for wanted in (last.lower(), posixpath.splitext(last)[0].lower()):
        if wanted and _is_inside(parent) and (there := _list_folder(folder / parent).get(wanted)):
            return posixpath.join(parent, there)
    return None


def check_present(
    task: str, files: Mapping[str, Sequence[str | Path]], folders: Mapping[str, str | Path]
) -> None:
    """Raise an OSError that names all missing files and folders of a task.

    They are given by the option that names them. The error says what is called similarly beside each, and
    where the files of benchmarks are looked for.
    """
    paths = [(option, Path(path)) for option, given in files.items() for path in given]
    absent_files = [(option, path) for option, path in paths if not path.is_file()]
    absent_folders = [(option, Path(path)) for option, path in folders.items() if not Path(path).is_dir()]
    missing = absent_files + absent_folders
    if not missing:
        return
    listed = "; ".join(
        [f"no file {path}{_suggest(path)}" for _, path in absent_files]
        + [f"no image folder {path}{_suggest(path)}" for _, path in absent_folders]
    )
    options = " and ".join(dict.fromkeys(f"{option}=..." for option, _ in missing))
    root = Path(os.environ.get(DATA_VARIABLE, "data"))
    if any(path.is_relative_to(root) for _, path in missing):
        options = f"the environment variable {DATA_VARIABLE} (now {root}), or {options}"
    error = FileNotFoundError if absent_files else NotADirectoryError
    raise error(f"task {task}: {listed}; give the right paths with {options}")


def _suggest(path: Path) -> str:
    """Suggest the path most similar to a missing one, as a parenthesis to append to it."""
    absent = path
    while absent.parent != absent and not absent.parent.is_dir():
        absent = absent.parent
    similar = difflib.get_close_matches(absent.name, _read_names(absent.parent), n=1)
    return f" (there is {absent.with_name(similar[0])})" if similar else ""


def _is_file(folder: Path, name: str) -> bool:
    try:
        return _is_inside(name) and (folder / name).is_file()
    except (OSError, ValueError):  # too long, a null byte
        return False


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


@functools.lru_cache(maxsize=8)
def _list_folder(folder: Path) -> dict[str, str]:
    """Map lower-case names, with and without extension, to the names in a folder."""
    by_name: dict[str, str] = {}
    for name in _read_names(folder):
        by_name.setdefault(name.lower(), name)
        by_name.setdefault(posixpath.splitext(name)[0].lower(), name)
    return by_name


def _read_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        return []


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
