"""`hf_dataset`: questions and images of a Hugging Face data set, from the hub or from local files."""

import hashlib
import json
import logging
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from experiments.tasks.base import (
    OfficialSplit,
    Sample,
    Split,
    Task,
    assign_own_splits,
    check_fractions,
    check_split,
)
from experiments.tasks.hf_source import HfSource, digest_image, find_content
from experiments.tasks.images import MAX_PIXELS, UnreadableImage
from experiments.tasks.questions import compose_question, read_question, read_references
from experiments.tasks.rows import (
    MAX_NAME_CHARS,
    BadRow,
    describe_value,
    find_field,
    is_blank,
    list_reasons,
    read_id,
)
from experiments.tasks.scoring import LETTER_METRICS, check_metric
from m3_backbone.arguments import PositiveInt, PromptText, checked
from m3_backbone.images import open_picture

log = logging.getLogger(__name__)

# Increased whenever the same data and arguments give other samples.
VERSION = 1
FRACTIONS = {"train": 0.6, "calibration": 0.1, "test": 0.3}
# Of an image in several splits of the data set, the rows in the first of these are kept.
_PRECEDENCE: tuple[Split, ...] = ("test", "calibration", "train")


class Place(NamedTuple):
    """Position of a row: its own split (None if it is divided by fractions), and its number."""

    split: Split | None
    number: int


@dataclass(frozen=True)
class Index:
    """Rows of each image, images of each split, and the digest of the content of all usable rows."""

    places: dict[str, list[Place]]
    images: dict[Split, list[str]]
    digest: str


class HfDataset(Task):
    """Questions about the images of a data set, with the columns named by the user.

    The id of an image is the digest of its bytes, as data sets repeat an image in every row about it. One
    pass over all rows computes these ids, and the fingerprint, which is that of the content: it does not
    depend on where the data lie. Rows that cannot be used are skipped with their reason.

    Args:
        path, config, revision: see `hf_source.HfSource`.
        split: split of the data set whose images are divided by `fractions`; None if it has only one; or
            `{train: NAME, calibration: NAME, test: NAME}`, some of them, if its splits are the division.
        question, answer, image: columns, or dotted paths into them.
        choices: column with a list of choices, or list of columns with one each; None: there are none. They
            are appended to the question as for LLaVA, and an answer that is the text of a choice, or its
            number from 0, becomes its letter.
        context, question_id, category: further columns; None: there are none.
        metric: one of `experiments.tasks.scoring.METRICS`.
        image_folder: folder of images that are paths; None: the folder of the local data.
        suffix: text appended to every question.
        fractions, seed: fraction of the images in each split, and seed of the division. With own splits
            train and test only, calibration is taken out of train by its share.
        max_chars, max_pixels, max_image_bytes: limits of texts and images.
        apply_orientation: rotate images by their EXIF data, as `datasets` does when it decodes them.

    Raises ValueError for columns that do not exist and arguments out of range, OSError for missing folders.
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        metric: str,
        question: str = "question",
        answer: str = "answer",
        image: str = "image",
        choices: str | Sequence[str] | None = None,
        context: str | None = None,
        question_id: str | None = None,
        category: str | None = None,
        config: str | None = None,
        split: str | Mapping[str, str] | None = None,
        revision: str | None = None,
        image_folder: str | Path | None = None,
        suffix: PromptText = "",
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        official_split: str | None = None,
        max_chars: PositiveInt = 20_000,
        max_pixels: PositiveInt = MAX_PIXELS,
        max_image_bytes: PositiveInt = 1 << 26,
        apply_orientation: bool = True,
    ) -> None:
        check_metric(metric)
        self.name, self.metric, self.suffix = name, metric, suffix
        optional = {"context": context, "question_id": question_id, "category": category}
        self._fields = {"question": question, "answer": answer, "image": image}
        self._fields |= {field: column for field, column in optional.items() if column is not None}
        self._choices = [choices] if isinstance(choices, str) else list(choices or ())
        self._has_choice_list = isinstance(choices, str)
        self._fractions, self._seed = check_fractions(fractions or FRACTIONS), seed
        self._revision, self._official_split = revision, official_split
        self._max_chars, self._max_pixels, self._max_image_bytes = max_chars, max_pixels, max_image_bytes
        self._apply_orientation = apply_orientation
        local = Path(path).expanduser()
        if image_folder is not None and not Path(image_folder).is_dir():
            raise NotADirectoryError(f"task.image_folder={image_folder}: no such folder")
        own_folder = local if local.is_dir() else local.parent if local.is_file() else None
        self._image_folder = own_folder if image_folder is None else Path(image_folder)
        own_splits: dict[Split | None, str | None]
        if isinstance(split, Mapping):
            given = {check_split(own): text for own, text in split.items()}
            own_splits = {own: given[own] for own in _PRECEDENCE if own in given}
        else:
            own_splits = {None: split}
        self._own_splits = own_splits
        self._sources = {own: HfSource(str(path), config, text, revision) for own, text in own_splits.items()}
        for source in self._sources.values():
            self._select(source)
        self.skipped: list[dict[str, Any]] = []

    def _select(self, source: HfSource) -> None:
        """Keep the needed columns. Raises ValueError that lists the columns if one is missing."""
        options = [*self._fields.items(), *(("choices", column) for column in self._choices)]
        for field, column in options:
            name = column if field == "image" else _head(column, source.columns)
            if name not in source.columns:
                listed = ", ".join(repr(name[:60]) for name in source.columns[:40])
                raise ValueError(
                    f"task.{field}={column}: {source.path} has no such column: give one of {listed}"
                )
        texts = [_head(column, source.columns) for field, column in options if field != "image"]
        source.select(self._fields["image"], list(dict.fromkeys(texts)))

    @property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        return {
            "version": VERSION,
            "name": self.name,
            "metric": self.metric,
            "suffix": self.suffix,
            "fields": self._fields,
            "choices": self._choices,
            "revision": self._revision,
            "max_chars": self._max_chars,
            "max_pixels": self._max_pixels,
            "max_image_bytes": self._max_image_bytes,
            "apply_orientation": self._apply_orientation,
            "rows": self._index.digest,
        }

    @property
    def division(self) -> dict[str, Any]:
        """JSON object of the settings that divide the images."""
        own_splits = {str(own): text for own, text in self._own_splits.items() if own is not None}
        return {"fractions": self._fractions, "seed": self._seed, "splits": own_splits}

    @property
    def divided_by(self) -> str | None:
        """Name of the argument whose fractions divide the images; None if the data set's splits do."""
        return "fractions" if None in self._own_splits else None

    @property
    def official_split(self) -> OfficialSplit:
        """Official split of the test questions; whole if the data set's splits are the division."""
        return OfficialSplit(self._official_split, is_whole=None not in self._own_splits)

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, image by image. Raises ValueError if no row can be used."""
        check_split(split)
        for image_id in self._index.images[split]:
            for place in self._index.places[image_id]:
                texts = self._sources[place.split].read_texts(place.number)
                question, references = self._read(texts)
                yield Sample(
                    sample_id=self._name_sample(texts, place),
                    image_id=image_id,
                    task=self.name,
                    split=split,
                    question=question,
                    references=references,
                    metric=self.metric,
                    attributes={"kind": self._read_kind(texts)},
                )

    def image(self, image_id: str) -> Image.Image:
        """Return the image with this digest. Raises UnreadableImage."""
        place = self._index.places[image_id][0]
        stored = self._sources[place.split].read_image(place.number)
        try:
            content = find_content(stored, self._image_folder, self._max_image_bytes)
        except BadRow as error:
            raise UnreadableImage(image_id, str(error)) from error
        if isinstance(content, Path) and digest_image(content) != image_id:
            raise UnreadableImage(image_id, f"the file {content.name!r} has changed since the rows were read")
        return open_picture(
            content,
            name=image_id,
            apply_orientation=self._apply_orientation,
            max_pixels=self._max_pixels,
        )

    @cached_property
    def _index(self) -> Index:
        """Index of all rows, made in one pass that also fills `skipped`."""
        from tqdm import tqdm

        self.skipped[:] = []
        places: dict[str, list[Place]] = {}
        own_splits: dict[str, Split | None] = {}
        sample_ids: set[str] = set()
        digest = hashlib.sha256()
        for own_split, source in self._sources.items():
            rows = tqdm(source, total=len(source), desc=f"reading {self.name}", unit=" rows", disable=None)
            for number, (stored, texts) in enumerate(rows):
                place = Place(own_split, number)
                try:
                    image_id = digest_image(find_content(stored, self._image_folder, self._max_image_bytes))
                    content = self._read(texts)
                    sample_id = self._name_sample(texts, place)
                    if sample_id in sample_ids:
                        raise BadRow("this question_id came before: task.question_id=null numbers the rows")
                    if own_splits.setdefault(image_id, own_split) != own_split:
                        raise BadRow(f"its image is in {own_splits[image_id]} too")
                except (BadRow, UnreadableImage) as error:
                    row = {"row": number + 1, "reason": str(error)}
                    self.skipped.append(row if own_split is None else {"split": own_split, **row})
                    continue
                sample_ids.add(sample_id)
                places.setdefault(image_id, []).append(place)
                # What a sample is made of, wherever it lies in the data.
                parts = json.dumps([sample_id, image_id, content, self._read_kind(texts), own_split])
                digest.update(parts.encode())
        if not places:
            raise ValueError(
                f"task {self.name}: no row can be used: {list_reasons(self.skipped) or 'it is empty'}"
            )
        carve = "calibration" not in self._own_splits
        images = assign_own_splits(own_splits, self._fractions, self._seed, carve=carve)
        return Index(places, images, digest.hexdigest()[:16])

    def _read(self, texts: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the complete question and the references of a row. Raises BadRow."""
        text = read_question(self._get(texts, "question"), self._max_chars)
        choices = self._read_choices(texts)
        question = compose_question(text, self._get(texts, "context"), choices, self._max_chars) + self.suffix
        answer = self._get(texts, "answer")
        if self.metric in LETTER_METRICS and choices and isinstance(answer, str) and answer in choices:
            answer = string.ascii_uppercase[choices.index(answer)]
        num_choices = len(choices) if choices else None
        return question, read_references(answer, self.metric, num_choices, self._max_chars)

    def _read_choices(self, texts: Mapping[str, Any]) -> list[Any] | None:
        if not self._choices:
            return None
        if self._has_choice_list:
            value = find_field(texts, tuple(self._choices))
            return list(value) if isinstance(value, list) and value else None
        values = [find_field(texts, (column,)) for column in self._choices]
        return [value for value in values if not is_blank(value)] or None

    def _get(self, texts: Mapping[str, Any], field: str) -> Any:
        return find_field(texts, (self._fields[field],)) if field in self._fields else None

    def _read_kind(self, texts: Mapping[str, Any]) -> str:
        return describe_value(self._get(texts, "category")) or "default"

    def _name_sample(self, texts: Mapping[str, Any], place: Place) -> str:
        """Return the id of a sample: that of the row, or else its number; unique over the splits."""
        own_id = self._get(texts, "question_id")
        text = (
            f"row-{place.number + 1}" if is_blank(own_id) else read_id(own_id, "question_id", MAX_NAME_CHARS)
        )
        return "/".join([self.name, *([place.split] if place.split else []), text])


def _head(column: str, columns: Sequence[str]) -> str:
    """Return the column that a name or a dotted path begins with."""
    return column if column in columns else column.partition(".")[0]
