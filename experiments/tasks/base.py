"""What a task is: an iterable of samples, each with its scorer, and the images they ask about."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from PIL import Image

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Sample:
    """One (image, question, reference answers, metric).

    `question` is the complete text that the model is asked, suffix included. `metric` names one of
    `experiments.tasks.scorers.METRICS`. `attributes` (kind of question, number of items, ...) are for
    analysis only: no predictor sees them.
    """

    sample_id: str
    image_id: str
    task: str
    split: Split
    question: str
    references: tuple[str, ...]
    metric: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OfficialSplit:
    """The benchmark's own split that the test samples come from (or None), and whether they are all of it."""

    name: str | None = None
    is_whole: bool = False


@runtime_checkable
class Task(Protocol):
    """Samples by split, and their images by id. No image is in two splits.

    `fingerprint` is a hex digest of the data and of every choice that changes a sample, the division into
    splits excepted; the pixels of images in a folder enter it by name only, so that a fingerprint costs no
    pass over the images.
    `set_aside` holds what could not become a sample, as `{"sample_id" | "line": ..., "reason": ...}`; it is
    complete once the samples of every split have been read. A task that is a published benchmark may have a
    property `official_split`, an `OfficialSplit` (see `find_official_split`).

    Further properties that a task may have: `content`, a JSON object of what its samples are made of, whose
    digest is the fingerprint (`digest_content`), so that messages can name the argument that differs;
    `division`, a JSON object of the choices that divide the images, which can then change without anything
    being labelled again; `image_set`, the name of the collection of images, if it is not `name`.
    """

    name: str
    set_aside: list[dict[str, Any]]

    @property
    def fingerprint(self) -> str: ...

    def samples(self, split: Split) -> Iterator[Sample]:
        """The samples of a split, always in the same order, those of one image one after the other."""
        ...

    def image(self, image_id: str) -> Image.Image:
        """An RGB image. Raises `images.UnreadableImage` (an OSError) with the reason."""
        ...


def find_official_split(task: Task, limit: int | None) -> OfficialSplit:
    """The official split that the test samples come from, of which `limit` images at most were labelled."""
    official_split: OfficialSplit = getattr(task, "official_split", OfficialSplit())
    return replace(official_split, is_whole=official_split.is_whole and limit is None)


def find_content(task: Task) -> Mapping[str, Any]:
    """What the data of a task are made of; empty where it does not say."""
    content: Mapping[str, Any] = getattr(task, "content", {})
    return content


def find_division(task: Task) -> Mapping[str, Any]:
    """How a task divides its images into splits; empty where it does not say."""
    division: Mapping[str, Any] = getattr(task, "division", {})
    return division


def find_image_set(task: Task) -> str:
    """Name of the collection of images of `task`.

    Two divisions of one data set share the name, so that test images of one division are recognised in the
    other (`labels.held_out`).
    """
    return str(getattr(task, "image_set", task.name))


def digest_content(content: Mapping[str, Any]) -> str:
    """The fingerprint of a task with this content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_data(task: Task, manifest: Mapping[str, Any], labels: str | Path) -> None:
    """Refuse labels of the folder `labels` that were made from other data, or another division of them."""
    data = manifest["fingerprints"]["data"]
    if task.fingerprint != data:
        differences = describe_differences(manifest.get("data", {}), find_content(task))
        raise ValueError(
            f"the labels in {labels} were made from other data than task {task.name} now has ({differences})"
            ": label again under another task.name, or configure the task as it was"
        )
    division = json.loads(json.dumps(find_division(task)))
    if division != manifest["division"]:
        raise ValueError(
            f"the labels in {labels} are divided into splits in another way than task {task.name} now is "
            f"({describe_differences(manifest['division'], division)}): run `python -m experiments.label` "
            "with these settings, which answers nothing again"
        )


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The arguments that differ, with both values, for a message."""
    here = json.loads(json.dumps(here))
    texts = [
        f"{key}: {_shorten(there.get(key))} there, {_shorten(here.get(key))} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    ]
    return "; ".join(texts) or "it does not say in what"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
