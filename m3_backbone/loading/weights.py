"""Files of a checkpoint (local, packaged or on the hub), and names, shapes and hashes of its weights."""

import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from m3_backbone.arguments import accepts
from m3_backbone.llava.processing import PROCESSOR_FILE
from m3_backbone.reading import check_no_pointer, read_json

PACKAGED = ("tiny_m3",)
SMALL_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    PROCESSOR_FILE,
)


def find_folder(checkpoint: str | Path) -> Path:
    """Return the folder of a checkpoint. The small files of a hub id are downloaded.

    Raises OSError if there is no such checkpoint.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint in PACKAGED:
        return Path(str(files("m3_backbone"))) / "assets" / str(checkpoint)
    name = str(checkpoint)
    if not is_hub_id(checkpoint):
        raise FileNotFoundError(
            f"no such folder: {name}. Give the folder of a checkpoint, a hub id OWNER/NAME or "
            f"{' or '.join(PACKAGED)}"
        )
    try:
        config = Path(str(cached_file(name, "config.json")))
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OSError(
            f"{name} is not a local folder and cannot be fetched from the hub ({reason}): name the folder of "
            "a copy with backbone.checkpoint=FOLDER"
        ) from error
    for small in SMALL_FILES:
        fetch(name, small)
    return config.parent


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source that is not a folder looks like OWNER/NAME on the hub and not like a path."""
    text = str(source)
    is_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or "\\" in text
    return not is_path and text.count("/") == 1 and all(text.split("/")) and not Path(text).parent.is_dir()


def fetch(hub_id: str, name: str) -> Path | None:
    """Return the path of a file in the hub cache, downloaded if necessary; None if the repository lacks it.

    Raises OSError if the hub cannot be reached: a missing tokenizer file would change the settings. In
    offline mode, a file that is not in the cache counts as missing.
    """
    try:
        return Path(hf_hub_download(hub_id, name))
    except LocalEntryNotFoundError as error:
        if is_offline_mode():
            return None
        raise OSError(f"{name} of {hub_id} could not be fetched from the hub, try again: {error}") from error
    except EntryNotFoundError:
        return None


def download_weights(hub_id: str, folder: Path) -> None:
    """Download weight files into the hub cache: safetensors if there are any, otherwise .bin files."""
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        for name in (single, index):
            if fetch(hub_id, name) is None:
                continue
            for shard in shard_names(folder / index) if name == index else ():
                cached_file(hub_id, shard)
            return


# Prefixes of weight names: (in transformers, in the authors' layout).
PREFIXES = (
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
)
# The same mapping for `from_pretrained`, which renames weights when it reads them.
KEY_MAPPING = {
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
# Constants that older versions of transformers stored beside the parameters.
IGNORED = r"(rotary_emb\.inv_freq|embeddings\.position_ids)$"

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def authors_name(name: str) -> str:
    """Return the name in the authors' layout of a weight with this name in transformers."""
    for ours, theirs in PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def shard_names(index: Path) -> list[str]:
    """Return the file names in an index of shards. Raises ValueError that names the index if it has none."""
    names = read_json(index).get("weight_map")
    if not accepts(dict[str, str], names) or not names:
        raise ValueError(f"{index} lists no files under weight_map: fetch it again")
    return sorted(set(names.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads: safetensors before .bin, one file before shards.

    Raises FileNotFoundError if the folder has no weights.
    """
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in shard_names(folder / index)]
    raise FileNotFoundError(
        f"no weights in {folder}: expected {', '.join(WEIGHT_FILES)} or an index of shards"
    )


def weight_names(folder: Path) -> set[str]:
    """Return the names of the weights in the index of shards or in the header of a safetensors file.

    The set is empty if the folder has neither, or if they are damaged.
    """
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        try:
            if single.endswith(".safetensors") and (folder / single).is_file():
                with safe_open(folder / single, framework="pt") as opened:
                    return set(opened.keys())
            if (folder / index).is_file():
                return set(read_json(folder / index).get("weight_map", {}))
        except (OSError, ValueError, TypeError, SafetensorError):
            return set()
    return set()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn errors about a damaged weight file into ValueError that names the file."""
    check_no_pointer(file)
    try:
        yield
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise ValueError(f"the weight file {file} cannot be read, fetch it again: {error}") from error


def weight_shapes(files: Iterable[Path]) -> dict[str, torch.Size]:
    """Return names and shapes of all weights; their values are not read."""
    shapes = {}
    for file in files:
        with _naming(file):
            shapes.update({name: weight.shape for name, weight in load_state_dict(file, "meta").items()})
    return {name: shape for name, shape in shapes.items() if not re.search(IGNORED, name)}


def check_weights(stored: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], folder: Path) -> None:
    """Raise ValueError that names every missing, unexpected and wrongly shaped weight."""
    wrong_shapes = [
        f"{name} has shape {tuple(stored[name])} and should have {tuple(expected[name])}"
        for name in sorted(expected.keys() & stored.keys())
        if stored[name] != expected[name]
    ]
    problems = [
        *(f"missing: {name}" for name in sorted(expected.keys() - stored.keys())),
        *(f"unexpected: {name}" for name in sorted(stored.keys() - expected.keys())),
        *(f"wrongly shaped: {problem}" for problem in wrong_shapes),
    ]
    if problems:
        raise ValueError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems))


def count_weights(model: Any) -> int:
    """Return the number of weights of a model, those that parts share counted once."""
    return sum(weight.numel() for weight in model.parameters())


def check_finite(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raise ValueError that names the first weight with nan or infinity, as loaded from `folder`."""
    for name, weight in weights:
        # Weights that device_map keeps on disk have no values in memory.
        if weight.device.type != "meta" and not weight.isfinite().all():
            type_name = str(weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"the weights in {folder} are not finite in {type_name}: {name} holds nan or infinity; fetch "
                "them again, or load them with another dtype"
            )


def fingerprint_weights(config: Any, files: Iterable[Path]) -> str:
    """Return a hash of configuration and weights, 16 hex digits."""
    settings = config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    hash_weights(files, digest)
    return digest.hexdigest()[:16]


def hash_weights(files: Iterable[Path], digest: "hashlib._Hash", max_bytes: int = 2**18) -> None:
    """Update `digest` with names, dtypes, shapes and values of all weights, independently of their files.

    Of a weight larger than `max_bytes`, only that many bytes are hashed, in eight evenly spaced blocks of
    rows. This takes seconds for a 7B model, and a training step changes some of the hashed values.
    """
    described: list[tuple[str, str]] = []
    for file in files:
        with _naming(file):
            described += [(name, _describe(weight, max_bytes)) for name, weight in _open_weights(file)]
    for name, description in sorted(described):
        digest.update(f"{name} {description}\n".encode())


def _describe(weight: Any, max_bytes: int, num_blocks: int = 8) -> str:
    """Return dtype, shape and digest of the hashed rows of a tensor or of a slice of a safetensors file."""
    shape = tuple(weight.shape if isinstance(weight, Tensor) else weight.get_shape())
    blocks = [weight[:1] if shape else weight[...]]
    if shape and shape[0] > 1:
        num_rows = max(max_bytes // blocks[0].nbytes, num_blocks)
        height, last = num_rows // num_blocks, shape[0] - num_rows // num_blocks
        starts = [last * i // (num_blocks - 1) for i in range(num_blocks)]
        is_small = shape[0] <= num_rows
        blocks = [weight[:]] if is_small else [weight[start : start + height] for start in starts]
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block.contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{blocks[0].dtype} {shape} {digest.hexdigest()}"


def _open_weights(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (name, weight) of a file; values are read from the file only when the weight is indexed."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_slice(name)
    else:
        yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()
