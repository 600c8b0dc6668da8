"""Reference answers: what a row may call them, and the row of another file that holds them."""

import math
import posixpath
import string
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tasks.rows import MAX_NAME_CHARS, BadRow, RowFile, find_field, read_id, read_text

Fields = Mapping[str, tuple[str, ...]]


def read_references(value: Any, metric: str, num_choices: int | None, max_chars: int) -> tuple[str, ...]:
    """Reference answers as texts, from a text, a number, a list of these, or VQA's list of {"answer": text}.

    For option letters a whole number is the position of the right choice, from 0. Raises BadRow.
    """
    values = value if isinstance(value, list) else [value]
    references = tuple(_read_reference(item, metric, num_choices, max_chars) for item in values)
    if not any(reference.strip() for reference in references):
        raise BadRow("no reference answer")
    return references


def _read_reference(value: Any, metric: str, num_choices: int | None, max_chars: int) -> str:
    if isinstance(value, Mapping):
        value = value.get("answer")
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if is_number and not isinstance(value, bool):
        if metric != "multiple_choice_letter":
            return read_text(_write_number(value), "reference answer", max_chars)
        limit = len(string.ascii_uppercase) if num_choices is None else num_choices
        if value not in range(limit):
            raise BadRow(f"the answer is choice {value} of {limit}, counted from 0")
        return string.ascii_uppercase[int(value)]
    return read_text(value, "reference answer", max_chars)


def _write_number(value: float) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python writes no integers of more than some thousand digits
        raise BadRow("the reference answer is a number of too many digits") from error


class ReferenceIndex:
    """Where the references of each question are: by question id, or by image and question.

    The latter is for LLaVA's TextVQA question file, whose `question_id` is the image's: as in its own
    evaluation, the annotation is found by image and by the question, the first line of the prompt.
    """

    def __init__(self, files: Sequence[RowFile], fields: Fields) -> None:
        self.bad_rows: list[dict[str, Any]] = []
        self._files = files
        self._fields = fields
        self._by_id: dict[str, tuple[int, int]] = {}
        self._by_question: dict[tuple[str, str], tuple[int, int]] = {}
        for number, file in enumerate(files):
            for row in file:
                try:
                    self._add(row.content, (number, row.place))
                except BadRow as error:
                    where = {"file": file.path.name, file.unit: row.number}
                    self.bad_rows.append(where | {"reason": str(error)})

    def find(self, question_id: str, image: str, question: str) -> tuple[str, dict[str, Any]]:
        """The id that the references are kept under and their row. Raises BadRow if there are none."""
        prompted = _first_line(question)
        place = (
            self._by_id.get(question_id)
            or self._by_question.get((image, prompted))
            or self._by_question.get((posixpath.splitext(image)[0], prompted))
        )
        if place is None:
            raise BadRow("no references for this question")
        row = self._files[place[0]].read(place[1])
        return self._read_id(row) or question_id, row

    def _add(self, row: dict[str, Any] | BadRow, place: tuple[int, int]) -> None:
        if isinstance(row, BadRow):
            raise row
        own_id = self._read_id(row)
        image, question = find_field(row, self._fields["image"]), find_field(row, self._fields["question"])
        if isinstance(question, str) and isinstance(image, str | int):
            self._by_question[str(image), _first_line(question)] = place
        elif own_id is None:
            raise BadRow("no question_id, by which its question could be found")
        if own_id is not None and self._by_id.setdefault(own_id, place) != place:
            raise BadRow(f"references of question_id {own_id!r} came before")

    def _read_id(self, row: dict[str, Any]) -> str | None:
        own_id = find_field(row, self._fields["question_id"])
        return None if own_id is None else read_id(own_id, "question_id", MAX_NAME_CHARS)


def _first_line(question: str) -> str:
    lines = [line for line in question.split("\n") if not line.startswith("Reference OCR token")]
    return lines[0].strip().lower() if lines else ""
