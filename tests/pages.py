"""Blocks of code that stand in pages of docs/."""

import re
from pathlib import Path


def take_blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The page's blocks of this language, each with the path that stands before it."""
    text = page.read_text("utf-8")
    return re.findall(rf"^`([^`\n]+)`:\n\n```{language}\n(.*?)^```$", text, re.M | re.S)


def write_blocks(page: Path, folder: Path) -> None:
    """The page's Python files and its YAML, each in its place below `folder`."""
    for language in ("python", "yaml"):
        blocks = take_blocks(page, language)
        assert blocks
        for path, text in blocks:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
