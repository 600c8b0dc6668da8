"""The report: one HTML file that holds everything it shows and loads nothing.

Text from data reaches the page through Jinja's autoescaping, or as JSON with `<`, `>` and `&` escaped. The
page's own Content-Security-Policy allows the two scripts it was written with, by their hashes, and no
address.
"""

import base64
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from plotly.offline import get_plotlyjs

from experiments.evaluation.fronts import Floats, find_smallest_right
from experiments.evaluation.metrics import split_kinds
from experiments.evaluation.needs import LEAST_SAMPLES, find_needed_column, map_attributes
from experiments.reporting.charts import build_chart
from experiments.reporting.findings import Findings
from experiments.reporting.gallery import CATEGORIES, build_cards, pick_samples
from experiments.reporting.numbers import format_tokens
from experiments.reporting.summary import (
    list_tables,
    write_sentences,
)
from m3_backbone.outcomes import OutcomeTable

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


@dataclass(frozen=True)
class KindRow:
    """One kind of question: scores per scale, and what the first predictor chooses at its default price.

    `needed` is the column of the smallest scale within a point of the best (`experiments.evaluation.needs`).
    """

    kind: str
    num_samples: int
    scores: tuple[float, ...]
    needed: int
    chosen: tuple[float, ...]
    tokens: str
    score: float
    smallest_right: float
    too_coarse: float
    too_fine: float
    wrong: float


def write_report(
    path: Path,
    findings: Findings,
    test: OutcomeTable,
    estimates: Floats,
    *,
    title: str,
    picture: bytes,
    read_image: Callable[[str], Image.Image],
    provenance: Provenance,
    per_category: int = 8,
    seed: int = 0,
) -> None:
    """Write the report of what was found.

    `estimates` `[num_samples, num_scales]` are the first predictor's, on the test samples. `picture` is the
    front as a PNG, for paper and for browsers without scripts. `read_image` gives the image of an id; where
    it raises OSError its reason is shown. Of each kind of success and failure `per_category` samples come.
    """
    comparison, others = findings.comparison, findings.others
    first = comparison.predictors[0]
    choice = first.default.choice
    rows = pick_samples(test, choice, per_category=per_category, seed=seed)
    cards = build_cards(test, rows, choice=choice, estimates=estimates, read_image=read_image)
    scripts = {"plotly": get_plotlyjs(), "page": _read_template("report.js")}
    environment = Environment(
        loader=PackageLoader("experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = environment.get_template("report.html.j2").render(
        title=title,
        sentences=write_sentences(findings),
        comparison=comparison,
        name=first.name,
        charts=[build_chart(each) for each in (comparison, *others)],
        accounts=[each.account for each in (comparison, *others)],
        picture=base64.b64encode(picture).decode("ascii"),
        tables=list_tables(findings),
        kinds=tabulate_kinds(test, choice),
        maps=map_attributes(test),
        least_samples=LEAST_SAMPLES,
        cards=cards,
        counts={key: sum(key in card.categories for card in cards) for key in CATEGORIES},
        categories=CATEGORIES,
        provenance=provenance,
        versions=list_versions(),
        fingerprints=dict(test.fingerprints),
        policy=_write_policy(list(scripts.values())),
        style=_read_template("report.css"),
        scripts={name: _check_script(text) for name, text in scripts.items()},
    )
    path.write_text(content, encoding="utf-8", newline="\n")


def tabulate_kinds(test: OutcomeTable, choice: np.ndarray) -> list[KindRow]:
    """All questions, then each kind of question."""
    smallest = find_smallest_right(test.score)
    num_scales = len(test.scales)
    everything = np.arange(len(test))
    chosen_score, chosen_cost = test.score[everything, choice], test.visual_tokens[everything, choice]

    def tabulate(kind: str, rows: np.ndarray) -> KindRow:
        known = rows & (smallest >= 0)
        scores = test.score[rows].mean(axis=0, dtype=np.float64)
        return KindRow(
            kind=kind,
            num_samples=int(rows.sum()),
            scores=tuple(scores.tolist()),
            needed=find_needed_column(scores),
            chosen=tuple((np.bincount(choice[rows], minlength=num_scales) / rows.sum()).tolist()),
            tokens=format_tokens(chosen_cost[rows].mean()),
            score=float(chosen_score[rows].mean(dtype=np.float64)),
            smallest_right=float((known & (choice == smallest)).sum() / rows.sum()),
            too_coarse=float((known & (choice < smallest)).sum() / rows.sum()),
            too_fine=float((known & (choice > smallest)).sum() / rows.sum()),
            wrong=float((rows & (smallest < 0)).sum() / rows.sum()),
        )

    kinds = [tabulate(kind, rows) for kind, rows in split_kinds(test).items()]
    return [tabulate("all questions", np.ones(len(test), dtype=bool)), *kinds]


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
