"""Readers of checkpoint and data-set files whose errors name the file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3_backbone.arguments import accepts, describe_type

_POINTER = b"version https://git-lfs.github.com/spec/"
# Attention implementations in transformers itself. Any other name is that of a kernel: code from the hub.
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
POINTER_REASON = "a Git LFS pointer and not the file itself: fetch it with `git lfs pull`"


def is_pointer(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a Git LFS pointer."""
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
    """Raise ValueError that names file and key if a setting does not have the type given in `types`."""
    for key, annotation in types.items():
        if key in settings and not accepts(annotation, settings[key]):
            raise ValueError(f"{file}: {key} is {settings[key]!r} but should be {describe_type(annotation)}")


def find_kernels(settings: Any) -> Iterator[str]:
    """Yield a message per attention setting, at any depth of a configuration, not in `ATTENTIONS`."""
    for key, value in settings.items() if isinstance(settings, Mapping) else enumerate(settings):
        if key in ("attn_implementation", "_attn_implementation") and value not in ATTENTIONS:
            yield f"{key} is not one of {', '.join(filter(None, ATTENTIONS))}"
        elif isinstance(value, Mapping | list):
            yield from find_kernels(value)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError that names the file if it holds no JSON object."""
    check_no_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, fetch it again: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content
