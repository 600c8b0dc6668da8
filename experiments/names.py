"""Names that people give, as names of files."""

import hashlib
from urllib.parse import quote

# Beside a suffix of ours, within the 255 bytes that file systems allow.
_MAX_LENGTH = 120


def to_file_name(name: str) -> str:
    """`name` as one path component, unchanged where it is plain; distinct names stay distinct.

    Whatever is no letter, digit, dot, hyphen or underscore is percent-encoded, as is a leading dot; a long
    name is cut and ends in a digest of the whole.
    """
    encoded = quote(name, safe="")
    if not encoded or encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}" if encoded else "%"
    if len(encoded) > _MAX_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        encoded = f"{encoded[: _MAX_LENGTH - 17]}%{digest}"
    return encoded
