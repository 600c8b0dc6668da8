"""Error messages, all of them side by side: `python tests/test_messages.py` prints them.

A message says what is wrong, where, and the way out: "PLACE or SETTING=VALUE has this fault: do that". It is
one line without a full stop at its end, so that a caller can put it behind a colon or into brackets.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

PACKAGES = ("m3_backbone", "predictor", "experiments")
# Exceptions whose message is a user's to read. Those of `REASONS` are put behind a place by who catches them,
# together with the way out.
READ = {"ValueError", "OSError", "FileNotFoundError", "FileExistsError", "FolderError", "Refusal"}
REASONS = {"BadRow", "UnreadableImage", "damaged"}
# Words of the "instead of" column of the table of terms, in no sense that a message could need.
GIVEN_UP = r"\b(climb\w*|luck|promise[ds]?|set aside|put aside|figures? of merit|account of)\b"


@dataclass(frozen=True)
class Message:
    """A message as the code has it, with `{expression}` where a value is put in."""

    place: str
    exception: str
    text: str


def collect_messages() -> Iterator[Message]:
    """Yield every message that is raised with a text of its own."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
                    continue
                text = _read_text(node.exc.args[-1])
                if text is not None:
                    place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                    yield Message(place, ast.unparse(node.exc.func), text)


def _read_text(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(values):
            return "".join(
                f"{{{ast.unparse(value.value)}}}"
                if isinstance(value, ast.FormattedValue)
                else str(_read_text(value))
                for value in values
            )
        case ast.BinOp(left, ast.Add(), right):
            parts = _read_text(left), _read_text(right)
            return None if None in parts else "".join(map(str, parts))
    return None


def test_messages_have_one_form() -> None:
    faults = []
    messages = list(collect_messages())
    for message in messages:
        text = message.text
        if message.exception not in READ | REASONS:
            continue
        if re.search(r"[^.][.!]$", text) or re.search(r"\n(?!  )", text):
            faults.append(f"{message.place}: ends in a full stop or has several lines: {text}")
        if re.match(r"[A-Z][a-z]", text) and not text.startswith("Lightning"):
            faults.append(f"{message.place}: begins with a capital letter: {text}")
        if re.search(GIVEN_UP, re.sub(r"\{.*?\}", "", text)):
            faults.append(f"{message.place}: has a word that was given up: {text}")
    assert len(messages) > 450
    assert not faults, "\n".join(faults)


if __name__ == "__main__":
    for message in sorted(collect_messages(), key=lambda message: (message.exception, message.place)):
        print(f"{message.exception}  {message.text}  ({Path(message.place)})")
