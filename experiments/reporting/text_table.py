"""Tables as plain text, for the terminal, and as Markdown."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length in aligned columns, a rule under the first, numbers set to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [
        all(not cell or cell[0].isdigit() or cell[0] in "-+" for cell in column[1:]) for column in columns
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
    """Rows of equal length, the first of which is the head, as a Markdown table."""
    head, *body = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
    rule = " | ".join(["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))
