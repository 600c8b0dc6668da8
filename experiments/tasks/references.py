"""Reference answers: what a row may call them, and the row of another file that holds them."""

import posixpath
import string
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tasks.fields import MAX_NAME_CHARS, find_field, is_blank, read_id, read_text
from experiments.tasks.rows import BadRow, RowFile
from experiments.tasks.scoring import LETTER_METRICS

Fields = Mapping[str, tuple[str, ...]]


def read_references(value: Any, metric: str, num_choices: int | None, max_chars: int) -> tuple[str, ...]:
    """Reference answers as texts without outer white space, which no answer has.

    `value` is a text, a number, a list of these, or VQA's list of {"answer": text}. For option letters a
    whole number is the position of the right choice, from 0; `num_choices` is their number, if known. Raises
    BadRow.
    """
    values = value if isinstance(value, list) else [value]
    references = tuple(_read_reference(item, metric, num_choices, max_chars).strip() for item in values)
    if not any(references):
        raise BadRow("no reference answer")
    if metric in LETTER_METRICS and num_choices is not None:
        letters = string.ascii_uppercase[:num_choices]
        for reference in references:
            if len(reference) == 1 and reference.upper() not in letters:
                raise BadRow(
                    f"the answer is {reference!r} and there are {num_choices} choices, A to {letters[-1:]}"
                )
    return references


def _read_reference(value: Any, metric: str, num_choices: int | None, max_chars: int) -> str:
    if isinstance(value, Mapping):
        value = value.get("answer")
    is_position = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if metric not in LETTER_METRICS or not is_position or isinstance(value, bool):
        return read_text(value, "reference answer", max_chars)
    limit = len(string.ascii_uppercase) if num_choices is None else num_choices
    if value not in range(limit):
        raise BadRow(f"the answer is choice {value} of {limit}, counted from 0")
    return string.ascii_uppercase[int(value)]


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
        return None if is_blank(own_id) else read_id(own_id, "question_id", MAX_NAME_CHARS)


def _first_line(question: str) -> str:
    lines = [line for line in question.split("\n") if not line.startswith("Reference OCR token")]
    return lines[0].strip().lower() if lines else ""
