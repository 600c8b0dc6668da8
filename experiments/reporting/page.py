"""Pages: one HTML file each, that holds everything it shows and loads nothing.

Text from data reaches a page through Jinja's autoescaping, or as JSON with `<`, `>` and `&` escaped. The
page's own Content-Security-Policy allows the two scripts it was written with, by their hashes, and no
address.
"""

import base64
import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from m3_backbone.outcomes.shards import write_text

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


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from: the command, its configuration (YAML), and when it was run."""

    command: str
    config: str
    made: str


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
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
