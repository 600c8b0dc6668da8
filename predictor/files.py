"""Reading and writing of the files of a saved predictor: JSON and safetensors, within limits, no pickle.

A folder may come from a stranger. A file is read only if it is a regular file in its folder and not larger
than a limit. JSON is limited in depth and in number of values, and the header of a safetensors file is
checked before any array is allocated. Every fault raises a `FolderError` of one line that names the file.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m3_backbone.outcomes.shards import write_atomically, write_text
from m3_backbone.reading import POINTER_REASON, check_no_pointer

# The vocabulary of a text model on a large data set takes a few megabytes, and no file is deeply nested.
MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 2_000_000
MAX_HEADER_BYTES = 4 * 2**20
MAX_ARRAY_BYTES = 4 * 2**30
_MAX_DIMENSIONS = 8
_ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}


class FolderError(ValueError):
    """Error about a file of a saved predictor or a published model; the message names the file."""


def damaged(path: Path | str, reason: object) -> FolderError:
    """Return the error for a file that differs from the file that was written."""
    return FolderError(
        f"{path} is damaged ({shorten(reason)}): run the train command again, or fetch the folder again"
    )


def shorten(text: object, length: int = 300) -> str:
    """Return one line of at most `length` printable characters."""
    line = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= length else f"{line[: length - 3]}..."


def check_file(path: Path, max_bytes: int, root: Path | None = None) -> int:
    """Return the size in bytes of a regular file of 1 to `max_bytes` bytes in `root` (see `check_place`)."""
    target = check_place(path, root or path.parent)
    try:
        size, is_regular = target.stat().st_size, target.is_file()
    except OSError as error:
        raise damaged(path, error.strerror or error) from error
    if not is_regular:
        raise damaged(path, "not a regular file")
    if not size:
        raise damaged(path, "the file is empty")
    try:
        check_no_pointer(target)
    except ValueError as error:
        raise FolderError(f"{path} is {POINTER_REASON}") from error
    if size > max_bytes:
        raise damaged(path, f"{size:,} bytes, more than the limit of {max_bytes:,}")
    return size


def check_place(path: Path, root: Path) -> Path:
    """Return the target of `path` with links resolved. Raises FolderError if it is outside of `root`.

    Links of a snapshot in the Hugging Face cache to its blobs, which are outside of it, are allowed.
    """
    try:
        target, root = path.resolve(strict=True), root.resolve(strict=True)
    except FileNotFoundError as error:
        raise damaged(path, "the file is missing") from error
    except (OSError, RuntimeError, ValueError) as error:  # no permission, or circular links
        raise damaged(path, getattr(error, "strerror", None) or error) from error
    allowed = [root, *(snapshot.parents[1] / "blobs" for snapshot in _find_snapshots(root))]
    if not any(target.is_relative_to(parent) for parent in allowed):
        raise damaged(path, "a link that leads out of the folder")
    return target


def _find_snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a Hugging Face cache, `models--*/snapshots/*`, that contain or are a folder."""
    return [
        path
        for path in (folder, *folder.parents)
        if len(path.parents) > 1
        and path.parent.name == "snapshots"
        and path.parents[1].name.startswith("models--")
    ]


def digest_file(path: Path, root: Path | None = None) -> str:
    """Return the SHA-256 of a file within the limits of `read_arrays`. Raises FolderError for other files."""
    check_file(path, MAX_ARRAY_BYTES, root)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, error.strerror or error) from error


def read_json(path: Path, root: Path | None = None) -> Any:
    """Return the content of a UTF-8 JSON file within the limits above. Raises FolderError for other files."""
    check_file(path, MAX_JSON_BYTES, root)
    try:
        with path.open("rb") as file:
            return parse_json(file.read(MAX_JSON_BYTES + 1))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"invalid JSON: {error}") from error
    except OSError as error:
        raise damaged(path, error.strerror or error) from error


def parse_json(text: bytes) -> Any:
    """Parse JSON of limited depth and number of values without repeated keys. Raises ValueError otherwise."""
    content = json.loads(text.decode("utf-8"), object_pairs_hook=_to_object)
    values, num_values = [content], 0  # the values at one depth
    for _ in range(MAX_JSON_DEPTH):
        num_values += len(values)
        if num_values > MAX_JSON_VALUES:
            raise ValueError(f"more than {MAX_JSON_VALUES:,} values")
        nested = [value for value in values if isinstance(value, dict | list)]
        if not nested:
            return content
        values = [item for value in nested for item in (value.values() if isinstance(value, dict) else value)]
    raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is repeated")
    return content


def check_keys(
    path: Path, content: Any, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return `content`; FolderError unless it is an object with all `required` keys and no unknown ones."""
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    missing, unknown = required - content.keys(), content.keys() - required - optional
    if missing:
        raise damaged(path, f"the key {min(missing)!r} is missing")
    if unknown:
        raise damaged(path, f"unknown key {min(unknown)!r}")
    return content


def read_arrays(path: Path, root: Path | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file. Its header is checked before anything is allocated.

    Raises FolderError for a damaged file and for arrays with nan.
    """
    size = check_file(path, MAX_ARRAY_BYTES, root)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            _check_header(parse_json(file.read(length)), size - 8 - length)
        arrays: dict[str, np.ndarray] = load_file(path)
    except OSError as error:
        raise damaged(path, error.strerror or error) from error
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError, SafetensorError) as error:
        raise damaged(path, error) from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise damaged(path, f"the array {name!r} contains nan")
    return arrays


def _check_header(header: Any, num_bytes: int) -> None:
    """Raise ValueError unless the arrays of a safetensors header fill `num_bytes` exactly."""
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    ends = [(0, 0)]
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the header entry of {name!r} does not describe an array")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _ITEM_SIZES:
            raise ValueError(f"array {name!r} has the unknown dtype {entry['dtype']!r}")
        if not _is_list_of_counts(shape) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"array {name!r} has no valid shape")
        if not _is_list_of_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"array {name!r} has no valid offsets")
        if offsets[1] - offsets[0] != math.prod(shape) * _ITEM_SIZES[entry["dtype"]]:
            raise ValueError(f"array {name!r} of shape {shape} does not fit its offsets")
        ends.append((offsets[0], offsets[1]))
    ends.sort()
    if any(end != start for (_, end), (start, _) in itertools.pairwise(ends)):
        raise ValueError("arrays overlap, or there are bytes between them")
    if ends[-1][1] != num_bytes:
        raise ValueError(f"{num_bytes:,} bytes of arrays, but {ends[-1][1]:,} in the header")


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def get_array(
    arrays: Mapping[str, np.ndarray], name: str, *shape: int | None, kinds: str = "f"
) -> np.ndarray:
    """Return `arrays[name]`; ValueError unless its shape (None: any length) and dtype are these."""
    if name not in arrays:
        raise ValueError(f"the array {name!r} is missing")
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        expected in (None, length) for expected, length in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        expected_shape = ["any" if length is None else length for length in shape]
        raise ValueError(f"the array {name!r} is {array.dtype}{list(array.shape)}, not {expected_shape}")
    return array


def select_arrays(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def add_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays with `prefix` before each name (inverse of `select_arrays`)."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def check_texts(name: str, texts: Any) -> list[str]:
    """Return `texts`. Raises ValueError unless they are a list of distinct texts."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} are not a list of texts")
    if len(set(texts)) < len(texts):
        raise ValueError(f"one of the {name} is repeated")
    return texts


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raises ValueError for a file larger than the limit of `read_json`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if len(text.encode("utf-8", "surrogatepass")) > MAX_JSON_BYTES:
        raise ValueError(
            f"{path.name} would have more than {MAX_JSON_BYTES:,} bytes: keep fewer words or a smaller state"
        )
    write_text(path, text)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write safetensors atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary))
