"""Rows of a Hugging Face data set: a name on the hub, or files and folders on this machine.

Images stay encoded: a row holds the bytes of an image file, or its path.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from experiments.tasks.rows import BadRow
from m3_backbone.images import UnreadableImage

# Files that `datasets` reads by the name of a builder.
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
# Rows read at a time: of images of 64 MB each, one gigabyte.
_BATCH = 16


class HfSource:
    """One split of a data set, map-style, with the columns that are needed.

    Args:
        path: hub id (`USER/NAME`); file (.parquet, .arrow, .jsonl, .json, .csv); folder of such files or of
            images with a `metadata.csv`; folder that `Dataset.save_to_disk` wrote.
        config: name of a configuration of the data set, if it has several.
        split: split of the data set; None if it has only one.
        revision: commit, tag or branch on the hub.

    Raises ValueError or OSError if there is no such data set, configuration or split.
    """

    def __init__(self, path: str, config: str | None, split: str | None, revision: str | None) -> None:
        self.path, self.split = path, split
        try:
            loaded = _load(path, config, split, revision)
        except (ModuleNotFoundError, MemoryError):
            raise
        except Exception as error:  # `datasets` raises its own errors, those of pyarrow and of the network
            # "An error occurred while generating the dataset" says less than what it came from.
            cause = error.__cause__ or error
            reason = " ".join(str(cause).split())[:300]
            raise ValueError(
                f"task.path={path}: the data set cannot be loaded ({type(cause).__name__}: {reason}): give a "
                "hub id, a Parquet file, or a folder, with task.split and task.config if it has several"
            ) from error
        if isinstance(loaded, Mapping):
            if split is None and len(loaded) > 1:
                raise ValueError(
                    f"task.path={path} has several splits: give task.split=..., one of {', '.join(loaded)}, "
                    "or +task.split.train=NAME +task.split.test=NAME"
                )
            if split is not None and split not in loaded:
                raise ValueError(f"task.split={split}: {path} has {', '.join(loaded)}")
            loaded = loaded[next(iter(loaded)) if split is None else split]
        self._data = loaded

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._data.column_names)

    def select(self, image: str, texts: Sequence[str]) -> None:
        """Keep the column of images and those of texts; class labels become their names."""
        from datasets import ClassLabel, Image, List

        features = self._data.features
        self._names = {name: features[name].names for name in texts if isinstance(features[name], ClassLabel)}
        self._data = self._data.select_columns(list(dict.fromkeys([image, *texts])))
        if isinstance(features[image], Image):
            self._data = self._data.cast_column(image, Image(decode=False))
        elif isinstance(features[image], List) and isinstance(features[image].feature, Image):
            self._data = self._data.cast_column(image, List(Image(decode=False)))
        self._image, self._texts = image, list(texts)
        self._arrow = self._data.with_format("arrow")
        self._text_rows = self._data.select_columns(self._texts).with_format("arrow")

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield (image as stored, texts) of each row."""
        for batch in self._arrow.iter(batch_size=_BATCH):
            for row in batch.to_pylist():
                yield row[self._image], self._name_labels({name: row[name] for name in self._texts})

    def read_image(self, number: int) -> Any:
        """Return the image of a row as stored."""
        table: pa.Table = self._arrow[number : number + 1]
        return table.column(self._image)[0].as_py()

    def read_texts(self, number: int) -> dict[str, Any]:
        """Return the texts of a row. No image is read."""
        table: pa.Table = self._text_rows[number : number + 1]
        return self._name_labels(table.to_pylist()[0])

    def _name_labels(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, labels in self._names.items():
            if isinstance(row[name], int) and 0 <= row[name] < len(labels):
                row[name] = labels[row[name]]
        return row


def _load(path: str, config: str | None, split: str | None, revision: str | None) -> Any:
    """Return a data set, or its splits by name."""
    import datasets

    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix == ".arrow":
            return datasets.Dataset.from_file(str(local))
        if local.suffix not in _BUILDERS:
            raise ValueError(f"{local.suffix or 'no ending'} is none of .arrow, {', '.join(_BUILDERS)}")
        return datasets.load_dataset(_BUILDERS[local.suffix], data_files=str(local))
    if local.is_dir():
        if any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(str(local))
        return datasets.load_dataset(str(local.resolve()), config)
    # Anything else than USER/NAME or NAME is a path that does not exist.
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or local.suffix in (".arrow", *_BUILDERS):
        raise FileNotFoundError(f"no file or folder {path}")
    return datasets.load_dataset(path, config, split=split and f"{split}", revision=revision)


def find_content(image: Any, folder: Path | None, max_bytes: int) -> bytes | Path:
    """Return the bytes of an image file, or its path inside of `folder`.

    `image` is what a row holds: bytes, a path, `{"bytes": ..., "path": ...}`, or a list with one of these.
    Raises BadRow with the reason for anything else, and for more than `max_bytes`.
    """
    if isinstance(image, list):
        if len(image) > 1:
            raise BadRow(f"{len(image)} images, and a question has one")
        image = image[0] if image else None
    if isinstance(image, Mapping):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if image is None or image in ("", b""):
        raise BadRow("no image")
    if isinstance(image, bytes):
        _check_size(len(image), max_bytes)
        return image
    if not isinstance(image, str):
        raise BadRow(f"the image is neither bytes nor a path but {type(image).__name__}")
    if folder is None:
        raise BadRow("the image is a path: give its folder with task.image_folder=FOLDER")
    path = locate(image, folder)
    try:
        _check_size(path.stat().st_size, max_bytes)
    except OSError as error:  # it was removed meanwhile
        raise BadRow(f"the image cannot be read: {error.strerror}") from error
    return path


def locate(name: str, folder: Path) -> Path:
    """Return the path of a file inside of `folder`. Raises BadRow for other paths and missing files."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        is_inside, is_file = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        raise BadRow("the path of the image is not usable") from error
    if not is_inside:
        raise BadRow("the path of the image leads out of the image folder (task.image_folder)")
    if not is_file:
        raise BadRow(f"no image file {os.path.relpath(path, root)[:200]!r} in the image folder")
    return path


def digest_image(content: bytes | Path) -> str:
    """Return a digest of the bytes of an image file: 16 hex digits. Raises UnreadableImage."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()[:16]
    try:
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UnreadableImage(content.name, str(error.strerror)) from error


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise BadRow(f"the image has {num_bytes:,} bytes (at most {max_bytes:,})")
