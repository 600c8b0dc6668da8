"""`llava_jsonl`: a question file in LLaVA's format, a folder of images, and references; for your own data.

A row is {"question_id": ..., "image": "name.jpg", "text": "question", "category": "question type"}, with the
references under `references`, `answers`, `answer` or `label`, or in a second file under the same
`question_id`. Question and reference may also be a conversation (`m3_backbone.turns`): its first human turn
is the question, and the next turn of the assistant the reference. The annotation files of many benchmarks
differ only in the names of the fields, which are arguments.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
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
from experiments.tasks.images import MAX_PIXELS, UnreadableImage, check_present, find_similar, open_image
from experiments.tasks.questions import CONVERSATIONS, Question, QuestionReader, ReferenceIndex, merge_fields
from experiments.tasks.rows import BadRow, RowFile, list_reasons
from experiments.tasks.scoring import check_metric
from m3_backbone.arguments import PositiveInt, PromptText, checked
from m3_backbone.outcomes.shards import digest_file
from m3_backbone.outcomes.table import CLUSTER

log = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]
# Increased whenever the same files and arguments give other samples.
VERSION = 1
FRACTIONS = {"train": 0.6, "calibration": 0.1, "test": 0.3}


class Place(NamedTuple):
    """Position of a row: number of the file, offset in it, and number of the row."""

    file: int
    offset: int
    number: int


@dataclass(frozen=True)
class Index:
    """Images of each split; for each image, the split in the data (or None) and the places of its rows."""

    images: dict[Split, list[str]]
    own_splits: dict[str, Split | None]
    places: dict[str, list[Place]]


class LlavaJsonl(Task):
    """Questions about the images in a folder.

    Rows that cannot be used are skipped and listed in `skipped`, with their line and the reason. Unused
    content of rows, such as further turns of a conversation, is counted in `notes` and logged once. Only the
    places of the rows are kept in memory, a few hundred bytes each; JSON, unlike JSONL, is kept whole.

    Args:
        questions: a file, several files, or `{split: file or files}` if the files are the division.
        images: the folder of images; paths out of it are refused.
        metric: one of `experiments.tasks.scoring.METRICS`.
        references: file or files of references by `question_id`; None if the question file has them.
        suffix: text appended to every question.
        image_name: path of an image in the folder: a format string over the fields of the row and `image`,
            `file` (name of the question file without extension) and `folder` (name of the folder of that
            file).
        fields: name or dotted path of each field that is named differently from `questions.FIELDS`; None for
            a field that does not exist. A missing `question_id` is replaced by the number of the row. With
            `choices` (and `context`), the question is composed as for LLaVA: context, question, and one line
            "A. text" per choice.
        fractions: fraction of the images in each split, for rows without a split of their own, rounded to
            counts if there are few images (see `experiments.tasks.base`). If rows have train and test only,
            calibration is taken out of train, by its share in train and calibration.
        seed: seed of the division of the images.
        capitalize: first letter upper case, all others lower case, as lmms-eval does for TextVQA and VizWiz.
        official_split: the benchmark's own split that the test questions come from, which tells the published
            values that they can be compared with. It changes no sample.
        max_chars: largest number of characters of a question or reference.
        max_pixels: largest number of pixels of an image.
        apply_orientation: rotate images according to their EXIF data. LLaVA's scripts, which published values
            come from, do not; data sets read through Hugging Face `datasets` since 2024 are rotated.

    Raises OSError for missing files and ValueError for arguments out of range.
    """

    # Option that names the folder, for messages; attributes of every sample besides the question type.
    folder_option = "task.images"
    attributes: Mapping[str, Any] = MappingProxyType({})

    @checked
    def __init__(
        self,
        *,
        name: str,
        questions: Paths | Mapping[str, Paths],
        images: str | Path,
        metric: str,
        references: Paths | None = None,
        suffix: PromptText = "",
        image_name: str = "{image}",
        fields: Mapping[str, str | None] | None = None,
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        capitalize: bool = False,
        official_split: str | None = None,
        max_chars: PositiveInt = 20_000,
        max_pixels: PositiveInt = MAX_PIXELS,
        apply_orientation: bool = False,
    ) -> None:
        check_metric(metric)
        self.name, self.metric, self.images = name, metric, Path(images)
        by_split: dict[Split | None, Paths]
        if isinstance(questions, Mapping):
            by_split = {check_split(split): paths for split, paths in questions.items()}
        else:
            by_split = {None: questions}
        self._field_names = dict(fields or {})
        all_fields = merge_fields(self._field_names)
        question_paths = [path for paths in by_split.values() for path in _listed(paths)]
        reference_paths = [] if references is None else _listed(references)
        files = {"task.questions": question_paths, "task.references": reference_paths}
        check_present(name, files, {self.folder_option: self.images})
        row_keys = {name.partition(".")[0] for names in all_fields.values() for name in names}
        row_keys.update(CONVERSATIONS)
        self._files = [RowFile(path, row_keys) for path in question_paths]
        self._file_splits = [split for split, paths in by_split.items() for _ in _listed(paths)]
        self._prefixes = _distinguish([file.path for file in self._files])
        self._reference_files = [RowFile(path, row_keys) for path in reference_paths]
        self._fractions = check_fractions(fractions or FRACTIONS)
        self._seed, self._official_split = seed, official_split
        self._max_pixels, self._apply_orientation = max_pixels, apply_orientation
        self._reader = QuestionReader(
            metric=metric,
            fields=all_fields,
            references=ReferenceIndex(self._reference_files, all_fields) if reference_paths else None,
            images=self.images,
            image_name=image_name,
            suffix=suffix,
            capitalize=capitalize,
            max_chars=max_chars,
        )
        self.skipped: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @cached_property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        return {
            "version": VERSION,
            "name": self.name,
            "metric": self.metric,
            "suffix": self._reader.suffix,
            "image_name": self._reader.image_name,
            "fields": self._field_names,
            "capitalize": self._reader.capitalize,
            "max_chars": self._reader.max_chars,
            "max_pixels": self._max_pixels,
            "apply_orientation": self._apply_orientation,
            "prefixes": self._prefixes if len(self._files) > 1 else None,
            "questions": [digest_file(file.path)[:16] for file in self._files],
            "references": [digest_file(file.path)[:16] for file in self._reference_files],
        }

    @property
    def division(self) -> dict[str, Any]:
        """JSON object of the settings that divide those images whose rows name no split."""
        return {"fractions": self._fractions, "seed": self._seed, "files": self._file_splits}

    @property
    def official_split(self) -> OfficialSplit:
        """Official split of the test questions; whole if rows or files give every image a split."""
        return OfficialSplit(self._official_split, is_whole=None not in self._index.own_splits.values())

    @property
    def divided_by(self) -> str | None:
        """Name of the argument whose fractions divide the images; None if rows or files name splits."""
        return None if any(self._index.own_splits.values()) else "fractions"

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, image by image. Raises ValueError if no row can be used."""
        check_split(split)
        for image_id in self._index.images[split]:
            for place in self._index.places[image_id]:
                question = self._read(place, self._files[place.file].read(place.offset))
                cluster = self._find_cluster(image_id)
                yield Sample(
                    sample_id=question.sample_id,
                    image_id=image_id,
                    task=self.name,
                    split=split,
                    question=question.text,
                    references=question.references,
                    metric=self.metric,
                    attributes={
                        "kind": question.kind,
                        **self.attributes,
                        **({CLUSTER: cluster} if cluster != image_id else {}),
                    },
                )

    def image(self, image_id: str) -> Image.Image:
        """Return the image at the path `image_id` in the folder. Raises UnreadableImage."""
        try:
            return open_image(
                self.images,
                image_id,
                apply_orientation=self._apply_orientation,
                max_pixels=self._max_pixels,
            )
        except UnreadableImage as error:
            similar = find_similar(self.images, image_id)
            if similar is None:
                raise
            raise UnreadableImage(image_id, f"{error.reason}; there is {similar!r}") from error

    @cached_property
    def _index(self) -> Index:
        """Index of all rows, made in one pass, which also fills `skipped` and `notes`."""
        self.skipped[:] = self._reader.references.read_files() if self._reader.references else []
        places: dict[str, list[Place]] = {}
        own_splits: dict[str, Split | None] = {}
        split_of_cluster: dict[str, Split | None] = {}
        sample_ids: set[str] = set()
        unused: Counter[str] = Counter()
        for file_number, file in enumerate(self._files):
            for row in file:
                place = Place(file_number, row.place, row.number)
                skipped_row: dict[str, Any] = {"file": file.path.name, file.unit: row.number}
                try:
                    if isinstance(row.content, BadRow):
                        raise row.content
                    question = self._read(place, row.content)
                    skipped_row["sample_id"] = question.sample_id
                    if question.sample_id in sample_ids:
                        raise BadRow(
                            "this question_id came before: +task.fields.question_id=null numbers the rows"
                        )
                    cluster = self._find_cluster(question.image_id)
                    own_split = split_of_cluster.setdefault(cluster, question.own_split)
                    if own_split != question.own_split:
                        raise BadRow(f"image {cluster!r} came before with split {own_split}")
                    own_splits[question.image_id] = own_split
                except BadRow as error:
                    self.skipped.append(skipped_row | {"reason": str(error)})
                else:
                    sample_ids.add(question.sample_id)
                    unused.update(question.unused)
                    if not question.has_own_id:
                        unused["no question_id (its number in the file is used instead)"] += 1
                    places.setdefault(question.image_id, []).append(place)
        if not places:
            listed = list_reasons(self.skipped)
            listed = (listed or "they are empty") + self._suggest_fields(listed)
            raise ValueError(f"task {self.name}: no row of {', '.join(self._prefixes)} can be used: {listed}")
        self.notes[:] = [
            f"{count:,} {'row has' if count == 1 else 'rows have'} {content}"
            for content, count in unused.most_common()
        ]
        for note in self.notes:
            log.warning("task %s: %s", self.name, note)
        images = assign_own_splits(
            own_splits,
            self._fractions,
            self._seed,
            carve="calibration" not in own_splits.values(),
            name=self._find_cluster,
        )
        return Index(images, own_splits, places)

    def _suggest_fields(self, reasons: str) -> str:
        """Return advice with the field names of the first row, if no row has some needed field."""
        names_of = {"image": "image", "question": "question", "references": "reference answer"}
        absent = [field for field, name in names_of.items() if f" x no {name}" in reasons]
        contents = (row.content for file in self._files for row in file)
        names = next((list(content) for content in contents if isinstance(content, dict)), [])
        if not absent or not names:
            return ""
        listed = ", ".join(repr(name[:40]) for name in names[:20])
        options = " ".join(f"+task.fields.{field}=NAME" for field in absent)
        return f"; the first row has the fields {listed}: name the right one with {options}"

    def _find_cluster(self, image_id: str) -> str:
        """Return the name that an image shares with those that are divided and resampled with it."""
        return image_id

    def _read(self, place: Place, row: dict[str, Any]) -> Question:
        question = self._reader.read(row, place.number, self._files[place.file])
        prefix = self._prefixes[place.file] + "/" if len(self._files) > 1 else ""
        own_split = self._file_splits[place.file] or question.own_split
        return replace(question, sample_id=f"{self.name}/{prefix}{question.sample_id}", own_split=own_split)


def _listed(paths: Paths) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _distinguish(paths: list[Path]) -> list[str]:
    """Return a short name for each question file. Raises ValueError if two names are the same."""
    for names in ([path.stem for path in paths], [f"{path.parent.name}/{path.stem}" for path in paths]):
        if len(set(names)) == len(names):
            return names
    raise ValueError(
        f"task.questions={', '.join(map(str, paths))}: give each file once, with a name of its own"
    )
