"""Tasks: samples, the images they ask about and the score of an answer; division of images into splits."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from experiments.tasks.scoring import score
from predictor.splitting import FEW_IMAGES, apportion

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Sample:
    """One (image, question, reference answers, metric).

    `question` is the complete text that the model is asked, suffix included. `metric` names how answers are
    scored: one of `experiments.tasks.scoring.METRICS`, unless the task defines its own `score`.
    `attributes` (kind of question, number of items, ...) are for analysis only: no predictor sees them.
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


class Task(ABC):
    """Base class of tasks: samples by split, images by id, and the score of an answer.

    No image is in two splits. `set_aside` holds what could not become a sample, as
    `{"sample_id" | "line": ..., "reason": ...}`; it is complete once the samples of every split have been
    read.
    """

    name: str
    set_aside: list[dict[str, Any]]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the data and of every choice that changes a sample, the division excepted.

        The pixels of images in a folder enter it by name only, so that it costs no pass over the images.
        """

    @abstractmethod
    def samples(self, split: Split) -> Iterator[Sample]:
        """The samples of a split, always in the same order, those of one image one after the other."""

    @abstractmethod
    def image(self, image_id: str) -> Image.Image:
        """An RGB image. Raises `images.UnreadableImage` (an OSError) with the reason."""

    def score(self, sample: Sample, answer: str) -> float:
        """Score in [0, 1] of an answer to a sample.

        By default that of the built-in metric that the sample names (`scoring.METRICS`). A task that
        overrides this may give its samples any `metric`: the outcome table stores it as a description.
        """
        return score(sample.metric, answer, sample.references)

    @property
    def content(self) -> Mapping[str, Any]:
        """JSON object of what the samples are made of, whose digest is the fingerprint (`digest_content`).

        Messages name the argument that differs. Empty if the task does not say.
        """
        return {}

    @property
    def division(self) -> Mapping[str, Any]:
        """JSON object of the choices that divide the images, which may change without labelling again."""
        return {}

    @property
    def divided_by(self) -> str | None:
        """Name of the argument with the fractions that divide the images; None if there is none."""
        return None

    @property
    def image_set(self) -> str:
        """Name of the collection of images.

        Two divisions of one data set share it, so that test images of one division are recognised in the
        other (`labels.held_out`).
        """
        return self.name

    @property
    def official_split(self) -> OfficialSplit:
        """The official split of a published benchmark that the test samples come from."""
        return OfficialSplit()


def find_official_split(task: Task, limit: int | None) -> OfficialSplit:
    """The official split that the test samples come from, of which `limit` images at most were labelled."""
    official_split: OfficialSplit = getattr(task, "official_split", OfficialSplit())
    return replace(official_split, is_whole=official_split.is_whole and limit is None)


def digest_content(content: Mapping[str, Any]) -> str:
    """The fingerprint of a task with this content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_data(task: Task, manifest: Mapping[str, Any], labels: str | Path) -> None:
    """Refuse labels of the folder `labels` that were made from other data, or another division of them."""
    data = manifest["fingerprints"]["data"]
    if task.fingerprint != data:
        differences = describe_differences(manifest.get("data", {}), task.content)
        raise ValueError(
            f"the labels in {labels} were made from other data than task {task.name} now has ({differences})"
            ": label again under another task.name, or configure the task as it was"
        )
    division = json.loads(json.dumps(task.division))
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


def draw_uniform(image_id: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode("utf-8", "surrogatepass")).digest()
    # 53 bits are what a float holds: with more, a hash near the top would round to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def divide_images(
    image_ids: Iterable[str], fractions: Mapping[Split, float], seed: int = 0
) -> dict[str, Split]:
    """Return the split of each image, in the order of `order_images`; each split holds its fraction of them.

    Of fewer than `FEW_IMAGES` images the counts are rounded by largest remainders, and every split with a
    positive fraction gets at least one image where there are as many images as such splits. `fractions` are
    those of all splits (see `check_fractions`).
    """
    ordered = order_images(image_ids, seed)
    if len(ordered) >= FEW_IMAGES:
        return {image_id: assign_split(image_id, fractions, seed) for image_id in ordered}
    counts = apportion(len(ordered), [fractions[split] for split in SPLITS])
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(ordered, splits, strict=True))


def assign_split(image_id: str, fractions: Mapping[Split, float], seed: int = 0) -> Split:
    """The split of an image from its hash alone, for a division of many images."""
    place = draw_uniform(image_id, seed)
    shares = [(split, fractions[split]) for split in SPLITS if fractions[split] > 0]
    for split, share in shares:
        place -= share
        if place < 0:
            return split
    return shares[-1][0]  # fractions sum to 1 but for rounding


def carve_calibration(image_ids: Iterable[str], fraction: float, seed: int = 0) -> dict[str, Split]:
    """Divide the images of a train set without a calibration split into train and calibration."""
    return divide_images(image_ids, {"train": 1 - fraction, "calibration": fraction, "test": 0.0}, seed)


def check_fractions(fractions: Mapping[str, float]) -> dict[Split, float]:
    """Fractions of all three splits, missing ones zero. Raises ValueError unless they sum to 1."""
    complete: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    complete |= {check_split(split): float(fraction) for split, fraction in fractions.items()}
    if min(complete.values()) < 0 or not math.isclose(sum(complete.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions must not be negative and must sum to 1, not {dict(fractions)}")
    return complete


def check_split(split: str) -> Split:
    """The split of this name. Raises ValueError, naming the splits there are, for any other."""
    for known in SPLITS:
        if known == split:
            return known
    raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")


def order_images(image_ids: Iterable[str], seed: int = 0) -> list[str]:
    """The distinct images in the order of their hash: any first few of them are an even choice of all."""
    return sorted(set(image_ids), key=lambda image_id: (draw_uniform(image_id, seed), image_id))
