"""A row of a question file made into a question, whatever its benchmark calls the fields."""

import posixpath
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.scorers import check_references
from experiments.tasks.base import SPLITS, Split
from experiments.tasks.references import Fields, ReferenceIndex, read_references
from experiments.tasks.rows import MAX_NAME_CHARS, BadRow, RowFile, find_field, read_id, read_text

FIELDS: dict[str, tuple[str, ...]] = {
    "question_id": ("question_id", "questionId", "id"),
    "image": ("image", "image_id", "imageId", "imgname"),
    "question": ("text", "question", "query", "conversations.0.value"),
    "references": ("references", "answers", "answer", "label", "conversations.1.value"),
    "kind": ("category", "kind"),
    "split": ("split",),
    "choices": (),
    "context": (),
}
CHOICES = ("choices", "options")
OWN_SPLITS: dict[str, Split] = {
    **{split: split for split in SPLITS},
    "val": "calibration",
    "validation": "calibration",
}
IMAGE_PLACEHOLDER = "<image>"  # the prompt puts its own: a second one would ask for a second image


@dataclass(frozen=True)
class Question:
    """All that a sample needs but the task's name and its place in the division."""

    sample_id: str
    image_id: str
    own_split: Split | None
    text: str
    references: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class QuestionReader:
    """What the rows of a task's files mean. The arguments are described at `LlavaJsonl`."""

    metric: str
    fields: Fields
    references: ReferenceIndex | None
    image_name: str
    suffix: str
    capitalize: bool
    max_chars: int

    def read(self, row: dict[str, Any], number: int, file: RowFile) -> Question:
        """The question in a row. Raises BadRow with the reason if there is none."""
        row = {"file": file.path.stem, "folder": file.path.parent.name, **row}
        question_id = self._read_question_id(row, number)
        image_id = self._read_image_id(row)
        text = self._read_text(row)
        answered = row
        if self.references is not None:
            question_id, answered = self.references.find(question_id, image_id, text)
        return Question(
            sample_id=question_id,
            image_id=image_id,
            own_split=self._read_split(row),
            text=self._complete(text, row),
            references=self._read_references(
                answered, find_field(row, CHOICES) or find_field(answered, CHOICES)
            ),
            kind=self._read_kind(row, answered),
        )

    def _read_question_id(self, row: dict[str, Any], number: int) -> str:
        names = self.fields["question_id"]
        return read_id(find_field(row, names), names[0], MAX_NAME_CHARS) if names else str(number)

    def _read_image_id(self, row: dict[str, Any]) -> str:
        image = find_field(row, self.fields["image"])
        if image is None:
            raise BadRow("no image")
        if isinstance(image, bool) or not isinstance(image, str | int):
            raise BadRow(f"image is neither a name nor a number but {type(image).__name__}")
        try:
            name = self.image_name.format_map(row | {"image": image})
        except (LookupError, ValueError, AttributeError) as error:
            raise BadRow(f"image_name {self.image_name!r} does not fit the row: {error}") from error
        # One image must have one id, or it could come to lie in two splits.
        return posixpath.normpath(read_id(name, "image", MAX_NAME_CHARS))

    def _read_text(self, row: dict[str, Any]) -> str:
        text = read_text(find_field(row, self.fields["question"]), "question", self.max_chars)
        if IMAGE_PLACEHOLDER in text:
            text = text.replace(IMAGE_PLACEHOLDER, "").strip()
        if not text.strip():
            raise BadRow("the question is empty")
        return text.capitalize() if self.capitalize else text

    def _complete(self, text: str, row: dict[str, Any]) -> str:
        context = find_field(row, self.fields["context"])
        if context:
            text = f"Context: {read_text(context, 'context', self.max_chars)}\n{text}"
        choices = find_field(row, self.fields["choices"])
        if choices is not None:
            if not isinstance(choices, list) or not 2 <= len(choices) <= len(string.ascii_uppercase):
                raise BadRow("choices are not a list of 2 to 26")
            for letter, choice in zip(string.ascii_uppercase, choices, strict=False):
                text += f"\n{letter}. {read_id(choice, 'choice', self.max_chars)}"
        return text + self.suffix

    def _read_references(self, row: dict[str, Any], choices: Any) -> tuple[str, ...]:
        value = find_field(row, self.fields["references"])
        num_choices = len(choices) if isinstance(choices, list) else None
        references = read_references(value, self.metric, num_choices, self.max_chars)
        if any(IMAGE_PLACEHOLDER in reference for reference in references):
            raise BadRow(f"a reference answer holds {IMAGE_PLACEHOLDER}, which no answer can")
        try:
            check_references(self.metric, references)
        except ValueError as error:
            raise BadRow(str(error)) from error
        return references

    def _read_kind(self, row: dict[str, Any], answered: dict[str, Any]) -> str:
        kind = find_field(row, self.fields["kind"])
        if kind is None:
            kind = find_field(answered, self.fields["kind"])
        return "default" if kind is None else read_id(kind, "kind", MAX_NAME_CHARS)

    def _read_split(self, row: dict[str, Any]) -> Split | None:
        value = find_field(row, self.fields["split"])
        if value is None:
            return None
        if not isinstance(value, str) or value not in OWN_SPLITS:
            raise BadRow(f"split is {value!r} and none of {', '.join(OWN_SPLITS)}")
        return OWN_SPLITS[value]


def merge_fields(overrides: Mapping[str, str | None]) -> Fields:
    """`FIELDS` with some of them named, or with None said to be absent. Raises ValueError for one unknown."""
    for field in overrides:
        if field not in FIELDS:
            raise ValueError(f"unknown field {field!r}: fields are {', '.join(FIELDS)}")
    return FIELDS | {field: () if name is None else (name,) for field, name in overrides.items()}
