"""What a task is: an iterable of samples, each with its scorer, and the images they ask about."""

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
    `experiments.scorers.METRICS`. `attributes` (kind of question, number of items, ...) are for analysis
    only: no predictor sees them.
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

    `fingerprint` is a hex digest of the data and of every choice that changes the samples; the pixels of
    images in a folder enter it by name only, so that a fingerprint costs no pass over the images.
    `set_aside` holds what could not become a sample, as `{"sample_id" | "line": ..., "reason": ...}`; it is
    complete once the samples of every split have been read. A task that is a published benchmark may have a
    property `official_split`, an `OfficialSplit` (see `find_official_split`).
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


def check_data(task: Task, data: str, labels: str | Path) -> None:
    """Refuse labels, found in the folder `labels`, that were made from other data than the task now is."""
    if task.fingerprint != data:
        raise ValueError(
            f"the labels in {labels} were made from other data ({data}) than task {task.name} now is "
            f"({task.fingerprint}): label again, or configure the task as it was"
        )
