"""Readers and writers of the shards of a label folder. Writes are atomic, and reads are checked."""

import functools
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
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

SCHEMA_VERSION = 4
MIGRATED_VERSION = 3  # labels of this version can be migrated (`experiments.labels.migration`)
FEATURE_VERSION = 3  # version of the feature shards
METADATA_KEY = b"tokenscale"

_TEXT = ("sample_id", "image_id", "task", "kind", "question")
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
        ("entropy", pa.list_(pa.float32())),
    ]
)
# Columns that a table may lack.
OPTIONAL_COLUMNS = ("vision_flops", "entropy")
# Columns that a table of imported outcomes may lack too.
MEASURED_COLUMNS = ("nll", "reference_tokens", "margin", "prefill_flops")
# Columns that a table has besides if labelling was asked for the states of the decoder.
STATE_SCHEMA = pa.schema([("decoder_state", pa.list_(pa.float16())), ("first_probability", pa.float32())])
# Columns that a table has besides if the model was asked whether it can answer.
ASKING_SCHEMA = pa.schema([("yes_log_odds", pa.float32()), ("asking_flops", pa.int64())])
# Column that a table of features has besides if labelling was asked for thumbnails: bytes of [side, side, 3].
THUMBNAIL_SCHEMA = pa.schema([("thumbnail", pa.binary())])
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
    """Write a file atomically: `write` fills a temporary file, which then replaces `path`.

    After an interruption, `path` is the old file or the new one. The temporary file is in the same folder,
    and readers ignore its name. The file gets the mode of the umask even if `write` makes private files (as
    safetensors does). Raises OSError that names `path`.
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
            # The original error names no file or the temporary one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # so that the new directory entry survives a power cut too
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically as UTF-8 with Unix line ends."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def dump_header(header: Mapping[str, Any], version: int = SCHEMA_VERSION) -> dict[bytes, bytes]:
    """Return Parquet metadata that contain `header` and the schema version."""
    return {METADATA_KEY: json.dumps({"schema": version, **header}, sort_keys=True).encode()}


def parse_header(
    metadata: Mapping[bytes, bytes] | None, origin: str, version: int = SCHEMA_VERSION
) -> dict[str, Any]:
    """Return the header in Parquet metadata (inverse of `dump_header`).

    Raises ValueError that names `origin` for missing or damaged metadata and for another schema version.
    """
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{origin} was not written by tokenscale: its metadata lacks {METADATA_KEY.decode()!r}"
        )
    try:
        header: dict[str, Any] = json.loads(text)
        file_version = header["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{origin}: its metadata {METADATA_KEY.decode()!r} are damaged") from error
    if file_version != version:
        raise ValueError(
            f"{origin} has schema version {file_version}, this tokenscale reads {version}: "
            f"{name_way_out(file_version, version)}"
        )
    return header


def name_way_out(file_version: Any, version: int = SCHEMA_VERSION) -> str:
    """Return advice for labels of schema version `file_version` where `version` is expected."""
    if isinstance(file_version, int) and file_version < version:
        if version != SCHEMA_VERSION or file_version != MIGRATED_VERSION:
            return "label again with overwrite=true, or read it with the tokenscale that wrote it"
        return (
            "run `tokenscale label` with the settings that made these labels, which migrates them "
            "without answering anything again"
        )
    return "read it with the tokenscale that wrote it, or label into another folder with paths.labels=FOLDER"


def write_shard(path: Path, table: pa.Table, header: Mapping[str, Any]) -> None:
    """Write a Parquet shard atomically, with `header` in its metadata."""
    table = table.replace_schema_metadata(dump_header(header, version_of(table.schema)))
    write_atomically(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    )


def version_of(schema: pa.Schema) -> int:
    """Return the schema version of outcome shards or of feature shards, recognised by their columns."""
    return FEATURE_VERSION if "visual" in schema.names else SCHEMA_VERSION


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a shard. Only the end of the file is read."""
    with naming(path):
        schema = pq.read_schema(path)
    return parse_header(schema.metadata, str(path), version_of(schema))


def read_shard(path: Path, schema: pa.Schema, digest: str | None = None) -> pa.Table:
    """Read a shard. Raises ValueError if its columns do not fit `schema` or its SHA-256 is not `digest`."""
    content = read_content(path, digest)
    with naming(path):
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    header = parse_header(table.schema.metadata, str(path), version_of(schema))
    check_columns(table, schema, str(path), list_optional(header))
    return table


def list_optional(header: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that a table with this header may lack."""
    return (*OPTIONAL_COLUMNS, *MEASURED_COLUMNS) if "options" in header else OPTIONAL_COLUMNS


def read_content(path: Path, digest: str | None = None) -> bytes:
    """Return the bytes of a label file. Raises ValueError if their SHA-256 is not `digest`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(_describe_absence(path)) from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(_describe_damage(path))
    return content


def check_content(path: Path, digest: str) -> None:
    """Raise the errors of `read_content` without keeping the content in memory."""
    try:
        is_whole = digest_file(path) == digest
    except FileNotFoundError as error:
        raise FileNotFoundError(_describe_absence(path)) from error
    if not is_whole:
        raise ValueError(_describe_damage(path))


def _describe_absence(path: Path) -> str:
    return f"{path} is missing: run the same label command again, which makes only what is missing"


def _describe_damage(path: Path) -> str:
    """Return an error message for a file whose digest is not that in the manifest."""
    return (
        f"{path} does not have the digest that the manifest gives it: run the same label command again, "
        "which makes only what is missing or damaged"
    )


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, cached in this process until the file changes."""
    status = path.stat()
    return _digest_file(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=100_000)
def _digest_file(path: Path, modified: int, size: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, digest: str) -> bool:
    """Return whether a file exists and has this SHA-256."""
    try:
        return digest_file(path) == digest
    except FileNotFoundError:
        return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow and safetensors about a label file into ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, SafetensorError, OSError) as error:
        check_no_pointer(path)
        file_format = "Parquet" if path.suffix == ".parquet" else "safetensors"
        raise ValueError(
            f"{path} is not a whole {file_format} file: delete it and run the same label command again, "
            "which makes only what is missing"
        ) from error


def check_columns(table: pa.Table, schema: pa.Schema, origin: str, optional: Container[str] = ()) -> None:
    """Raise ValueError for missing (unless optional) or unexpected columns, other types, and nulls."""
    expected = {column.name: column.type for column in schema}
    of_outcomes = schema.equals(OUTCOME_SCHEMA)
    optional_schema = (*STATE_SCHEMA, *ASKING_SCHEMA) if of_outcomes else tuple(THUMBNAIL_SCHEMA)
    further = {column.name: column.type for column in optional_schema}
    actual = {column.name: column.type for column in table.schema}
    problems = [
        f"missing column {name!r}" for name in expected if name not in actual and name not in optional
    ]
    expected |= further
    problems += [f"unexpected column {name!r}" for name in actual if name not in expected]
    for name in expected.keys() & actual.keys():
        if actual[name] != expected[name]:
            problems.append(f"column {name!r} is {actual[name]}, not {expected[name]}")
        elif table[name].null_count:
            problems.append(f"column {name!r} holds nulls")
    if problems:
        raise ValueError(f"{origin}: {'; '.join(sorted(problems))}")


def to_matrix(table: pa.Table, name: str, width: int, origin: str, other: str = "the ladder") -> np.ndarray:
    """Return a list column as an array [num_rows, width]. Raises ValueError if a list has another length."""
    lengths = pc.list_value_length(table[name]).to_numpy()
    for row in np.flatnonzero(lengths != width)[:1]:
        raise ValueError(
            f"{origin}: {name!r} of sample {table['sample_id'][row].as_py()!r} has {lengths[row]} values, "
            + (f"the ladder has {width} scales" if other == "the ladder" else f"{other} has {width}")
        )
    values = pc.list_flatten(table[name])
    if values.null_count:
        raise ValueError(f"{origin}: column {name!r} holds nulls")
    matrix: np.ndarray = values.to_numpy().reshape(len(table), width)
    return matrix


def to_list_column(matrix: np.ndarray, list_type: pa.ListType) -> pa.ListArray:
    """Return an array [num_rows, width] as a list column of type `list_type`."""
    num_rows, width = matrix.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1), type=list_type.value_type)
    return pa.ListArray.from_arrays(offsets, values)


def to_feature_table(images: Mapping[str, ImageFeatures]) -> pa.Table:
    """Return a table of `FEATURE_SCHEMA` from image id -> features, with thumbnails if all have one."""
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
    schema = FEATURE_SCHEMA
    thumbnails = [image.thumbnail.tobytes() for image in images.values() if image.thumbnail is not None]
    if thumbnails and len(thumbnails) == len(images):
        columns["thumbnail"] = thumbnails
        schema = pa.schema([*FEATURE_SCHEMA, *THUMBNAIL_SCHEMA])
    return pa.Table.from_pydict(columns, schema=schema)


def read_features(
    path: Path, digest: str | None = None, image_ids: Container[str] | None = None
) -> dict[str, ImageFeatures]:
    """Read image id -> features from a shard (see `to_feature_table`), optionally only of `image_ids`.

    Raises ValueError that names file and image for features that are not finite or whose tokens are
    truncated.
    """
    table = read_shard(path, FEATURE_SCHEMA, digest)
    if image_ids is not None:
        table = table.filter(
            pa.array([name in image_ids for name in table["image_id"].to_pylist()], type=pa.bool_())
        )
    has_thumbnails = "thumbnail" in table.schema.names
    thumbnails = table["thumbnail"].to_pylist() if has_thumbnails else [None] * len(table)
    rows = zip(*(table[name].to_pylist() for name in FEATURE_SCHEMA.names), thumbnails, strict=True)
    features: dict[str, ImageFeatures] = {}
    for image_id, hidden_size, visual, statistics, thumbnail in rows:
        if any(hidden_size < 1 or len(data) % (2 * hidden_size) for _, data in visual):
            raise ValueError(f"{path}: the visual tokens of image {image_id!r} are cut short: label again")
        tokens = {scale: np.frombuffer(data, dtype="<f2").reshape(-1, hidden_size) for scale, data in visual}
        pixels = None if thumbnail is None else _to_pixels(thumbnail, f"{path}: image {image_id!r}")
        features[image_id] = ImageFeatures(tokens, dict(statistics), pixels)
        if not features[image_id].is_finite():
            raise ValueError(f"{path}: a feature of image {image_id!r} is not a finite number: label again")
    return features


def _to_pixels(content: bytes, origin: str) -> np.ndarray:
    """Return a thumbnail uint8 `[side, side, 3]`. Raises ValueError if the bytes are no square."""
    side = math.isqrt(len(content) // 3)
    if not side or 3 * side * side != len(content):
        raise ValueError(f"{origin} has a thumbnail of {len(content)} bytes, which is no square: label again")
    return np.frombuffer(content, dtype=np.uint8).reshape(side, side, 3)
