"""Where a checkpoint lies: in a folder, in the package, or on the Hugging Face hub, to be fetched."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import cached_file

from m3_backbone.processing import PROCESSOR_FILE
from m3_backbone.weights import INDEX_FILES, WEIGHT_FILES, shard_names

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
