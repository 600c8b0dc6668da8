"""HTML report of an evaluation: predictors, question types and a gallery of samples on one page."""

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.command_line.running import Provenance
from experiments.evaluation.comparison import PolicyResult
from experiments.evaluation.fronts import Floats
from experiments.evaluation.metrics import smallest_right, too_coarse, too_fine
from experiments.evaluation.needs import LEAST_SAMPLES, describe_left_out, map_attributes, split_by_type
from experiments.reporting.calibration_display import list_dots
from experiments.reporting.draw import draw_page
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.failures import FailuresLink
from experiments.reporting.findings import Findings, describe_record, write_sentences
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.gallery import CATEGORIES, Card, Gallery, build_cards, pick_samples
from experiments.reporting.guarantees import write_guarantee
from experiments.reporting.numbers import format_tokens
from experiments.reporting.operating_points import find_default_budget, list_points, tabulate_points
from experiments.reporting.page import attach_files, write_page
from experiments.reporting.tables import Table
from experiments.reporting.type_tables import (
    count_confusion_rows,
    list_type_tables,
    shorten_map,
    tabulate_types,
)
from experiments.tasks.sizes import is_too_few
from m3_backbone.outcomes.table import OutcomeTable

# Names of the tables that are folded, by section. The parts of costs are folded too.
_FOLDED = {"merits": ("merits", "savings", "tests", "luck"), "tables": ("differences", "coinciding", "costs")}
_PARTS = "parts_"


@dataclass(frozen=True)
class Figures:
    """Figures of a report: the front as PNG, and the files for downloads by figure."""

    picture: bytes
    files: Mapping[str, Iterable[Path]] = field(default_factory=dict)


def list_links(tables: Collection[str], *, has_estimates: bool) -> list[tuple[str, str]]:
    """Return anchors and titles of the sections of a report with these tables."""
    sections = {
        "front": "Front",
        "merits": "Metrics",
        "tables": "Tables",
        "types": "Question types",
        "errors": "Errors",
        "calibration": "Calibration" if has_estimates else "",
        "guarantee": "Guarantee" if "guarantee" in tables else "",
        "published": "Published values" if "published" in tables else "",
        "gallery": "Gallery",
        "definitions": "Definitions",
        "run": "This run",
    }
    return [(anchor, words) for anchor, words in sections.items() if words]


def _build_gallery(
    findings: Findings, test: OutcomeTable, estimates: Floats, gallery: Gallery
) -> Sequence[Card]:
    """Return the cards of the gallery, with the first policy and the cascades that start from it."""
    policies = findings.comparison.policies
    first = policies[0]
    choice = first.default.choice
    rows = pick_samples(test, choice, per_category=gallery.per_category, seed=gallery.seed)
    cascades = {
        result.name: result.default
        for result in policies
        if findings.starts_from.get(result.name) == first.name
    }
    return build_cards(
        test,
        rows,
        choice=choice,
        estimates=estimates,
        read_image=gallery.read_image,
        view=gallery.view,
        cascades=cascades,
    )


def _fold(tables: Mapping[str, Table]) -> dict[str, list[Table]]:
    """Return the folded tables of each section."""
    folded = {
        section: [tables[name] for name in names if name in tables] for section, names in _FOLDED.items()
    }
    folded["tables"] += [table for name, table in tables.items() if name.startswith(_PARTS)]
    return folded


def _list_shares(policy: PolicyResult) -> dict[str, float]:
    """Return shares of samples with the smallest sufficient, a coarser or a finer scale."""
    return {
        metric.name: float(share.value)
        for metric in (smallest_right, too_coarse, too_fine)
        if (share := policy.find(metric)) is not None
    }


def _list_reliability(policy: PolicyResult, scales: Sequence[int]) -> list[dict[str, Any]]:
    """Return the dots of the reliability diagram of each scale; empty for a policy without estimates."""
    if policy.reliability is None:
        return []
    return [
        {"scale": scale, "dots": list_dots(policy.reliability, column)} for column, scale in enumerate(scales)
    ]


def write_report(
    path: Path,
    findings: Findings,
    test: OutcomeTable,
    estimates: Floats,
    *,
    title: str,
    figures: Figures,
    gallery: Gallery,
    provenance: Provenance,
    failures: FailuresLink | None = None,
) -> list[Table]:
    """Write the report of the findings, and return the tables that only the report has.

    `estimates` `[num_samples, num_scales]` are the first predictor's on the test samples. The picture of
    `figures` is for paper and for browsers without scripts; its files are those of `front`, `granularity` and
    `calibration`. `failures` says where the report links to images with wrong answers.
    """
    comparison, others = findings.comparison, findings.others
    first = comparison.policies[0]
    types, num_types = tabulate_types(test, first.default.choice), len(split_by_type(test))
    cards = _build_gallery(findings, test, estimates, gallery)
    maps = [shorten_map(need_map, {row.question_type for row in types}) for need_map in map_attributes(test)]
    confusion = count_confusion_rows(first.default.confusion, comparison.scales)
    points = list_points(findings)
    page_tables = [
        tabulate_points(points, findings),
        *list_type_tables(
            types, maps, confusion, comparison.scales, name=first.name, unit=comparison.measure.unit
        ),
    ]
    tables = {table.name: table for table in [*list_tables(findings), *page_tables]}
    write_page(
        path,
        "report.html.j2",
        title=title,
        sentences=write_sentences(findings),
        comparison=comparison,
        name=first.name,
        charts=[draw_page(plot_comparison(in_measure)) for in_measure in (comparison, *others)],
        cost_measures=[in_measure.measure for in_measure in (comparison, *others)],
        picture=base64.b64encode(figures.picture).decode("ascii"),
        links=list_links(tables, has_estimates=first.reliability is not None),
        tables=tables,
        folded=_fold(tables),
        map_tables=[table for table in page_tables if table.name.startswith("needed_by_")],
        points=points,
        start=format_tokens(find_default_budget(first, findings)),
        files={name: attach_files(paths) for name, paths in figures.files.items()},
        failures=failures,
        is_too_few=is_too_few(comparison.num_images),
        banners=findings.banners,
        shares=_list_shares(first),
        confusion=confusion,
        reliability=_list_reliability(first, comparison.scales),
        guarantee=write_guarantee(findings.guarantees, comparison.measure.noun)
        if findings.guarantees
        else "",
        record=findings.record,
        record_sentence=describe_record(findings.record) if findings.record else "",
        types=types,
        left_out=describe_left_out(num_types, "metrics.json holds the scores of all"),
        maps=maps,
        least_samples=LEAST_SAMPLES,
        cards=cards,
        counts={key: sum(key in card.categories for card in cards) for key in CATEGORIES},
        categories=CATEGORIES,
        provenance=provenance,
        fingerprints=dict(test.fingerprints),
    )
    return page_tables
