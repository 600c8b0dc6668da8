"""Progress bars of long work: one line that moves on a terminal, a line every half minute in a log file."""

import sys
from typing import Any

from tqdm import tqdm

# At most one line in a log file in this time.
SECONDS_BETWEEN_LINES = 30


class _Lines:
    """Standard error as the stream of tqdm: each new count is a line of its own."""

    def __init__(self) -> None:
        self._count = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        count = line.partition(",")[0]
        if line and count != self._count:
            sys.stderr.write(f"{line}\n")
        self._count = count or self._count

    def flush(self) -> None:
        sys.stderr.flush()


def show_progress(description: str, *, total: int, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Return a progress bar on standard error, for a `with` statement; `update(n)` counts `n` units more."""
    if sys.stderr.isatty():
        return tqdm(desc=description, total=total, initial=initial, unit=f" {unit}")
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=f" {unit}",
        file=_Lines(),
        mininterval=SECONDS_BETWEEN_LINES,
        miniters=1,
        bar_format="{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} elapsed, {remaining} left, "
        "{rate_noinv_fmt}",
    )
