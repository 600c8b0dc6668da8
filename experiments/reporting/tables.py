"""Tables of text, and what they can be written as."""

from dataclasses import dataclass

from experiments.reporting.text_table import format_markdown, format_table


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
        return f"{self.caption}.\n\n{format_markdown([self.header, *self.rows])}"
