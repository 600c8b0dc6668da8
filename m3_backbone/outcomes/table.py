"""The outcome table: answers, scores and costs of a frozen backbone for every sample at every scale."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from m3_backbone.ladder import Family
from m3_backbone.outcomes.manifest import MANIFEST, find_shard, read_images, read_manifest
from m3_backbone.outcomes.options import Options
from m3_backbone.outcomes.shards import (
    ASKING_SCHEMA,
    MEASURED_COLUMNS,
    OUTCOME_SCHEMA,
    SCHEMA_VERSION,
    STATE_SCHEMA,
    check_columns,
    dump_header,
    list_optional,
    parse_header,
    read_shard,
    to_list_column,
    to_matrix,
)

__all__ = ["SCHEMA_VERSION", "HeldOutAccess", "OutcomeTable", "Rows", "check_fingerprints"]

# Attribute of samples whose images are not independent, such as parts of one video: a name that they share.
CLUSTER = "cluster"
_TEXT_COLUMNS = ("sample_id", "image_id", "task", "kind", "question", "metric")
_OUTCOME_COLUMNS = (
    "score",
    "nll",
    "reference_tokens",
    "confidence",
    "margin",
    "visual_tokens",
    "prefill_flops",
    "vision_flops",
    "entropy",
)

# Only recorded evaluations may read this split.
HELD_OUT = "test"
Rows = npt.NDArray[np.bool_] | npt.NDArray[np.integer[Any]] | Sequence[int] | slice


def find_cluster(image_id: str, attributes: Mapping[str, Any]) -> str:
    """Return the cluster of a sample: its attribute `CLUSTER`, or its image if it has none."""
    cluster = attributes.get(CLUSTER)
    return image_id if cluster is None else str(cluster)


@dataclass(frozen=True)
class HeldOutAccess:
    """Permission to read the test split of one label folder.

    Only `experiments.labels.held_out` creates it, after it has recorded the evaluation as `record`;
    a test checks that no other code does.
    """

    folder: Path
    record: str


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """Outcomes of n samples over S scales, one row per sample.

    Text columns are object arrays [n] of str; `kind` is the question type; `answer` is a list of S texts per
    row. `score` and `confidence`, in [0, 1], and `nll` (mean per token of the likeliest reference, nats) are
    float32 [n, S]. `reference_tokens` int32 [n, S] is the number of tokens of that reference, end token
    included. `margin` float32 [n, S] (nats) is the smallest difference in log-probability between a token of
    the answer and the next best one; rounding decides near ties. `visual_tokens` int32 [n, S] is the number
    that actually entered the decoder. `prefill_flops` int64 [n, S] are the operations of the decoder on the
    whole prompt, `vision_flops` int64 [n, S] those of the vision pass, or None in tables of earlier versions.
    `entropy` float32 [n, S] (nats) is the mean entropy of the answer's token distributions; None in tables of
    earlier versions, of imported outcomes, and of backbones that do not give it.
    `decoder_state` float16 [n, hidden] is the last hidden state of the decoder after image and question at
    the coarsest scale, and `first_probability` float32 [n] the probability of the first token of the answer
    there; both are None unless labelling was asked for them. Likewise `yes_log_odds` float32 [n], of the
    answer that the model can answer the question from the coarsest scale, and `asking_flops` int64 [n], the
    operations of asking it (`m3_backbone.asking`).
    `family` says what one vision pass of the backbone serves (`m3_backbone.ladder`).
    `options` describe imported outcomes, whose `visual_tokens` are costs in units of `options.unit`; None for
    outcomes of a backbone. Imported outcomes were not measured: `nll` and `margin` are nan,
    `reference_tokens` and `prefill_flops` 0, and none of them is stored.
    `attributes` are for analysis only, except `CLUSTER`. `fingerprints` identify weights, data, prompt and
    decoding. `origin` is the source of the table in error messages. Raises ValueError for inconsistent
    shapes, values out of range and duplicate sample ids.
    """

    scales: tuple[int, ...]
    fingerprints: Mapping[str, str]
    sample_id: np.ndarray
    image_id: np.ndarray
    task: np.ndarray
    kind: np.ndarray
    question: np.ndarray
    metric: np.ndarray
    references: list[list[str]]
    attributes: list[dict[str, Any]]
    question_ids: list[np.ndarray]
    answer: list[list[str]]
    score: np.ndarray
    nll: np.ndarray
    reference_tokens: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    visual_tokens: np.ndarray
    prefill_flops: np.ndarray
    vision_flops: np.ndarray | None = None
    entropy: np.ndarray | None = None
    decoder_state: np.ndarray | None = None
    first_probability: np.ndarray | None = None
    yes_log_odds: np.ndarray | None = None
    asking_flops: np.ndarray | None = None
    family: Family = "pooled"
    options: Options | None = None
    origin: str = field(default="outcome table", repr=False)

    @cached_property
    def cluster_id(self) -> np.ndarray:
        """What is resampled, certified and divided as one, `[rows]`: attribute `CLUSTER`, else the image."""
        if not any(CLUSTER in attributes for attributes in self.attributes):
            return self.image_id
        pairs = zip(self.image_id, self.attributes, strict=True)
        return np.array([find_cluster(image_id, attributes) for image_id, attributes in pairs], dtype=object)

    def __post_init__(self) -> None:
        for name in self._columns:
            if (length := len(getattr(self, name))) != len(self):
                raise ValueError(f"{self.origin}: {name!r} has {length} rows, 'sample_id' {len(self)}")
        for name in self._outcome_columns:
            if (shape := getattr(self, name).shape) != (len(self), len(self.scales)):
                raise ValueError(
                    f"{self.origin}: {name!r} has shape {shape}, not [rows, scales {self.scales}]"
                )
        self._check("answer", [len(row) != len(self.scales) for row in self.answer], "not one per scale")
        measured = [name for name in ("nll", "margin") if name in self._outcome_columns]
        for name in ("score", "confidence", *measured):
            self._check(name, ~np.isfinite(getattr(self, name)).all(axis=1), "not a finite number")
        for name in ("score", "confidence"):
            values = getattr(self, name)
            self._check(name, ((values < 0) | (values > 1)).any(axis=1), "outside [0, 1]")
        counts = [name for name in ("reference_tokens", "prefill_flops") if name in self._outcome_columns]
        for name in ("visual_tokens", *counts):
            self._check(name, (getattr(self, name) < 1).any(axis=1), "not a positive count")
        if self.vision_flops is not None:
            self._check("vision_flops", (self.vision_flops < 0).any(axis=1), "a negative count")
        if self.entropy is not None:
            is_entropy = np.isfinite(self.entropy) & (self.entropy >= 0)
            self._check("entropy", ~is_entropy.all(axis=1), "not a finite number of at least 0")
        if self.decoder_state is not None and self.first_probability is not None:
            self._check("decoder_state", ~np.isfinite(self.decoder_state).all(axis=1), "not a finite number")
            is_probability = (self.first_probability >= 0) & (self.first_probability <= 1 + 1e-6)
            self._check("first_probability", ~is_probability, "not a probability")
        if self.yes_log_odds is not None and self.asking_flops is not None:
            self._check("yes_log_odds", ~np.isfinite(self.yes_log_odds), "not a finite number")
            self._check("asking_flops", self.asking_flops < 1, "not a positive count")
        for pair in (STATE_SCHEMA.names, ASKING_SCHEMA.names):
            if len({getattr(self, name) is None for name in pair}) > 1:
                raise ValueError(f"{self.origin}: it has one of {' and '.join(map(repr, pair))} only")
        if len(set(self.sample_id)) < len(self):
            seen: set[str] = set()
            duplicate = next(name for name in self.sample_id if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"{self.origin}: sample_id {duplicate!r} occurs more than once")

    def _check(self, name: str, bad: npt.ArrayLike, reason: str) -> None:
        for row in np.flatnonzero(np.asarray(bad, dtype=bool))[:1]:
            values = np.asarray(getattr(self, name)[row]).tolist()
            values = values[:8] if isinstance(values, list) else values
            raise ValueError(
                f"{self.origin}: {name!r} of sample {self.sample_id[row]!r} is {reason}: {values}"
            )

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def cost(self) -> np.ndarray:
        """Visual tokens, or the costs of imported options in the user's unit, float64 [n, S]."""
        unit = 1.0 if self.options is None else self.options.unit
        return self.visual_tokens.astype(np.float64) * unit

    def select(self, rows: Rows) -> Self:
        """Return the rows of a boolean mask [n], of distinct indices or of a slice, in that order."""
        index = to_index(rows, len(self))
        columns = {name: take(getattr(self, name), index) for name in self._columns}
        return replace(self, **columns)

    @classmethod
    def concat(cls, tables: Iterable["OutcomeTable"]) -> Self:
        """Concatenate tables. An optional column that one of them lacks is left out.

        Raises ValueError for no tables and for tables with different scales or fingerprints.
        """
        parts = list(tables)
        if not parts:
            raise ValueError("no outcome tables to concatenate")
        first = parts[0]
        for part in parts[1:]:
            if part.scales != first.scales:
                raise ValueError(
                    f"{part.origin} has scales {part.scales}, {first.origin} {first.scales}: "
                    "their outcomes cannot be mixed"
                )
            if part.family != first.family:
                raise ValueError(
                    f"{part.origin} is of a {part.family} backbone, {first.origin} of a {first.family} one: "
                    "their outcomes cannot be mixed"
                )
            if part.options != first.options:
                raise ValueError(
                    f"{part.origin} has other options than {first.origin}: their outcomes cannot be mixed"
                )
            check_fingerprints(first.fingerprints, part.fingerprints, first.origin, part.origin)
        common = [name for name in _COLUMNS if all(name in part._columns for part in parts)]
        columns = {name: _join([getattr(part, name) for part in parts]) for name in common}
        shared = {name: getattr(first, name) for name in _WHOLE_TABLE}
        return cls(**shared, **columns)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the columns that the table has."""
        return tuple(name for name in _COLUMNS if getattr(self, name) is not None)

    @property
    def _outcome_columns(self) -> tuple[str, ...]:
        """Names of the columns that have a measured number for every scale."""
        unmeasured = () if self.options is None else MEASURED_COLUMNS
        names = (name for name in _OUTCOME_COLUMNS if name not in unmeasured)
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def header(self) -> dict[str, Any]:
        """Content of the Parquet metadata besides the schema version."""
        header: dict[str, Any] = {"scales": list(self.scales), "fingerprints": dict(self.fingerprints)}
        if self.options is not None:
            header["options"] = asdict(self.options)
        # Tables of earlier versions, all pooled, have no family.
        return header if self.family == "pooled" else {**header, "family": self.family}

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table of schema `OUTCOME_SCHEMA` with scales and fingerprints in its metadata.

        Optional columns that this table lacks are left out.
        """
        columns: dict[str, Any] = {name: getattr(self, name).tolist() for name in _TEXT_COLUMNS}
        columns |= {name: getattr(self, name) for name in ("references", "answer", "question_ids")}
        columns["attributes"] = [
            json.dumps(row, sort_keys=True, ensure_ascii=False) for row in self.attributes
        ]
        fields_of = {column.name: column for column in (*OUTCOME_SCHEMA, *STATE_SCHEMA, *ASKING_SCHEMA)}
        lists = self._outcome_columns
        if self.decoder_state is not None:
            lists += ("decoder_state",)
            columns["first_probability"] = self.first_probability
        if self.yes_log_odds is not None:
            columns |= {name: getattr(self, name) for name in ASKING_SCHEMA.names}
        for name in lists:
            columns[name] = to_list_column(getattr(self, name), fields_of[name].type)
        schema = pa.schema([column for column in fields_of.values() if column.name in columns])
        return pa.Table.from_pydict(columns, schema=schema.with_metadata(dump_header(self.header)))

    @classmethod
    def from_arrow(cls, table: pa.Table, origin: str = "outcome table") -> Self:
        """Return the outcome table of an Arrow table (inverse of `to_arrow`).

        Raises ValueError that names `origin` if columns or metadata do not fit.
        """
        header = parse_header(table.schema.metadata, origin)
        check_columns(table, OUTCOME_SCHEMA, origin, list_optional(header))
        if not isinstance(header.get("scales"), list) or not isinstance(header.get("fingerprints"), dict):
            raise ValueError(f"{origin}: scales or fingerprints are missing in its metadata")
        scales: tuple[int, ...] = tuple(header["scales"])
        columns: dict[str, Any] = {name: table[name].to_numpy() for name in _TEXT_COLUMNS}
        options = None
        if "options" in header:
            options = Options.parse(header["options"], len(scales), origin)
            scales = options.name_scales(scales)
            columns |= fill_unmeasured(len(table), len(scales))
        columns["references"] = table["references"].to_pylist()
        columns["attributes"] = [parse_object(text, origin) for text in table["attributes"].to_pylist()]
        columns["question_ids"] = [np.array(ids, dtype=np.int32) for ids in table["question_ids"].to_pylist()]
        columns["answer"] = to_matrix(table, "answer", len(scales), origin).tolist()
        columns |= {
            name: to_matrix(table, name, len(scales), origin)
            for name in _OUTCOME_COLUMNS
            if name in table.column_names
        }
        if "decoder_state" in table.column_names:
            width = len(table["decoder_state"][0]) if len(table) else 0
            columns["decoder_state"] = to_matrix(table, "decoder_state", width, origin, "the first one")
        for name in ("first_probability", *ASKING_SCHEMA.names):
            if name in table.column_names:
                columns[name] = table[name].to_numpy()
        family = header.get("family", "pooled")
        if family not in get_args(Family):
            raise ValueError(f"{origin}: its metadata name an unknown family of backbones")
        return cls(
            scales=scales,
            fingerprints=header["fingerprints"],
            family=family,
            options=options,
            origin=origin,
            **columns,
        )

    @classmethod
    def read(cls, folder: str | Path, split: str, access: HeldOutAccess | None = None) -> Self:
        """Read the outcomes of one split of a finished label folder.

        The test split requires the `access` of a recorded evaluation to this folder. Raises ValueError
        without it, and for shards that are damaged, missing or inconsistent with the manifest.
        """
        folder = Path(folder)
        if split == HELD_OUT and (access is None or access.folder != folder.resolve()):
            raise ValueError(
                f"the test split of {folder} is read by recorded evaluations only: run "
                "`tokenscale evaluate`, or take the train or calibration split"
            )
        manifest = read_manifest(folder)
        check_split(manifest, split, folder)
        images = read_images(folder, manifest, split)
        tables = []
        for name in dict.fromkeys(images.values()):
            path = find_shard(folder, "outcomes", name)
            shard = read_shard(path, OUTCOME_SCHEMA, manifest["shards"][name]["outcomes"])
            is_in_split = [images.get(image_id) == name for image_id in shard["image_id"].to_pylist()]
            table = cls.from_arrow(shard.filter(pa.array(is_in_split, type=pa.bool_())), str(path))
            if table.scales != tuple(manifest["scales"]):
                raise ValueError(
                    f"{path} has scales {table.scales}, {folder / MANIFEST} {manifest['scales']}: their "
                    "outcomes cannot be mixed"
                )
            check_fingerprints(
                manifest["fingerprints"], table.fingerprints, str(folder / MANIFEST), str(path)
            )
            tables.append(table)
        table = cls.concat(tables)
        num_expected = manifest["counts"][split]
        if len(table) != num_expected:
            raise ValueError(
                f"the shards in {folder} hold {len(table)} samples of {split}, the manifest counts "
                f"{num_expected}: run the same label command again"
            )
        # Shards are in the order of labelling; samples are returned in the order of the task's images.
        rank = {image_id: number for number, image_id in enumerate(images)}
        return table.select(np.argsort([rank[image_id] for image_id in table.image_id], kind="stable"))


def fill_unmeasured(num_rows: int, num_scales: int) -> dict[str, np.ndarray]:
    """Return the columns that imported outcomes have no values of, each `[num_rows, num_scales]`."""
    shape = (num_rows, num_scales)
    return {
        "nll": np.full(shape, np.nan, dtype=np.float32),
        "margin": np.full(shape, np.nan, dtype=np.float32),
        "reference_tokens": np.zeros(shape, dtype=np.int32),
        "prefill_flops": np.zeros(shape, dtype=np.int64),
    }


_WHOLE_TABLE = ("scales", "fingerprints", "family", "options", "origin")
_COLUMNS = tuple(f.name for f in fields(OutcomeTable) if f.name not in _WHOLE_TABLE)


def parse_object(text: str, origin: str) -> dict[str, Any]:
    """Return the attributes of a sample. Raises ValueError, naming `origin`, if they are no JSON object."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: attributes of a sample cannot be read ({error})") from error
    return content


def check_split(manifest: Mapping[str, Any], split: str, folder: Path) -> None:
    """Raise ValueError if labels are not finished or have no samples of `split`."""
    if not manifest["complete"]:
        raise ValueError(f"the labels in {folder} are not finished: run the same label command again")
    counts: Mapping[str, int] = manifest["counts"]
    if not counts.get(split):
        split_counts = ", ".join(f"{name} ({count})" for name, count in counts.items())
        raise ValueError(f"no samples of split {split!r} in {folder}, which has {split_counts}")


def check_fingerprints(
    first: Mapping[str, str],
    second: Mapping[str, str],
    first_origin: str,
    second_origin: str,
    way_out: str = "",
) -> None:
    """Raise ValueError that names every fingerprint that differs, followed by `way_out` if given."""
    keys = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    if keys:
        raise ValueError(
            f"{first_origin} and {second_origin} were made with different {', '.join(keys)}: "
            f"their outcomes cannot be mixed{way_out and f'; {way_out}'}"
        )


def to_index(rows: Rows, num_rows: int) -> np.ndarray:
    """Return row indices [k] for a boolean mask [num_rows], indices or a slice."""
    if isinstance(rows, slice):
        return np.arange(num_rows)[rows]
    selection = np.asarray(rows)
    if selection.dtype != bool:
        return selection.astype(np.int64)
    if len(selection) != num_rows:
        raise ValueError(f"a mask of {len(selection)} values cannot select from {num_rows} rows")
    return np.flatnonzero(selection)


def take(column: Any, index: np.ndarray) -> Any:
    """Return rows of a column, which is an array or a list."""
    return column[index] if isinstance(column, np.ndarray) else [column[row] for row in index]


def _join(columns: list[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [row for column in columns for row in column]
