"""JSON objects that carry a digest of their own content.

A flipped bit in a number leaves a JSON file readable. Files that numbers are read from hold their digest
under `DIGEST`; files of tokenscale 0.1, which have none, are taken as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST = "digest"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its digest."""
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
