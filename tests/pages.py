"""Blocks of code that stand in pages of docs/."""

import re
from pathlib import Path


def take_block(page: Path, language: str) -> tuple[str, str]:
    """The path that stands before the page's only block of this language, and the block."""
    found = re.findall(rf"^`([^`\n]+)`:\n\n```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    assert len(found) == 1
    return found[0]


def write_blocks(page: Path, folder: Path) -> None:
    """The page's Python file and its YAML, each in its place below `folder`."""
    for language in ("python", "yaml"):
        path, text = take_block(page, language)
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text, encoding="utf-8")
