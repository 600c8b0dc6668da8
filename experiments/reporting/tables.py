"""Tables of text for the terminal, CSV, Markdown and LaTeX."""

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_backbone.outcomes.shards import write_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    **{sign: f"\\{sign}" for sign in "&%$#_"},
}

# Control characters, which a terminal would obey, and changes of the direction of writing, as spaces.
CONTROLS = dict.fromkeys([*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], " ")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of equal length as aligned text, with a rule under the first and numbers right-aligned."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [
        all(not cell or cell[0].isdigit() or cell[0] in "-+<" for cell in column[1:]) for column in columns
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def format_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of equal length, the first of which is the header, as a Markdown table.

    HTML in cells is escaped.
    """
    head, *body = (" | ".join(escape_markdown(cell) for cell in row) for row in rows)
    rule = " | ".join(["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))


def format_latex(rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """Return rows of equal length, the first of which is the header, as a LaTeX table with booktabs rules."""
    head, *body = (" & ".join(map(_to_latex_cell, row)) + r" \\" for row in rows)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(caption)}.}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
        r"    \toprule",
        f"    {head}",
        r"    \midrule",
        *(f"    {line}" for line in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Return text escaped for LaTeX."""
    return " ".join("".join(_LATEX.get(sign, sign) for sign in text).split())


def _to_latex_cell(cell: str) -> str:
    """Return a cell escaped for LaTeX: hyphens before numbers are minus signs.

    A bracket at the start is protected, as it would be read as an option of the preceding `\\\\`.
    """
    text = re.sub(r"(^|[ \[])-(?=[\d.])", r"\1$-$", escape_latex(cell))
    return f"{{}}{text}" if text.startswith("[") else text


def escape_markdown(text: str) -> str:
    """Return text on one line, with Markdown and HTML escaped, for a table cell or a part of a line."""
    line = html.escape(" ".join(text.split()), quote=False)
    line = re.sub(r"[\\`*|~]", r"\\\g<0>", line)
    # An underscore within a word needs no escape; a bracket needs one only where a link could follow.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|](?=[(\[:])", r"\\\g<0>", line)


def escape_paragraph(text: str) -> str:
    """Return text escaped as by `escape_markdown` that also starts no heading, list or rule."""
    line = escape_markdown(text)
    return re.sub(r"^([#=+-]+(?=\s|$)|\d+(?=[.)](\s|$)))", _escape_start, line)


def _escape_start(start: re.Match[str]) -> str:
    return f"{start[1]}\\" if start[1].isdigit() else f"\\{start[1]}"


# A number in a table with its unit or interval; a hyphen alone stands for a missing number.
_NUMBER = re.compile(r"-|[-+\N{MINUS SIGN}]?[\d.,]*\d%?( \[[-+\N{MINUS SIGN}\d., ]*\])?")


def escape_csv(cell: str) -> str:
    """Return a cell with an apostrophe before text that a spreadsheet would read as a formula."""
    is_formula = cell.lstrip()[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula and cell.strip() else cell


@dataclass(frozen=True)
class Table:
    """A caption, column names, and rows of text whose first cell is a label; `name` is that of the files.

    Control characters in cells, such as those of question types, become spaces.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str = "table"

    def __post_init__(self) -> None:
        rows = tuple(tuple(cell.translate(CONTROLS) for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)

    def __str__(self) -> str:
        return f"{self.caption}\n{format_table([self.header, *self.rows])}"

    def to_markdown(self) -> str:
        return f"{escape_paragraph(self.caption)}.\n\n{format_markdown([self.header, *self.rows])}"

    def to_csv(self) -> str:
        """Return the cells as CSV without the caption; formulas are escaped (`escape_csv`)."""
        text, rows = io.StringIO(), [self.header, *self.rows]
        csv.writer(text, lineterminator="\n").writerows([escape_csv(cell) for cell in row] for row in rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """Return a LaTeX `table` with its caption, which requires the package booktabs."""
        return format_latex([self.header, *self.rows], self.caption, label=f"tab:{self.name}")


def delete_tables(folder: Path, names: Iterable[str]) -> None:
    """Delete tables of these names in `folder`, of an earlier result in the same place."""
    for name in names:
        for suffix in ("csv", "tex", "md"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write every table into `folder` as CSV, LaTeX and Markdown, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        forms = {"csv": table.to_csv(), "tex": table.to_latex(), "md": table.to_markdown() + "\n"}
        for suffix, text in forms.items():
            write_text(folder / f"{table.name}.{suffix}", text)
