"""Page of samples that a backbone answers wrongly, and the link to it in reports of the same labels."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.evaluation.needs import split_by_type
from experiments.reporting.gallery import build_cards
from experiments.reporting.numbers import count_noun, format_percent
from experiments.reporting.page import write_page
from experiments.reporting.tables import Table, write_tables
from experiments.reporting.views import CardViews
from m3_backbone.outcomes.table import OutcomeTable

PAGE = "failures.html"
_MARK = "tokenscale-labels"
# The mark is in the head of a page, before its style.
_HEAD_BYTES = 2000


@dataclass(frozen=True)
class FailuresLink:
    """Where a report refers to failures: their latest page, if there is one, and the command that makes one.

    `folder` is that of the report. The relative path does not lead to the page if the report is opened
    through a symbolic link, such as `outputs/latest`; the script of the report then uses the absolute one.
    """

    page: Path | None
    folder: Path
    command: str

    @property
    def path(self) -> str:
        """Path of the page relative to the folder of the report, quoted as a URL; empty without a page."""
        if self.page is None:
            return ""
        return quote(Path(os.path.relpath(self.page.resolve(), self.folder.resolve())).as_posix())

    @property
    def uri(self) -> str:
        """Absolute URI of the page; empty without a page."""
        return "" if self.page is None else self.page.resolve().as_uri()


def write_failures(
    output: Path,
    table: OutcomeTable,
    picked: Mapping[str, Sequence[int] | np.ndarray],
    column: int,
    *,
    title: str,
    split: str,
    read_image: Callable[[str], Image.Image],
    provenance: Provenance,
    view: Callable[[int, Image.Image], CardViews] | None = None,
) -> None:
    """Write `failures.html` and `tables/` on the wrong answers at the scale of a column.

    `picked` holds indices of the shown samples by question type (`failures_display.pick_failures`). An image
    that cannot be read (OSError) is replaced by the message.
    """
    types = tabulate_failures(table, column)
    write_tables(output / "tables", [types])
    rows = [int(row) for rows_of_type in picked.values() for row in rows_of_type]
    cards = build_cards(
        table, rows, choice=np.full(len(table), column), estimates=None, read_image=read_image, view=view
    )
    write_page(
        output / PAGE,
        "failures.html.j2",
        title=title,
        mark=_MARK,
        labels=digest_labels(table.fingerprints),
        finding=write_finding(table, column, split),
        table=types,
        cards=cards,
        noun="tokens" if table.options is None else "option",
        provenance=provenance,
        fingerprints=dict(table.fingerprints),
        charts=[],
    )


def write_finding(table: OutcomeTable, column: int, split: str) -> str:
    """Return how many answers are wrong at a scale, and how many of them are right at another one."""
    wrong = table.score[:, column] < 1
    rescued = wrong & (table.score.max(axis=1) >= 1)
    share = rescued.sum() / max(int(wrong.sum()), 1)
    questions = count_noun(len(table), "question")
    return (
        f"{format_percent(wrong.mean())}% of {questions} of the {split} split are not answered correctly at "
        f"scale {table.scales[column]}; another scale answers {format_percent(share)}% of these."
    )


def tabulate_failures(table: OutcomeTable, column: int) -> Table:
    """Tabulate number and share of wrong answers at a scale by question type, most frequent first."""
    wrong, right_elsewhere = table.score[:, column] < 1, table.score.max(axis=1) >= 1
    by_type = sorted(split_by_type(table).items(), key=lambda item: -int((wrong & item[1]).sum()))
    rows = []
    for name, is_of_type in [("all questions", np.ones(len(table), bool)), *by_type]:
        of_type = wrong & is_of_type
        rows.append(
            (
                name,
                f"{is_of_type.sum():,}",
                f"{of_type.sum():,}",
                format_percent(of_type.sum() / is_of_type.sum()),
                f"{(of_type & right_elsewhere).sum():,}",
            )
        )
    caption = f"Answers that are not correct at scale {table.scales[column]}, by question type"
    header = ("question type", "questions", "wrong", "wrong, %", "of these right at another scale")
    return Table(caption, header, tuple(rows), name="failures")


def digest_labels(fingerprints: Mapping[str, str]) -> str:
    """Return a digest of the fingerprints of labels, which marks their page."""
    return hashlib.sha256(json.dumps(dict(fingerprints), sort_keys=True).encode()).hexdigest()[:16]


def find_failures(folders: Sequence[Path], fingerprints: Mapping[str, str]) -> Path | None:
    """Return the latest page about these labels in runs directly below `folders`; None if there is none."""
    mark = f'name="{_MARK}" content="{digest_labels(fingerprints)}"'.encode()
    pages = {page.resolve() for folder in folders for page in folder.glob(f"*/{PAGE}")}
    for page in sorted(pages, key=lambda page: page.stat().st_mtime, reverse=True):
        with page.open("rb") as file:
            if mark in file.read(_HEAD_BYTES):
                return page
    return None
