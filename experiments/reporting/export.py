"""Figures as files: the same bytes for the same figure, without times and names of software in them."""

import base64
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from m3_backbone.shards import write_bytes

# Names come from data: two dollar signs in one of them are no formula. For whatever makes a figure's texts.
PLAIN_TEXT: Any = {"text.parse_math": False}
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


def render_figure(figure: Figure, kind: str) -> bytes:
    """A figure as a PNG of 150 pixels an inch, PDF or SVG."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "tokenscale"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=_METADATA[kind])
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path, kinds: tuple[str, ...] = ("pdf", "svg")) -> None:
    """Write `path.pdf` and so on; a dot in the name is part of it."""
    for kind in kinds:
        write_bytes(path.with_name(f"{path.name}.{kind}"), render_figure(figure, kind))


def encode_picture(figure: Figure) -> str:
    """A figure as PNG in base64, for a page."""
    return base64.b64encode(render_figure(figure, "png")).decode("ascii")
