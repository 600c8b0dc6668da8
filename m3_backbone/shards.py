"""The files of a label folder: shards and a manifest, checked when read, whole or absent when written."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA_VERSION = 2
METADATA_KEY = b"tokenscale"

_TEXT = ("sample_id", "image_id", "task", "split", "kind", "question")
OUTCOME_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXT),
        ("references", pa.list_(pa.string())),
        ("metric", pa.string()),
        ("attributes", pa.string()),
        ("question_ids", pa.list_(pa.int32())),
        ("answer", pa.list_(pa.string())),
        ("score", pa.list_(pa.float32())),
        ("nll", pa.list_(pa.float32())),
        ("confidence", pa.list_(pa.float32())),
        ("margin", pa.list_(pa.float32())),
        ("visual_tokens", pa.list_(pa.int32())),
        ("prefill_flops", pa.list_(pa.int64())),
    ]
)
FEATURE_SCHEMA = pa.schema([("image_id", pa.string()), ("num_tokens", pa.int32()), ("visual", pa.binary())])


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: after a kill, the old file or the new one.

    The temporary file lies beside `path` under a name that no reader takes for a finished file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # so that the new name, too, survives a power cut
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def dump_header(header: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Parquet metadata that holds `header` and the schema version."""
    return {METADATA_KEY: json.dumps({"schema": SCHEMA_VERSION, **header}, sort_keys=True).encode()}


def parse_header(metadata: Mapping[bytes, bytes] | None, origin: str) -> dict[str, Any]:
    """The reverse of `dump_header`; refuses another schema version."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{origin} was not written by tokenscale: its metadata lacks {METADATA_KEY.decode()!r}"
        )
    header: dict[str, Any] = json.loads(text)
    if header["schema"] != SCHEMA_VERSION:
        raise ValueError(
            f"{origin} has schema version {header['schema']}, this tokenscale reads {SCHEMA_VERSION}: "
            "label again, or read it with the tokenscale that wrote it"
        )
    return header


def write_shard(path: Path, table: pa.Table, header: Mapping[str, Any]) -> None:
    """Write a Parquet shard with `header` in its metadata, atomically."""
    table = table.replace_schema_metadata(dump_header(header))
    write_atomically(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    )


def read_header(path: Path) -> dict[str, Any]:
    """What `write_shard` put into the metadata of a shard; reads only the end of the file."""
    try:
        metadata = pq.read_schema(path).metadata
    except pa.ArrowInvalid as error:
        raise _not_whole(path) from error
    return parse_header(metadata, str(path))


def read_shard(path: Path, schema: pa.Schema) -> pa.Table:
    """A whole shard, its columns checked against `schema`."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_whole(path) from error
    parse_header(table.schema.metadata, str(path))
    check_columns(table, schema, str(path))
    return table


def _not_whole(path: Path) -> ValueError:
    return ValueError(
        f"{path} is not a whole Parquet file: delete it and run the same label command again, "
        "which makes only what is missing"
    )


def check_columns(table: pa.Table, schema: pa.Schema, origin: str) -> None:
    """Refuse columns that are missing, unexpected, of another type, or that hold nulls."""
    wanted = {column.name: column.type for column in schema}
    found = {column.name: column.type for column in table.schema}
    problems = [f"missing column {name!r}" for name in wanted if name not in found]
    problems += [f"unexpected column {name!r}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if found[name] != wanted[name]:
            problems.append(f"column {name!r} is {found[name]}, not {wanted[name]}")
        elif table[name].null_count:
            problems.append(f"column {name!r} holds nulls")
    if problems:
        raise ValueError(f"{origin}: {'; '.join(sorted(problems))}")


def to_matrix(table: pa.Table, name: str, width: int, origin: str) -> np.ndarray:
    """A list column as an array [num_rows, width]; every list has to be that long."""
    lengths = pc.list_value_length(table[name]).to_numpy()
    for row in np.flatnonzero(lengths != width)[:1]:
        raise ValueError(
            f"{origin}: {name!r} of sample {table['sample_id'][row].as_py()!r} has {lengths[row]} values, "
            f"the ladder has {width} scales"
        )
    values = pc.list_flatten(table[name])
    if values.null_count:
        raise ValueError(f"{origin}: column {name!r} holds nulls")
    matrix: np.ndarray = values.to_numpy().reshape(len(table), width)
    return matrix


def to_list_column(matrix: np.ndarray, list_type: pa.ListType) -> pa.ListArray:
    """An array [num_rows, width] as a list column of that type."""
    num_rows, width = matrix.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1), type=list_type.value_type)
    return pa.ListArray.from_arrays(offsets, values)


def to_feature_table(visual: Mapping[str, np.ndarray]) -> pa.Table:
    """Coarse visual tokens (image id -> float16 [num_tokens, hidden]) as a table of `FEATURE_SCHEMA`."""
    columns = {
        "image_id": list(visual),
        "num_tokens": [len(tokens) for tokens in visual.values()],
        "visual": [np.ascontiguousarray(tokens, dtype="<f2").tobytes() for tokens in visual.values()],
    }
    return pa.Table.from_pydict(columns, schema=FEATURE_SCHEMA)


def read_features(path: Path) -> dict[str, np.ndarray]:
    """Image id -> float16 [num_tokens, hidden], as `to_feature_table` stored them."""
    table = read_shard(path, FEATURE_SCHEMA)
    rows = zip(*(table[name].to_pylist() for name in FEATURE_SCHEMA.names), strict=True)
    return {image_id: np.frombuffer(data, dtype="<f2").reshape(num, -1) for image_id, num, data in rows}


def find_shards(folder: Path, room: str, split: str) -> list[Path]:
    """The shards `<room>/<split>-00000.parquet`, ... of a label folder, in order."""
    return sorted((folder / room).glob(f"{split}-*.parquet"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a label folder; a folder without one, or with another tool's, is refused."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"no labels in {folder}: make them with `python -m experiments.label`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a manifest of labels: delete it, or label into another folder"
        ) from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this tokenscale reads {SCHEMA_VERSION}: label again"
        )
    return manifest
