"""Names as file names, and folders under names that are free."""

import hashlib
import itertools
from pathlib import Path
from urllib.parse import quote

# Leaves room for a suffix within the 255 bytes that file systems allow.
_MAX_LENGTH = 120


def to_file_name(name: str) -> str:
    """`name` as one path component, unchanged where it is plain; distinct names stay distinct.

    Characters other than letters, digits, dots, hyphens and underscores are percent-encoded, as is a leading
    dot; a long name is cut and ends in a digest of the whole name.
    """
    encoded = quote(name, safe="", errors="surrogatepass")
    if not encoded or encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}" if encoded else "%"
    if len(encoded) > _MAX_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        encoded = f"{encoded[: _MAX_LENGTH - 17]}%{digest}"
    return encoded


def make_exclusively(folder: Path) -> Path:
    """Make `folder`, or the first of `folder-2`, `folder-3`, ... that is not there, and return its path."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("endless")
