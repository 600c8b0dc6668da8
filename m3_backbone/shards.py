"""The files of a label folder: shards and a manifest, checked when read, whole or absent when written."""

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError

from m3_backbone.features import ImageFeatures
from m3_backbone.reading import check_no_pointer

SCHEMA_VERSION = 3
FEATURE_VERSION = 3  # of the shards of features alone
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
        ("reference_tokens", pa.list_(pa.int32())),
        ("confidence", pa.list_(pa.float32())),
        ("margin", pa.list_(pa.float32())),
        ("visual_tokens", pa.list_(pa.int32())),
        ("prefill_flops", pa.list_(pa.int64())),
        ("vision_flops", pa.list_(pa.int64())),
    ]
)
# Columns that shards of an earlier version lack; running the label command again adds them.
OPTIONAL_COLUMNS = ("vision_flops",)
FEATURE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("hidden_size", pa.int32()),
        (
            "visual",
            pa.map_(pa.int32(), pa.binary()),
        ),  # scale -> float16 [num_tokens, hidden_size], rows first
        ("statistics", pa.map_(pa.string(), pa.float32())),
    ]
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: after a kill, the old file or the new one.

    The temporary file lies beside `path` under a name that no reader takes for a finished file. The mode is
    that of any new file here, as the umask has it, even if `write` makes private files (as safetensors does).
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror:
            # A failed write names no file, or the temporary one, which says nothing to a person.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # so that the new name, too, survives a power cut
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 with Unix line ends, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def dump_header(header: Mapping[str, Any], version: int = SCHEMA_VERSION) -> dict[bytes, bytes]:
    """Parquet metadata that holds `header` and the version of the schema."""
    return {METADATA_KEY: json.dumps({"schema": version, **header}, sort_keys=True).encode()}


def parse_header(
    metadata: Mapping[bytes, bytes] | None, origin: str, version: int = SCHEMA_VERSION
) -> dict[str, Any]:
    """The reverse of `dump_header`; refuses another version of the schema."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{origin} was not written by tokenscale: its metadata lacks {METADATA_KEY.decode()!r}"
        )
    header: dict[str, Any] = json.loads(text)
    if header["schema"] != version:
        raise ValueError(
            f"{origin} has schema version {header['schema']}, this tokenscale reads {version}: "
            "label again with overwrite=true, or read it with the tokenscale that wrote it"
        )
    return header


def write_shard(path: Path, table: pa.Table, header: Mapping[str, Any]) -> None:
    """Write a Parquet shard with `header` in its metadata, atomically."""
    table = table.replace_schema_metadata(dump_header(header, version_of(table.schema)))
    write_atomically(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    )


def version_of(schema: pa.Schema) -> int:
    """The version of shards of outcomes or of features, told apart by their columns."""
    return FEATURE_VERSION if "visual" in schema.names else SCHEMA_VERSION


def read_header(path: Path) -> dict[str, Any]:
    """What `write_shard` put into the metadata of a shard; reads only the end of the file."""
    with naming(path):
        schema = pq.read_schema(path)
    return parse_header(schema.metadata, str(path), version_of(schema))


def read_shard(path: Path, schema: pa.Schema) -> pa.Table:
    """A whole shard, its columns checked against `schema`."""
    with naming(path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    parse_header(table.schema.metadata, str(path), version_of(schema))
    check_columns(table, schema, str(path))
    return table


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file of labels that is read: what pyarrow and safetensors say of a damaged one does not."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, SafetensorError, OSError) as error:
        check_no_pointer(path)
        kind = "Parquet" if path.suffix == ".parquet" else "safetensors"
        raise ValueError(
            f"{path} is not a whole {kind} file: delete it and run the same label command again, "
            "which makes only what is missing"
        ) from error


def check_columns(table: pa.Table, schema: pa.Schema, origin: str) -> None:
    """Refuse columns that are missing and not optional, unexpected, of another type, or that hold nulls."""
    wanted = {column.name: column.type for column in schema}
    found = {column.name: column.type for column in table.schema}
    problems = [
        f"missing column {name!r}" for name in wanted if name not in found and name not in OPTIONAL_COLUMNS
    ]
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


def to_feature_table(images: Mapping[str, ImageFeatures]) -> pa.Table:
    """Image id -> features, as a table of `FEATURE_SCHEMA`."""
    columns: dict[str, list[Any]] = {
        "image_id": list(images),
        "hidden_size": [],
        "visual": [],
        "statistics": [],
    }
    for image in images.values():
        columns["hidden_size"].append(max((t.shape[1] for t in image.visual.values()), default=0))
        tokens = {s: np.ascontiguousarray(t, dtype="<f2").tobytes() for s, t in image.visual.items()}
        columns["visual"].append(list(tokens.items()))
        columns["statistics"].append(list(image.statistics.items()))
    return pa.Table.from_pydict(columns, schema=FEATURE_SCHEMA)


def read_features(path: Path) -> dict[str, ImageFeatures]:
    """Image id -> features, as `to_feature_table` stored them."""
    table = read_shard(path, FEATURE_SCHEMA)
    rows = zip(*(table[name].to_pylist() for name in FEATURE_SCHEMA.names), strict=True)
    return {
        image_id: ImageFeatures(
            {scale: np.frombuffer(data, dtype="<f2").reshape(-1, hidden) for scale, data in visual},
            dict(statistics),
        )
        for image_id, hidden, visual, statistics in rows
    }


def find_shards(folder: Path, room: str, split: str) -> list[Path]:
    """The shards `<room>/<split>-00000.parquet`, ... of a label folder, in order."""
    return sorted((folder / room).glob(f"{split}-*.parquet"))


def list_images(folder: Path, split: str) -> list[str]:
    """The distinct image ids of one split of a label folder, in order; outcomes are not read."""
    names: dict[str, None] = {}
    for path in find_shards(folder, "outcomes", split):
        with naming(path):
            column = pq.read_table(path, columns=["image_id"])["image_id"]
        names.update(dict.fromkeys(column.to_pylist()))
    return list(names)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a label folder; a folder without one, or with another tool's, is refused."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no labels in {folder}: make them with `python -m experiments.label` of that task"
        )
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
