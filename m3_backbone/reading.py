"""Files of a checkpoint or of a data set, read with errors that name them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3_backbone.arguments import accepts, describe_type

_POINTER = b"version https://git-lfs.github.com/spec/"
# Attentions of transformers itself: any other name is that of a kernel, code that it fetches from the hub.
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
POINTER_REASON = "a Git LFS pointer and not the file itself: fetch it with `git lfs pull`"


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins with `head` is a Git LFS pointer."""
    return head.startswith(_POINTER)


def check_no_pointer(file: Path) -> None:
    """Raise ValueError if the file is a Git LFS pointer. Missing files are ignored."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_POINTER))
    except OSError:
        return
    if is_pointer(head):
        raise ValueError(f"{file} is {POINTER_REASON}")


def check_settings(file: Path, settings: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ValueError that names file and key if a setting does not have its type in `types`."""
    for key, annotation in types.items():
        if key in settings and not accepts(annotation, settings[key]):
            raise ValueError(f"{file}: {key} is {settings[key]!r}, and should be {describe_type(annotation)}")


def find_kernels(settings: Any) -> Iterator[str]:
    """Yield one sentence for each attention in a configuration, at any depth, that is not in `ATTENTIONS`."""
    for key, value in settings.items() if isinstance(settings, Mapping) else enumerate(settings):
        if key in ("attn_implementation", "_attn_implementation") and value not in ATTENTIONS:
            yield f"{key} is none of {', '.join(filter(None, ATTENTIONS))}"
        elif isinstance(value, Mapping | list):
            yield from find_kernels(value)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError, naming the file, where there is none."""
    check_no_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, fetch it again: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content
