"""Reader of questions and references in the rows of a question file, with configurable field names."""

import posixpath
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tasks.base import SPLITS, Split
from experiments.tasks.images import find_written_form
from experiments.tasks.rows import (
    MAX_NAME_CHARS,
    BadRow,
    RowFile,
    describe_value,
    find_field,
    find_fields,
    is_blank,
    read_id,
    read_text,
)
from experiments.tasks.scoring import LETTER_METRICS, check_references
from m3_backbone.turns import Turns, read_turns

Fields = Mapping[str, tuple[str, ...]]

FIELDS: dict[str, tuple[str, ...]] = {
    "question_id": ("question_id", "questionId", "id"),
    "image": ("image", "image_id", "imageId", "imgname", "images"),
    "question": ("text", "question", "query"),
    "references": ("references", "answers", "answer", "label"),
    "kind": ("category", "kind"),
    "split": ("split",),
    "choices": (),
    "context": (),
}
# Fields with a conversation, read if no field has the question or the references.
CONVERSATIONS = ("conversations", "conversation", "messages")
CHOICES = ("choices", "options")
OWN_SPLITS: dict[str, Split] = {
    **{split: split for split in SPLITS},
    "val": "calibration",
    "validation": "calibration",
}
IMAGE_PLACEHOLDER = "<image>"  # the prompt adds one; a second one would need a second image
_LIKE_ANSWERS = re.compile(
    r"(\w+[_ ])?(answers?|references?|labels?|targets?|responses?|outputs?|gold|gt|ground_?truth)",
    re.IGNORECASE,
)


def read_question(value: Any, max_chars: int) -> str:
    """Return a question as text without placeholders of images. Raises BadRow, also if it is empty."""
    text = read_text(value, "question", max_chars)
    if IMAGE_PLACEHOLDER in text:
        text = text.replace(IMAGE_PLACEHOLDER, "").strip()
    if not text.strip():
        raise BadRow("the question is empty")
    return text


def read_references(value: Any, metric: str, num_choices: int | None, max_chars: int) -> tuple[str, ...]:
    """Return the reference answers as text without surrounding white space, as answers are stripped too.

    `value` is text, a number, a list of these, or VQA's list of {"answer": text}. For metrics of option
    letters, an integer is the index of the correct choice, from 0; `num_choices` is None if unknown. Raises
    BadRow, also for references with which no answer could score 1.
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
    try:
        check_references(metric, references)
    except ValueError as error:
        raise BadRow(str(error)) from error
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


def compose_question(text: str, context: Any, choices: Any, max_chars: int) -> str:
    """Return a question as LLaVA composes it: context, question, and one line "A. text" per choice.

    `context` may be blank, `choices` None. Raises BadRow for choices that are not a list of 2 to 26.
    """
    if not is_blank(context):
        text = f"Context: {read_text(context, 'context', max_chars)}\n{text}"
    if choices is not None:
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(string.ascii_uppercase):
            raise BadRow("choices are not a list of 2 to 26")
        for letter, choice in zip(string.ascii_uppercase, choices, strict=False):
            text += f"\n{letter}. {read_id(choice, 'choice', max_chars)}"
    return text


class ReferenceIndex:
    """Index of the rows with references, by question id, or by image and question.

    The latter is for LLaVA's TextVQA question file, whose `question_id` is that of the image: as in LLaVA's
    evaluation, the annotation is found by the image and the question, the first line of the prompt.
    """

    def __init__(self, files: Sequence[RowFile], fields: Fields) -> None:
        self._files = files
        self._fields = fields
        self._by_id: dict[str, tuple[int, int]] = {}
        self._by_question: dict[tuple[str, str], tuple[int, int]] = {}

    def read_files(self) -> list[dict[str, Any]]:
        """Index the rows of all files; returns the rows that cannot be used. Call it before `find`."""
        self._by_id.clear()
        self._by_question.clear()
        bad_rows: list[dict[str, Any]] = []
        for number, file in enumerate(self._files):
            for row in file:
                try:
                    self._add(row.content, (number, row.place))
                except BadRow as error:
                    bad_rows.append({"file": file.path.name, file.unit: row.number, "reason": str(error)})
        return bad_rows

    def find(self, question_id: str, image: str, question: str) -> tuple[str, dict[str, Any]]:
        """Return the id of the row with the references, and the row. Raises BadRow if there is none."""
        first_line = _first_line(question)
        place = (
            self._by_id.get(question_id)
            or self._by_question.get((image, first_line))
            or self._by_question.get((posixpath.splitext(image)[0], first_line))
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
            raise BadRow("no question_id to find its question by")
        if own_id is not None and self._by_id.setdefault(own_id, place) != place:
            raise BadRow(f"references of question_id {own_id!r} came before")

    def _read_id(self, row: dict[str, Any]) -> str | None:
        own_id = find_field(row, self._fields["question_id"])
        return None if is_blank(own_id) else read_id(own_id, "question_id", MAX_NAME_CHARS)


def _first_line(question: str) -> str:
    lines = [line for line in question.split("\n") if not line.startswith("Reference OCR token")]
    return lines[0].strip().lower() if lines else ""


@dataclass(frozen=True)
class Question:
    """Contents of a sample, without the name of the task.

    `own_split` is the split in the row, if any; `kind` the question type; `has_own_id` whether the row has an
    id; `unused` describes content of the row that is not used and may matter.
    """

    sample_id: str
    image_id: str
    own_split: Split | None
    text: str
    references: tuple[str, ...]
    kind: str
    has_own_id: bool = True
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionReader:
    """Reader of the rows of a task. `LlavaJsonl` documents the arguments."""

    metric: str
    fields: Fields
    references: ReferenceIndex | None
    images: Path
    image_name: str
    suffix: str
    capitalize: bool
    max_chars: int

    def read(self, row: dict[str, Any], number: int, file: RowFile) -> Question:
        """Return the question in a row. Raises BadRow with the reason if the row cannot be used."""
        row = {"file": file.path.stem, "folder": file.path.parent.name, **row}
        question_id, has_own_id = self._read_question_id(row, number, file.unit)
        image_id = self._read_image_id(row)
        turns = self._read_turns(row)
        text = self._read_text(row, turns)
        reference_row, reference_turns = row, turns
        if self.references is not None:
            question_id, reference_row = self.references.find(question_id, image_id, text)
            reference_turns = self._read_turns(reference_row)
        choices = find_field(row, CHOICES) or find_field(reference_row, CHOICES)
        return Question(
            sample_id=question_id,
            image_id=image_id,
            own_split=self._read_split(row),
            text=self._complete(text, row),
            references=self._read_references(reference_row, reference_turns, choices),
            kind=self._read_question_type(row, reference_row),
            has_own_id=has_own_id,
            unused=tuple(self._find_unused(row, turns)),
        )

    def _read_question_id(self, row: dict[str, Any], number: int, unit: str) -> tuple[str, bool]:
        """Return (id of a row, True), or (its unit and number, False) if the row has no id."""
        names = self.fields["question_id"]
        if not names:
            return str(number), True
        value = find_field(row, names)
        if is_blank(value):
            # The number alone may be the id of another row.
            return f"{unit}-{number}", False
        return read_id(value, names[0], MAX_NAME_CHARS), True

    def _read_image_id(self, row: dict[str, Any]) -> str:
        image = find_field(row, self.fields["image"])
        if isinstance(image, list) and len(image) > 1:
            raise BadRow(f"{len(image)} images, and a question has one")
        if isinstance(image, list):
            image = image[0] if image else None
        if isinstance(image, float) and image.is_integer():
            image = int(image)
        if image is None:
            raise BadRow("no image")
        if isinstance(image, bool) or not isinstance(image, str | int):
            raise BadRow(f"image is neither a name nor a number but {type(image).__name__}")
        try:
            name = self.image_name.format_map(row | {"image": image})
        except (LookupError, ValueError, AttributeError) as error:
            raise BadRow(f"image_name {self.image_name!r} does not fit the row: {error}") from error
        # Each image must have one id, or it could be in two splits.
        path = posixpath.normpath(read_id(name, "image", MAX_NAME_CHARS))
        return find_written_form(self.images, path)

    def _read_turns(self, row: Mapping[str, Any]) -> Turns | None:
        """Return the conversation in the row, or None. Raises BadRow for a malformed one that is needed."""
        messages = find_field(row, CONVERSATIONS)
        if messages is None:
            return None
        try:
            return read_turns(messages)
        except ValueError as error:
            # A malformed conversation does not matter if fields have both question and references.
            if all(not is_blank(find_field(row, self.fields[name])) for name in ("question", "references")):
                return None
            raise BadRow(str(error)) from error

    def _read_text(self, row: dict[str, Any], turns: Turns | None) -> str:
        value = find_field(row, self.fields["question"])
        if value is None and turns is not None and self._reads_turns("question"):
            if not turns.pairs:
                raise BadRow("the conversation has no turn of a human")
            value = turns.pairs[0][0]
        text = read_question(value, self.max_chars)
        return text.capitalize() if self.capitalize else text

    def _complete(self, text: str, row: dict[str, Any]) -> str:
        context = find_field(row, self.fields["context"])
        choices = find_field(row, self.fields["choices"])
        return compose_question(text, context, choices, self.max_chars) + self.suffix

    def _read_references(self, row: dict[str, Any], turns: Turns | None, choices: Any) -> tuple[str, ...]:
        value = find_field(row, self.fields["references"])
        if value is None and turns is not None and turns.pairs and self._reads_turns("references"):
            value = turns.pairs[0][1]
            if value is None:
                raise BadRow("no reference answer: no turn of the assistant follows the first question")
        num_choices = len(choices) if isinstance(choices, list | dict) else None
        references = read_references(value, self.metric, num_choices, self.max_chars)
        if any(IMAGE_PLACEHOLDER in reference for reference in references):
            raise BadRow(f"a reference answer holds {IMAGE_PLACEHOLDER}, which no answer can")
        return references

    def _reads_turns(self, field: str) -> bool:
        """Whether a field may be read from the conversation: only if the user has not named the field."""
        return self.fields[field] == FIELDS[field]

    def _read_question_type(self, row: dict[str, Any], reference_row: dict[str, Any]) -> str:
        types = (describe_value(find_field(either, self.fields["kind"])) for either in (row, reference_row))
        return next(filter(None, types), "default")

    def _read_split(self, row: dict[str, Any]) -> Split | None:
        value = find_field(row, self.fields["split"])
        if is_blank(value):
            return None
        split = value.strip().lower() if isinstance(value, str) else None
        if split not in OWN_SPLITS:
            raise BadRow(
                f"split is {value!r} and none of {', '.join(OWN_SPLITS)}: "
                "+task.fields.split=null divides the images by fractions"
            )
        return OWN_SPLITS[split]

    def _find_unused(self, row: Mapping[str, Any], turns: Turns | None) -> Iterator[str]:
        """Yield a description of each part of the row that looks relevant and is not used."""
        answer_fields = [
            name for name, value in find_fields(row, self.fields["references"]) if not is_blank(value)
        ]
        if self.references is not None:
            has_answer = turns is not None and any(answer is not None for _, answer in turns.pairs)
            if answer_fields or has_answer:
                yield "reference answers beside those of the file of references, which are used"
        elif answer_fields:
            used = find_field(row, self.fields["references"])
            others = [name for name in answer_fields if find_field(row, (name,)) != used]
            yield from (
                f"other reference answers under {name!r} than under {answer_fields[0]!r}, which are used"
                for name in others
            )
        known = {name.partition(".")[0] for names in self.fields.values() for name in names}
        for name, value in row.items():
            if name not in known and _LIKE_ANSWERS.fullmatch(name) and not is_blank(value):
                yield f"{name[:40]!r}, which is not used (+task.fields.references={name[:40]} would use it)"
        names = self.fields["image"]
        images = [value for _, value in find_fields(row, names) if isinstance(value, list) and len(value) > 1]
        if images and isinstance(find_field(row, names), str | int):
            yield "further images, which are not shown"
        if turns is not None:
            if not is_blank(find_field(row, self.fields["question"])):
                yield "a conversation beside the question, which is not used"
            elif len(turns.pairs) > 1:
                yield "further turns, which are not asked (only the first question is)"
            if turns.num_system:
                yield "a system turn, which is not used (the prompt is the backbone's)"
            if turns.num_stray:
                yield "turns of the assistant that answer no question and are not used"


def merge_fields(overrides: Mapping[str, str | None]) -> Fields:
    """Return `FIELDS` with the names in `overrides` (None: absent). Raises ValueError for unknown fields."""
    for field in overrides:
        if field not in FIELDS:
            raise ValueError(f"unknown field {field!r}: fields are {', '.join(FIELDS)}")
    return FIELDS | {field: () if name is None else (name,) for field, name in overrides.items()}
