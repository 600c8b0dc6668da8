"""Files of a checkpoint in a folder, in this package or on the hub; names and fingerprint of its weights."""

import hashlib
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
    """The folder of a checkpoint; of a hub id the small files are downloaded. OSError where there is none."""
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
        raise OSError(f"{name} is no folder here, and not to be had from the hub: {error}") from error
    for small in SMALL_FILES:
        fetch(name, small)
    return config.parent


def is_hub_id(source: str | Path) -> bool:
    """Whether a source that is no folder may be meant as OWNER/NAME on the hub, and not as a path."""
    text = str(source)
    is_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or "\\" in text
    return not is_path and text.count("/") == 1 and all(text.split("/")) and not Path(text).parent.is_dir()


def fetch(hub_id: str, name: str) -> Path | None:
    """The cached file of this name; None where the repository has none.

    OSError where the hub could not be asked: a tokenizer's settings that are taken for absent are other
    settings. Offline, what is not in the cache is absent.
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
    """One kind of weight files, safetensors before .bin, into the folder of the hub's cache."""
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        for name in (single, index):
            if fetch(hub_id, name) is None:
                continue
            for shard in shard_names(folder / index) if name == index else ():
                cached_file(hub_id, shard)
            return


# Prefixes of weight names: (transformers', the authors').
PREFIXES = (
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
)
# The same for `from_pretrained`, which renames as it reads.
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
    """transformers' name of a weight -> its name in the authors' layout."""
    for ours, theirs in PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def shard_names(index: Path) -> list[str]:
    """Files that an index of shards lists."""
    names = read_json(index).get("weight_map")
    if not accepts(dict[str, str], names) or not names:
        raise ValueError(f"{index} lists no files under weight_map: fetch it again")
    return sorted(set(names.values()))


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers will read: safetensors before .bin, one file before shards."""
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in shard_names(folder / index)]
    raise FileNotFoundError(
        f"no weights in {folder}: expected {', '.join(WEIGHT_FILES)} or an index of shards"
    )


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what a damaged weight file raises into a ValueError that names it."""
    check_no_pointer(file)
    try:
        yield
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise ValueError(f"the weight file {file} cannot be read, fetch it again: {error}") from error


def weight_shapes(files: Iterable[Path]) -> dict[str, torch.Size]:
    """Names and shapes of all weights, read without their values."""
    shapes = {}
    for file in files:
        with _naming(file):
            shapes.update({name: weight.shape for name, weight in load_state_dict(file, "meta").items()})
    return {name: shape for name, shape in shapes.items() if not re.search(IGNORED, name)}


def check_weights(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], folder: Path) -> None:
    """ValueError that names every missing, unexpected and wrongly shaped weight."""
    wrong = [
        f"{name} has shape {tuple(found[name])} and should have {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    problems = [
        *(f"missing: {name}" for name in sorted(expected.keys() - found.keys())),
        *(f"unexpected: {name}" for name in sorted(found.keys() - expected.keys())),
        *(f"wrongly shaped: {problem}" for problem in wrong),
    ]
    if problems:
        raise ValueError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems))


def check_finite(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raise ValueError that names the first weight with nan or infinity, as loaded from `folder`."""
    for name, weight in weights:
        # One that is kept on disk (device_map) has no values here.
        if weight.device.type != "meta" and not weight.isfinite().all():
            type_name = str(weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"the weights in {folder} are not finite in {type_name}: {name} holds nan or infinity; fetch "
                "them again, or load them with another dtype"
            )


def hash_weights(files: Iterable[Path], digest: "hashlib._Hash", max_bytes: int = 2**18) -> None:
    """Feed names, types, shapes and values of all weights into `digest`, whichever files they are in.

    A weight of up to `max_bytes` enters whole, a larger one by as much of it, in eight blocks of rows from
    the first to the last: seconds for a 7B model, and a training step changes some of them.
    """
    described: list[tuple[str, str]] = []
    for file in files:
        with _naming(file):
            described += [(name, _describe(weight, max_bytes)) for name, weight in _open_weights(file)]
    for name, description in sorted(described):
        digest.update(f"{name} {description}\n".encode())


def _describe(weight: Any, max_bytes: int, num_blocks: int = 8) -> str:
    """Type, shape and digest of the sampled rows of a tensor, or of a slice of a safetensors file."""
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
    """Weights that are read from the file only where they are indexed."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_slice(name)
    else:
        yield from torch.load(file, map_location="cpu", mmap=True, weights_only=True).items()
