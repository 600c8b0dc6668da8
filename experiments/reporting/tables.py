"""Tables of text, and what they can be written as."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.reporting.text_table import (
    escape_csv,
    escape_paragraph,
    format_latex,
    format_markdown,
    format_table,
)
from m3_backbone.outcomes.shards import write_text


@dataclass(frozen=True)
class Table:
    """A caption, column names, and rows of text whose first cell is a name. Files are called `name`."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str = "table"

    def __str__(self) -> str:
        return f"{self.caption}\n{format_table([self.header, *self.rows])}"

    def to_markdown(self) -> str:
        return f"{escape_paragraph(self.caption)}.\n\n{format_markdown([self.header, *self.rows])}"

    def to_csv(self) -> str:
        """Cells as they are shown, without the caption; what a spreadsheet would compute is text."""
        text, rows = io.StringIO(), [self.header, *self.rows]
        csv.writer(text, lineterminator="\n").writerows([escape_csv(cell) for cell in row] for row in rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """A `table` with its caption; needs the package booktabs."""
        return format_latex([self.header, *self.rows], self.caption, label=f"tab:{self.name}")


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write every table into `folder` as CSV, LaTeX and Markdown, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        forms = {"csv": table.to_csv(), "tex": table.to_latex(), "md": table.to_markdown() + "\n"}
        for suffix, text in forms.items():
            write_text(folder / f"{table.name}.{suffix}", text)
