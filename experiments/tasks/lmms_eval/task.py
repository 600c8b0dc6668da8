"""`lmms_eval`: any task of lmms-eval with a score of each sample, with lmms-eval's own prompts and scores."""

import base64
import binascii
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from experiments.tasks.images import MAX_PIXELS, UnreadableImage
from experiments.tasks.lmms_eval.process import CallRefused, WorkerProcess
from experiments.tasks.questions import read_question
from experiments.tasks.rows import MAX_NAME_CHARS, BadRow, describe_value, list_reasons, read_id, read_text
from m3_backbone.arguments import PositiveFloat, PositiveInt, checked
from m3_backbone.images import open_picture

log = logging.getLogger(__name__)

# Increased whenever the same data and arguments give other samples.
VERSION = 1
FRACTIONS = {"train": 0.6, "calibration": 0.1, "test": 0.3}
# Splits of a task's configuration, and splits here that they become.
_ROLES: dict[str, Split] = {"test": "test", "validation": "calibration", "train": "train"}
_ROWS_PER_CALL = 16
# A task none of whose first rows can be used is refused without reading the others.
_PROBED_ROWS = 64


@dataclass(frozen=True)
class Record:
    """A usable row: its split in lmms-eval and its number there, and what a sample is made of."""

    split: str
    number: int
    sample_id: str
    picture: str
    cluster: str | None
    question: str
    references: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Index:
    """Records of each image, images of each split, and the digest of the content of all usable rows."""

    records: dict[str, list[Record]]
    images: dict[Split, list[str]]
    by_sample: dict[str, Record]
    digest: str


class LmmsEval(Task):
    """A task of lmms-eval, whose code runs in a worker process in lmms-eval's own environment.

    Questions, references and scores are those that lmms-eval computes, with the prompts of its chat models.
    The id of an image is the value of the task's `cluster_key` if these values name the images one to one,
    and otherwise a digest of the pixels that the task shows. The worker starts with the first use and makes
    one pass over all rows, which computes these digests and the fingerprint. Rows that cannot be used are
    skipped with their reason.

    Args:
        name: name of the task in lmms-eval, unless `lmms_name` is given.
        lmms_name: name of the task in lmms-eval, to have several variants of it here; None: `name`.
        python: interpreter of an environment with lmms-eval.
        include_path: folder with task files of one's own; None: there are none.
        data_path: local folder with the data of the task; None: the data set that the task names.
        data_config: configuration of the data set in `data_path`; None: that of the task for a copy of a
            repository of the hub, none for a folder of files.
        splits: splits of the data set as `{train: NAME, validation: NAME, test: NAME}`, some of them; None:
            those that the task names.
        metric: name of the task's metric that scores a sample; None: the first one.
        filter: name of the task's filter of answers; None: the first one.
        aggregate_each: whether a metric without a score of each sample is computed on each sample alone.
        judge_free: True: the metric asks no judge model although its code has one; answers about which it
            would ask count as wrong.
        max_score: largest value of the metric, by which scores are divided.
        references: field of the data, or dotted path, with the reference answers, whose likelihood is
            recorded; None: the target that the task names. Scores do not use it.
        category: field of the data, or dotted path, with the question type; None: there is none.
        fractions, seed: fraction of the images in each split, and seed of the division, for a task without a
            split for training. With train and test only, calibration is taken out of train by its share.
        start_timeout, timeout: seconds for the start, downloads included, and for every other call.
        max_chars, max_pixels: limits of texts and images.

    Raises ValueError for arguments out of range, and, when the worker starts, for a task without a score in
    [0, 1] of each sample, one that asks a judge model, and one without samples that have one image.
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        python: str | Path,
        lmms_name: str | None = None,
        include_path: str | Path | None = None,
        data_path: str | Path | None = None,
        data_config: str | None = None,
        splits: Mapping[str, str] | None = None,
        metric: str | None = None,
        filter: str | None = None,
        aggregate_each: bool = False,
        judge_free: bool = False,
        max_score: PositiveFloat = 1.0,
        references: str | None = None,
        category: str | None = None,
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        official_split: str | None = None,
        start_timeout: PositiveFloat = 3600.0,
        timeout: PositiveFloat = 300.0,
        max_chars: PositiveInt = 20_000,
        max_pixels: PositiveInt = MAX_PIXELS,
    ) -> None:
        for option, folder in (("include_path", include_path), ("data_path", data_path)):
            if folder is not None and not Path(folder).expanduser().is_dir():
                raise NotADirectoryError(f"task.{option}={folder}: no such folder")
        if splits is not None and (not splits.keys() <= _ROLES.keys() or "test" not in splits):
            raise ValueError(f"task.splits={dict(splits)}: give test=NAME, and train or validation besides")
        self.name = name
        self._fractions, self._seed = check_fractions(fractions or FRACTIONS), seed
        self._official_split, self._max_chars, self._max_pixels = official_split, max_chars, max_pixels
        self._settings = {
            "name": name if lmms_name is None else lmms_name,
            "include_path": _resolve(include_path),
            "data_path": _resolve(data_path),
            "data_config": data_config,
            "splits": None if splits is None else dict(splits),
            "metric": metric,
            "filter": filter,
            "aggregate_each": aggregate_each,
            "judge_free": judge_free,
            "max_score": max_score,
            "references": references,
            "category": category,
        }
        self._worker = WorkerProcess(python, self._settings, start_seconds=start_timeout, seconds=timeout)
        self.skipped: list[dict[str, Any]] = []
        self._warned = False

    @cached_property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        description = self._worker.describe()
        without_places = ("include_path", "data_path", "data_config", "splits")
        return {
            "version": VERSION,
            "lmms_eval": description["version"],
            **{key: value for key, value in self._settings.items() if key not in without_places},
            "metric": description["metric"],
            "filter": description["filter"],
            "max_chars": self._max_chars,
            "config": description["config"],
            "rows": self._index.digest,
        }

    @property
    def division(self) -> dict[str, Any]:
        """JSON object of the settings that divide the images."""
        return {"fractions": self._fractions, "seed": self._seed, "splits": self._own_splits}

    @property
    def divided_by(self) -> str | None:
        """Name of the argument whose fractions divide the images; None if the task's splits do."""
        return None if "train" in self._own_splits else "fractions"

    @property
    def official_split(self) -> OfficialSplit:
        """Official split of the test questions; whole if the task's splits are the division."""
        return OfficialSplit(self._official_split, is_whole="train" in self._own_splits)

    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, image by image. Raises ValueError if no row can be used."""
        check_split(split)
        metric = str(self._worker.describe()["metric"])
        for image_id in self._index.images[split]:
            for record in self._index.records[image_id]:
                yield Sample(
                    sample_id=record.sample_id,
                    image_id=image_id,
                    task=self.name,
                    split=split,
                    question=record.question,
                    references=record.references,
                    metric=metric,
                    attributes={"kind": record.kind},
                )

    def image(self, image_id: str) -> Image.Image:
        """Return the image with this id. Raises UnreadableImage."""
        record = self._index.records[image_id][0]
        try:
            text = self._worker.call("image", split=record.split, number=record.number)
            content = base64.b64decode(text, validate=True)
        except (CallRefused, binascii.Error) as error:
            raise UnreadableImage(image_id, str(error)) from error
        return open_picture(content, name=image_id, max_pixels=self._max_pixels)

    def score(self, sample: Sample, answer: str) -> float:
        """Return the score that lmms-eval gives an answer. Raises ValueError if it gives none."""
        record = self._index.by_sample[sample.sample_id]
        score = self._worker.call("score", split=record.split, number=record.number, answer=answer)
        if score is None and not self._warned:
            self._warned = True
            log.warning(
                "task %s: lmms-eval would ask a judge model about answers that its rules cannot read, such "
                "as that of %s: they count as wrong",
                self.name,
                sample.sample_id,
            )
        return 0.0 if score is None else float(score)

    def close(self) -> None:
        """End the worker process; a later use starts another one."""
        self._worker.close()

    @cached_property
    def _own_splits(self) -> dict[Split, str]:
        """Splits of the data set that are the division, or only that of `test` if `fractions` divides it."""
        splits = {role: name for role, (name, _) in self._worker.describe()["splits"].items()}
        if "test" not in splits and "validation" in splits:  # as lmms-eval chooses what it evaluates
            splits["test"] = splits.pop("validation")
        if "test" not in splits:
            raise ValueError(
                f"task {self.name}: no split of its data is evaluated: give task.splits.test=NAME"
            )
        own_splits: dict[Split, str] = {}
        for role, own in _ROLES.items():
            if role in splits and splits[role] not in own_splits.values():
                own_splits[own] = splits[role]
        if "train" not in own_splits:
            log.info(
                "task %s has no split for training: the images of its split %s are divided by task.fractions",
                self.name,
                own_splits["test"],
            )
            return {"test": own_splits["test"]}
        return own_splits

    @cached_property
    def _index(self) -> Index:
        """Index of all rows, made in one pass that also fills `skipped`."""
        self.skipped[:] = []
        limit = self._worker.describe()["max_new_tokens"]
        if limit is not None:
            log.info("lmms-eval lets models answer %s with at most %s tokens", self.name, limit)
        records, digest = self._read_rows()
        if len(records) > 1 and len({record.references for record in records}) == 1:
            log.warning(
                "task %s has the reference %s in every row: give the field with answers as task.references",
                self.name,
                list(records[0].references),
            )
        name_of = _name_images(records)
        by_image: dict[str, list[Record]] = {}
        own_splits: dict[str, Split | None] = {}
        own_of: dict[str, Split] = {name: own for own, name in self._own_splits.items()}
        for record in records:
            image_id = name_of[record.picture]
            own_split = own_of[record.split] if "train" in self._own_splits else None
            if own_splits.setdefault(image_id, own_split) != own_split:
                reason = f"its image is in {own_splits[image_id]} too"
                self.skipped.append({"split": record.split, "row": record.number + 1, "reason": reason})
                continue
            by_image.setdefault(image_id, []).append(record)
        images = assign_own_splits(
            own_splits, self._fractions, self._seed, carve="calibration" not in self._own_splits
        )
        kept = {record.sample_id: record for group in by_image.values() for record in group}
        return Index(by_image, images, kept, digest)

    def _read_rows(self) -> tuple[list[Record], str]:
        """Return the usable rows, those of test first, and the digest of their content."""
        from tqdm import tqdm

        sizes = dict(self._worker.describe()["splits"].values())
        records: list[Record] = []
        digest = hashlib.sha256()
        total = sum(sizes[name] for name in self._own_splits.values())
        with tqdm(total=total, desc=f"reading {self.name}", unit=" rows", disable=None) as bar:
            for name in self._own_splits.values():
                for first in range(0, sizes[name], _ROWS_PER_CALL):
                    rows = self._worker.call("rows", split=name, first=first, count=_ROWS_PER_CALL)
                    for number, row in enumerate(rows, first):
                        try:
                            record = self._read_row(row, name, number)
                        except BadRow as error:
                            self.skipped.append({"split": name, "row": number + 1, "reason": str(error)})
                            continue
                        records.append(record)
                        content = [record.sample_id, record.picture, record.question, record.references]
                        digest.update(json.dumps([*content, record.kind, row["document"]]).encode())
                    bar.update(len(rows))
                    if not records and len(self.skipped) >= _PROBED_ROWS:
                        raise self._refuse()
        if not records:
            raise self._refuse()
        return records, digest.hexdigest()[:16]

    def _refuse(self) -> ValueError:
        reasons = list_reasons(self.skipped) or "there is none"
        return ValueError(f"task {self.name}: no row can be used: {reasons}")

    def _read_row(self, row: Mapping[str, Any], split: str, number: int) -> Record:
        """Return the record of a row. Raises BadRow."""
        if "error" in row:
            raise BadRow(str(row["error"]))
        references = tuple(read_text(text, "a reference", self._max_chars) for text in row["references"])
        part = f"{split}/" if "train" in self._own_splits else ""
        return Record(
            split=split,
            number=number,
            sample_id=f"{self.name}/{part}row-{number + 1}",
            picture=str(row["image"]),
            cluster=None if row["cluster"] is None else read_id(row["cluster"], "cluster", MAX_NAME_CHARS),
            question=read_question(row["question"], self._max_chars),
            references=references,
            kind=describe_value(row["category"]) or "default",
        )


def _name_images(records: list[Record]) -> dict[str, str]:
    """Return the image id of each picture: its cluster if clusters and pictures are one to one."""
    pairs = {(record.picture, record.cluster) for record in records}
    clusters = {cluster for _, cluster in pairs if cluster is not None}
    name_of = {picture: cluster for picture, cluster in pairs if cluster is not None}
    if len(pairs) == len(clusters) == len(name_of):
        return name_of
    return {picture: picture for picture, _ in pairs}


def _resolve(folder: str | Path | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().resolve())
