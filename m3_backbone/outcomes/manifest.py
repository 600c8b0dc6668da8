"""The manifest of a label folder, the assignment of its images to splits, and JSON with a digest.

A label folder contains

    manifest.json                 fingerprints and settings of the labels, and the SHA-256 of every other file
    splits.parquet                one row per labelled image: `image_id`, `split`, `shard`
    outcomes/NAME.parquet         outcomes of all samples of some images
    features/NAME.parquet         features of these images for predictors
    token_embeddings.safetensors  token embeddings of the decoder
    skipped.jsonl                 samples that could not be answered, with reasons

Shards do not store splits: a new `splits.parquet` divides the images differently without answering anything
again. Every file is checked against its digest in the manifest, so a file that is damaged or belongs to
another folder raises an error. JSON files with numbers also contain a digest of their own content, since a
flipped bit in a number would go unnoticed; files of tokenscale 0.1 have none and are not checked.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3_backbone.outcomes.shards import SCHEMA_VERSION, name_way_out, naming, read_content, write_atomically

DIGEST = "digest"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its digest under `DIGEST`."""
    return {**content, DIGEST: _compute_digest(content)}


def unseal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content without its digest. Raises ValueError if the digest does not match."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    if DIGEST in content and content[DIGEST] != _compute_digest(rest):
        raise ValueError("its content does not have the digest that it names")
    return rest


def _compute_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


MANIFEST, SPLITS_FILE = "manifest.json", "splits.parquet"
EMBEDDINGS, SKIPPED_FILE = "token_embeddings.safetensors", "skipped.jsonl"
OLD_SKIPPED_FILE = "set_aside.jsonl"  # in label folders of tokenscale 0.1; still read
SPLITS = ("train", "calibration", "test")

_SPLITS_SCHEMA = pa.schema([("image_id", pa.string()), ("split", pa.string()), ("shard", pa.string())])
# Types of the keys of every manifest, and of the additional keys of finished labels.
_TYPES: dict[str, type] = {"fingerprints": dict, "scales": list, "complete": bool, "shards": dict}
_TYPES_WHEN_COMPLETE: dict[str, type] = {"counts": dict, "files": dict, "splits": dict}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a label folder. Raises ValueError if it is damaged or of another version."""
    path = folder / MANIFEST
    manifest = load_manifest(folder)
    version = manifest["schema"]
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, this tokenscale reads {SCHEMA_VERSION}: "
            f"{name_way_out(version)}"
        )
    types = {**_TYPES, **(_TYPES_WHEN_COMPLETE if manifest.get("complete") is True else {})}
    for key, expected_type in types.items():
        if not isinstance(manifest.get(key), expected_type):
            raise ValueError(_describe_damage(path, f"{key!r} is missing or of another type"))
    if manifest["complete"]:
        for name in (SPLITS_FILE, EMBEDDINGS):
            if not isinstance(manifest["files"].get(name), str):
                raise ValueError(_describe_damage(path, f"it lacks the digest of {name}"))
    for name, shard in manifest["shards"].items():
        if Path(name).name != name:
            raise ValueError(_describe_damage(path, f"shard {name!r} is not a file name"))
        keys = ("samples", "outcomes", "features")
        if not isinstance(shard, dict) or not all(isinstance(shard.get(key), str) for key in keys):
            raise ValueError(_describe_damage(path, f"shard {name!r} lacks one of {', '.join(keys)}"))
    return manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a label folder of any version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"no labels in {folder}: make them with `tokenscale label` for that task, or with `tokenscale "
            "import_outcomes`"
        )
    try:
        manifest = json.loads(path.read_bytes())
        manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_describe_damage(path, "it is not a manifest of labels")) from error
    try:
        return unseal(manifest)
    except ValueError as error:
        raise ValueError(_describe_damage(path, str(error))) from error


def _describe_damage(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}): move it away and label again, or label into another folder"


def write_splits(folder: Path, images: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    """Write the images of each split: split -> (image id, name of its shard), in order."""
    rows = [(image_id, split, shard) for split, pairs in images.items() for image_id, shard in pairs]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    table = pa.table([list(column) for column in columns], schema=_SPLITS_SCHEMA)
    write_atomically(
        folder / SPLITS_FILE,
        lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True),
    )


def read_images(folder: Path, manifest: Mapping[str, Any], split: str) -> dict[str, str]:
    """Return image id -> name of its shard for the images of one split of finished labels, in order."""
    path = folder / SPLITS_FILE
    content = read_content(path, manifest["files"][SPLITS_FILE])
    with naming(path):
        table = pq.read_table(pa.BufferReader(content), schema=_SPLITS_SCHEMA)
    columns = (table[name].to_pylist() for name in _SPLITS_SCHEMA.names)
    images = {
        image_id: shard for image_id, image_split, shard in zip(*columns, strict=True) if image_split == split
    }
    if unknown := set(images.values()) - set(manifest["shards"]):
        raise ValueError(_describe_damage(folder / MANIFEST, f"it lacks shard {min(unknown)!r}"))
    return images


def list_images(folder: Path, split: str) -> list[str]:
    """Return the image ids of one split of finished labels, in order. Outcomes are not read."""
    return list(read_images(folder, read_manifest(folder), split))


def find_shard(folder: Path, content: str, name: str) -> Path:
    """Return the path of a shard; `content` is "outcomes" or "features"."""
    return folder / content / f"{name}.parquet"


def digest_samples(sample_ids: Iterable[str]) -> str:
    """Return a digest of sample ids that does not depend on their order."""
    text = "\n".join(sorted(sample_ids))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
