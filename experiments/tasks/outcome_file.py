"""Tables of outcomes made elsewhere: a CSV or Parquet file with score and cost of every option in columns.

An option is whatever can answer a question: a language model, a checkpoint, a setting. It takes the place of
a scale: the options, ordered by mean cost, are the ladder.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.tasks.base import Sample, Split, Task, assign_own_splits, check_fractions
from experiments.tasks.images import UnreadableImage, open_image
from experiments.tasks.outcome_columns import (
    find_options,
    list_names,
    read_names,
    read_number,
    read_rows,
    read_split,
)
from experiments.tasks.rows import MAX_NAME_CHARS, BadRow, read_id, read_text
from m3_backbone.arguments import PositiveFloat, PositiveInt, checked
from m3_backbone.outcomes.options import Options
from m3_backbone.outcomes.shards import digest_file

FRACTIONS = {"train": 0.5, "calibration": 0.2, "test": 0.3}
# Names of the columns of a sample; those that a file lacks are left out, except for the question.
FIELDS = ("question", "sample_id", "image", "image_id", "split", "category", "reference")
# The dearest option costs about this many units, if costs are not whole numbers.
_MOST_UNITS = 10**9


@dataclass(frozen=True)
class Row:
    """A usable row: the sample without its split, and the outcomes of the options in order of the columns."""

    sample: Sample
    own_split: Split | None
    score: tuple[float, ...]
    cost: tuple[float, ...]
    answer: tuple[str, ...]
    confidence: tuple[float, ...]


class OutcomeFile(Task):
    """Samples and outcomes in a CSV or Parquet file.

    Rows that cannot be used are skipped and listed in `skipped`, with their number and the reason. Questions
    about one image belong together: no image is in two splits, and resamples are of images. Without an image
    or image id, rows with the same question belong together.

    Args:
        file: a file that ends in .csv or .parquet.
        options: name of each option -> `{score: COLUMN, cost: COLUMN or number, answer: COLUMN, confidence:
            COLUMN}`, the last two if there are any; None: every NAME for which there are columns `NAME.score`
            and `NAME.cost`. Scores are in [0, 1] or true and false, costs positive.
        columns: names of the columns of `FIELDS` that are named differently; None leaves a column out.
        images: folder of the images that the column `image` names, for predictors that read statistics of
            the image; None: there are no images.
        cost_name: plural noun for the costs, such as dollars, in tables and plots.
        cost_unit: costs are stored as whole numbers of this unit; None: 1 if all of them are whole numbers
            and no two options of a row cost the same, else a billionth of the highest or somewhat more.
        fractions: fraction of the images in each split, if there is no column `split`.
        seed: seed of this division.
        declared: fingerprints that the user declares, of what made the outcomes.
        max_chars: largest number of characters of a question, reference or answer.

    Raises OSError for a missing file, ValueError for missing columns and arguments out of range.
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        file: str | Path,
        options: Mapping[str, Mapping[str, str | float | int]] | None = None,
        columns: Mapping[str, str | None] | None = None,
        images: str | Path | None = None,
        cost_name: str = "units of cost",
        cost_unit: PositiveFloat | None = None,
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        declared: Mapping[str, str | None] | None = None,
        max_chars: PositiveInt = 20_000,
    ) -> None:
        self.name, self.file, self._max_chars = name, Path(file), max_chars
        self._images = None if images is None else Path(images)
        self._cost_name, self._given_unit = cost_name, cost_unit
        self._fractions, self._seed = check_fractions(fractions or FRACTIONS), seed
        self.declared = {key: text for key, text in (declared or {}).items() if text is not None}
        if columns and columns.get("question", "question") is None:
            raise ValueError("columns.question=null: predictors read the question, give its column")
        if unknown := set(columns or {}) - set(FIELDS):
            raise ValueError(f"columns.{min(unknown)}: no such field, give some of {', '.join(FIELDS)}")
        self._renamed = {field: name for field, name in (columns or {}).items() if name != field}
        if self._images is not None and not self._images.is_dir():
            raise NotADirectoryError(f"images={images}: no such folder; give that of the images, or null")
        self._present = read_names(self.file)
        self.columns = find_options(options, self._present, self.file)
        self._check_columns()
        self.skipped: list[dict[str, Any]] = []

    def _check_columns(self) -> None:
        """Raise ValueError that lists the columns of the file if a needed one is missing."""
        needed: list[str | None] = [self._renamed.get("question", "question"), *self._renamed.values()]
        needed += [name for option in self.columns.values() for name in option.names]
        if absent := [name for name in needed if name is not None and name not in self._present]:
            raise ValueError(
                f"{self.file} has no column {absent[0]!r}, only {list_names(self._present)}: name the right "
                "ones with columns.question=COLUMN and options='{NAME: {score: COLUMN, cost: COLUMN}}'"
            )
        if self._images is not None and self._find("image") is None:
            raise ValueError(
                f"images={self._images}: {self.file} has no column image: name it with columns.image=COLUMN"
            )

    def _find(self, field: str) -> str | None:
        """Return the column of a field, or None."""
        name = self._renamed.get(field, field)
        return name if name in self._present else None

    @cached_property
    def content(self) -> dict[str, Any]:
        """JSON object that determines samples and outcomes."""
        return {
            "name": self.name,
            "file": digest_file(self.file)[:16],
            "options": {name: vars(option) for name, option in self.columns.items()},
            "columns": self._renamed,
            "cost_name": self._cost_name,
            "cost_unit": self._given_unit,
            "max_chars": self._max_chars,
        }

    @property
    def division(self) -> dict[str, Any]:
        """JSON object of the settings that divide the images without a split of their own."""
        return {"fractions": self._fractions, "seed": self._seed}

    @property
    def divided_by(self) -> str | None:
        """Name of the argument with the fractions; None if the file has a column with splits."""
        return None if self._find("split") else "fractions"

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, image by image, in the order of the file."""
        for image_id in self._images_of[split]:
            yield from (row.sample for row in self._rows_of[image_id])

    def image(self, image_id: str) -> Image.Image:
        """Return the image of this name in the folder. Raises UnreadableImage."""
        if self._images is None:
            raise UnreadableImage(image_id, "these outcomes were imported without images")
        names = (str(row.sample.attributes.get("image", "")) for row in self._rows_of[image_id])
        name = next(filter(None, names), None)
        if name is None:
            raise UnreadableImage(image_id, "its rows name no image")
        return open_image(self._images, name)

    def score(self, sample: Sample, answer: str) -> float:
        """Raise ValueError: the scores are in the file."""
        raise ValueError(f"the answers of {self.name} were scored where they were made")

    @property
    def has_images(self) -> bool:
        """Whether the outcomes have images."""
        return self._images is not None

    @cached_property
    def ladder(self) -> list[str]:
        """Names of the options, ordered by mean cost over all rows; ties keep the order of the columns."""
        names, means = list(self.columns), self._costs.mean(axis=0)
        return [names[column] for column in np.argsort(means, kind="stable")]

    @property
    def has_confidence(self) -> bool:
        """Whether every option has a column with its confidence."""
        return all(option.confidence is not None for option in self.columns.values())

    @cached_property
    def options(self) -> Options:
        """Names, costs and unit of the options, in order of the ladder."""
        return Options(tuple(self.ladder), self._cost_name, self.cost_unit, self.has_confidence)

    @cached_property
    def cost_unit(self) -> float:
        """Unit in which costs are whole numbers. Raises ValueError if some would be zero or too large."""
        costs = self._costs
        highest, lowest = float(costs.max()), float(costs.min())
        ordered = np.sort(costs, axis=1)
        is_whole = bool((costs == np.round(costs)).all() and (ordered[:, 1:] > ordered[:, :-1]).all())
        if self._given_unit is not None:
            unit = float(self._given_unit)
        elif is_whole and highest <= _MOST_UNITS:
            unit = 1.0
        else:
            unit = 10.0 ** math.ceil(math.log10(highest / _MOST_UNITS))
        if lowest / unit < 0.5 or highest / unit > 2 * _MOST_UNITS:
            raise ValueError(
                f"cost_unit={unit:g}: costs from {lowest:g} to {highest:g} cannot be whole numbers of it "
                f"from 1 to {2 * _MOST_UNITS:,}: give another unit"
            )
        return unit

    def find_rows(self, samples: Sequence[Sample]) -> list[Row]:
        """Return the rows of samples."""
        row_of = self._row_of
        return [row_of[sample.sample_id] for sample in samples]

    def order(self, values: Sequence[Any]) -> list[Any]:
        """Return one value per option, in order of the ladder."""
        names = list(self.columns)
        return [values[names.index(name)] for name in self.ladder]

    def to_units(self, costs: np.ndarray) -> np.ndarray:
        """Return costs `[num_rows, num_options]` in order of the ladder as whole numbers of the unit.

        Scales of equal cost would count as one scale with one answer (`m3_backbone.ladder`), but options have
        different answers: a cost equal to that of the option before is raised by one unit.
        """
        units = np.maximum(np.round(costs / self.cost_unit), 1).astype(np.int64)
        for column in range(1, units.shape[1]):
            units[:, column] += units[:, column] == units[:, column - 1]
        return units

    @cached_property
    def scales(self) -> tuple[int, ...]:
        """Nominal costs of the options: mean costs in units, rounded and strictly increasing."""
        nominal: list[int] = []
        order = [list(self.columns).index(name) for name in self.ladder]
        for units in self.to_units(self._costs[:, order]).mean(axis=0):
            nominal.append(max(round(float(units)), nominal[-1] + 1 if nominal else 1))
        return self.options.name_scales(nominal)

    @cached_property
    def _costs(self) -> np.ndarray:
        """Costs `[num_rows, num_options]` in order of the columns."""
        return np.array([row.cost for rows in self._rows_of.values() for row in rows], dtype=np.float64)

    @cached_property
    def _row_of(self) -> dict[str, Row]:
        return {row.sample.sample_id: row for rows in self._rows_of.values() for row in rows}

    @cached_property
    def _images_of(self) -> dict[Split, list[str]]:
        """Images of each split, in the order of the file; sets `split` of the samples."""
        own = {image_id: rows[0].own_split for image_id, rows in self._rows_of.items()}
        carve = "calibration" not in own.values()
        images = assign_own_splits(own, self._fractions, self._seed, carve=carve)
        number_of = {image_id: number for number, image_id in enumerate(own)}
        return {split: sorted(image_ids, key=number_of.__getitem__) for split, image_ids in images.items()}

    @cached_property
    def _rows_of(self) -> dict[str, list[Row]]:
        """Rows of each image, read in one pass that fills `skipped`. ValueError if no row can be used."""
        self.skipped[:] = []
        rows_of: dict[str, list[Row]] = {}
        sample_ids: set[str] = set()
        for number, values in enumerate(read_rows(self.file, self._list_read()), start=1):
            try:
                row = self._read(values, number)
                if row.sample.sample_id in sample_ids:
                    raise BadRow(f"sample_id {row.sample.sample_id!r} came before")
                rows = rows_of.setdefault(row.sample.image_id, [])
                if rows and rows[0].own_split != row.own_split:
                    raise BadRow(f"image {row.sample.image_id!r} came before with split {rows[0].own_split}")
            except BadRow as error:
                self.skipped.append({"file": self.file.name, "row": number, "reason": str(error)})
                continue
            sample_ids.add(row.sample.sample_id)
            rows.append(row)
        rows_of = {image_id: rows for image_id, rows in rows_of.items() if rows}
        if not rows_of:
            reason = f"row 1: {self.skipped[0]['reason']}" if self.skipped else "it is empty"
            raise ValueError(f"no row of {self.file} can be used ({reason})")
        return rows_of

    def _name_sample(self, own_id: Any) -> str:
        text = read_id(own_id, "sample_id", MAX_NAME_CHARS)
        return text if text.startswith(f"{self.name}/") else f"{self.name}/{text}"

    def _list_read(self) -> list[str]:
        names = [name for field in FIELDS if (name := self._find(field)) is not None]
        return list(dict.fromkeys([*names, *(name for o in self.columns.values() for name in o.names)]))

    def _read(self, values: Mapping[str, Any], number: int) -> Row:
        """Return the content of a row. Raises BadRow."""

        def get(field: str) -> Any:
            name = self._find(field)
            value = None if name is None else values[name]
            return None if value is None or (isinstance(value, str) and not value.strip()) else value

        question = read_text(get("question"), "question", self._max_chars)
        if not question.strip():
            raise BadRow("the question is empty")
        own_id, image, image_id = get("sample_id"), get("image"), get("image_id")
        image_name = "" if image is None else read_id(image, "image", MAX_NAME_CHARS)
        if image_id is None:
            image_id = image_name or None
        if image_id is None:
            image_id = (
                f"question-{hashlib.sha256(question.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
            )
        reference = get("reference")
        references = [] if reference is None else reference if isinstance(reference, list) else [reference]
        category = get("category")
        options = self.columns.values()
        return Row(
            sample=Sample(
                sample_id=self._name_sample(number if own_id is None else own_id),
                image_id=read_id(image_id, "image_id", MAX_NAME_CHARS),
                task=self.name,
                split="train",  # unused: `samples` are asked for by split
                question=question,
                references=tuple(read_text(text, "reference", self._max_chars) for text in references),
                metric="imported",
                attributes={
                    "kind": "default" if category is None else read_id(category, "category", MAX_NAME_CHARS),
                    **({"image": image_name} if image_name else {}),
                },
            ),
            own_split=read_split(get("split")),
            score=tuple(read_number(values[option.score], option.score, 0, 1) for option in options),
            cost=tuple(
                read_number(values[option.cost] if isinstance(option.cost, str) else option.cost, "cost")
                for option in options
            ),
            answer=tuple(
                "" if option.answer is None or values[option.answer] is None
                else read_text(values[option.answer], "answer", self._max_chars)
                for option in options
            ),
            confidence=tuple(
                1.0 if option.confidence is None
                else read_number(values[option.confidence], option.confidence, 0, 1)
                for option in options
            ),
        )  # fmt: skip
