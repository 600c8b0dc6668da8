"""Figures as files: the same bytes for the same figure, without times and names of software in them."""

import base64
import functools
import hashlib
import io
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import font_manager
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from m3_backbone.outcomes.shards import write_bytes, write_text

# Names come from data: two dollar signs in one of them are no formula. For whatever makes a figure's texts.
PLAIN_TEXT: Any = {"text.parse_math": False, "text.usetex": False, "font.family": ["sans-serif"]}
# Fonts of names and questions, as far as they are installed: for each character the first that has it.
# DejaVu Sans, which comes with matplotlib, lacks Chinese, Japanese and Korean.
FONTS = (
    "DejaVu Sans",
    *(f"Noto Sans CJK {region}" for region in ("SC", "TC", "JP", "KR")),
    *("Source Han Sans SC", "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Segoe UI Symbol", "Noto Sans Symbols 2", "Noto Emoji"),
)
LONGEST_NAME = 48
LONGEST_TITLE = 100
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


def render_figure(figure: Figure, kind: str) -> bytes:
    """A figure as a PNG of 150 pixels an inch, PDF or SVG."""
    buffer = io.BytesIO()
    style: Any = {"svg.hashsalt": "tokenscale", "font.sans-serif": list_fonts()}
    with mpl.rc_context(style), warnings.catch_warnings():
        # A character that no font has becomes a box: which fonts there are is no mistake of the user.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format=kind, dpi=150, metadata=_METADATA[kind])
    return buffer.getvalue()


@functools.cache
def list_fonts() -> list[str]:
    """Those of `FONTS` that are installed."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


def cut_name(name: str, length: int = LONGEST_NAME) -> str:
    """A name from data as a figure has room for it: one line, long ones without their middle.

    Names of a family often differ at the end only.
    """
    line = " ".join(name.split())
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 1]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"


def save_figure(figure: Figure, path: Path, kinds: tuple[str, ...] = ("pdf", "svg")) -> list[Path]:
    """Write `path.pdf` and so on, and return their paths; a dot in the name is part of it."""
    paths = [path.with_name(f"{path.name}.{kind}") for kind in kinds]
    for file, kind in zip(paths, kinds, strict=True):
        write_bytes(file, render_figure(figure, kind))
    return paths


def encode_picture(figure: Figure) -> str:
    """A figure as PNG in base64, for a page."""
    return base64.b64encode(render_figure(figure, "png")).decode("ascii")


_PACKAGES = (
    "tokenscale",
    "torch",
    "transformers",
    "lightning",
    "scikit-learn",
    "numpy",
    "hydra-core",
    "plotly",
)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template of `experiments/templates` and write it; scripts and style are added here."""
    scripts = {"plotly": get_plotlyjs(), "page": _read_template("report.js")}
    environment = Environment(
        loader=PackageLoader("experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(
        **content,
        versions=list_versions(),
        policy=_write_policy(list(scripts.values())),
        style=_read_template("report.css"),
        scripts={name: _check_script(script) for name, script in scripts.items()},
    )
    write_text(path, text)


def list_versions() -> Mapping[str, str]:
    """Versions of the packages that figures may depend on, of those that are installed as packages."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _write_policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _check_script(text: str) -> str:
    assert "</script" not in text.lower() and "\r" not in text
    return text


def _read_template(name: str) -> str:
    return (Path(__file__).parent.parent / "templates" / name).read_text(encoding="utf-8")
