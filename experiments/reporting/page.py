"""Writing of figures and HTML pages: the same figure gives the same bytes, without times or versions."""

import base64
import functools
import hashlib
import io
import json
import platform
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from experiments.reporting.tables import CONTROLS, escape_markdown
from m3_backbone.outcomes.shards import write_bytes, write_text

# Settings for texts of figures: names come from data, so dollar signs in them do not mark formulas.
PLAIN_TEXT: Any = {"text.parse_math": False, "text.usetex": False, "font.family": ["sans-serif"]}
# Fonts for names and questions, of which the installed ones are used: for each character the first that has
# it. DejaVu Sans, which comes with Matplotlib, lacks Chinese, Japanese and Korean.
FONTS = (
    "DejaVu Sans",
    *(f"Noto Sans CJK {region}" for region in ("SC", "TC", "JP", "KR")),
    *("Source Han Sans SC", "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Segoe UI Symbol", "Noto Sans Symbols 2", "Noto Emoji"),
)
_CONTROLS_OF_PAGES = {code: text for code, text in CONTROLS.items() if chr(code) not in "\t\n\r"}
LONGEST_NAME = 48
LONGEST_TITLE = 100
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


def render_figure(figure: Figure, kind: str) -> bytes:
    """Return a figure as PNG (150 dots per inch), PDF or SVG; `kind` is the format."""
    buffer = io.BytesIO()
    style: Any = {"svg.hashsalt": "tokenscale", "font.sans-serif": list_fonts()}
    with mpl.rc_context(style), warnings.catch_warnings():
        # A character that no installed font has is shown as a box; the user need not be warned.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format=kind, dpi=150, metadata=_METADATA[kind])
    return buffer.getvalue()


@functools.cache
def list_fonts() -> list[str]:
    """Return the installed ones of `FONTS`."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


def cut_name(name: str, length: int = LONGEST_NAME) -> str:
    """Return a name on one line of at most `length` characters; a longer name loses its middle.

    The end is kept because names of a family often differ only there.
    """
    line = " ".join(name.split())
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 1]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"


def save_figure(figure: Figure, path: Path, kinds: tuple[str, ...] = ("pdf", "svg")) -> list[Path]:
    """Write a figure as `path.KIND` for each of `kinds`, and return the paths.

    A dot in the name of `path` does not start a suffix.
    """
    paths = [path.with_name(f"{path.name}.{kind}") for kind in kinds]
    for file, kind in zip(paths, kinds, strict=True):
        write_bytes(file, render_figure(figure, kind))
    return paths


def style_axes(axes: Axes) -> None:
    """Draw a light grid below the content, and no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)


def encode_picture(figure: Figure) -> str:
    """Return a figure as a base64-encoded PNG."""
    return base64.b64encode(render_figure(figure, "png")).decode("ascii")


@dataclass(frozen=True)
class Attachment:
    """A file that a page carries for a download: its name, and its content, base64-encoded."""

    name: str
    content: str


def attach_files(paths: Iterable[Path]) -> list[Attachment]:
    """Return files as attachments of a page."""
    return [Attachment(path.name, base64.b64encode(path.read_bytes()).decode("ascii")) for path in paths]


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
    """Render a template of `experiments/templates` with scripts and style, and write it to `path`."""
    scripts = {"plotly": get_plotlyjs(), "page": _read_template("report.js")}
    environment = Environment(
        loader=PackageLoader("experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_replace_controls,
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


def _replace_controls(value: Any) -> Any:
    """Return the text of a value without control characters other than line breaks and tabs."""
    # Scripts and styles of the page, and what templates have rendered, are HTML.
    return value if hasattr(value, "__html__") else str(value).translate(_CONTROLS_OF_PAGES)


def render_markdown(template: str, **content: Any) -> str:
    """Render a Markdown template of `experiments/templates`; filters keep texts of users in their place."""
    environment = Environment(
        loader=PackageLoader("experiments"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["plain"] = escape_markdown
    environment.filters["shell"] = lambda text: shlex.quote(" ".join(text.replace("`", "").split()))
    # JSON is YAML.
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.get_template(template).render(**content)


def list_versions() -> Mapping[str, str]:
    """Return the versions of Python and of the installed packages that results may depend on."""
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
