"""Tasks: samples, their images and the score of an answer; division of images into splits."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """One question about an image, with its reference answers.

    `question` is the complete question given to the model, suffix included. `metric` names how answers are
    scored: one of `experiments.tasks.scoring.METRICS`, unless the task defines its own `score`.
    `attributes` (number of items, ...; "kind" is the question type) are for analysis only: no predictor sees
    them. Images that are not independent share a name in the attribute "cluster": intervals and guarantees
    resample them as one, and the task has to divide them into splits together.
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
    """Official split of a benchmark that the test samples come from, and whether they are all of it."""

    name: str | None = None
    is_whole: bool = False


class Task(ABC):
    """Base class of tasks: samples by split, images by id, and the score of an answer.

    No image is in two splits. `skipped` lists what could not become a sample, as
    `{"sample_id" | "line": ..., "reason": ...}`; it is complete once the samples of every split have been
    read. It may be left out if there is nothing to skip.
    """

    name: str
    skipped: Sequence[Mapping[str, Any]] = ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of the data and of every setting that changes a sample, except for the division.

        It is that of `content`, unless a task overrides it. Images in a folder enter it by name only, so that
        it needs no pass over the images.
        """
        if not self.content:
            raise NotImplementedError(f"{type(self).__name__} has neither content nor a fingerprint")
        return digest_content(self.content)

    @abstractmethod
    def samples(self, split: Split) -> Iterator[Sample]:
        """Yield the samples of a split, always in the same order; samples of one image are consecutive."""

    @abstractmethod
    def image(self, image_id: str) -> Image.Image:
        """Return an RGB image. Raises `images.UnreadableImage` (an OSError) with the reason."""

    def score(self, sample: Sample, answer: str) -> float:
        """Return the score in [0, 1] of an answer to a sample.

        The default is the built-in metric named by the sample (`scoring.METRICS`). A task that overrides this
        method may give its samples any `metric`: the outcome table stores it as a description.
        """
        return score(sample.metric, answer, sample.references)

    @property
    def content(self) -> Mapping[str, Any]:
        """JSON object that determines the samples; its digest is the fingerprint.

        Messages use it to name the argument that differs. Empty for a task that overrides `fingerprint`.
        """
        return {}

    @property
    def division(self) -> Mapping[str, Any]:
        """JSON object of the settings that divide the images; they may change without labelling again."""
        return {}

    @property
    def divided_by(self) -> str | None:
        """Name of the argument with the fractions that divide the images; None if the task has none."""
        return None

    @property
    def image_set(self) -> str:
        """Name of the collection of images.

        Divisions of the same data set share it, so that test images of one division are recognised in
        another (`labels.held_out`).
        """
        return self.name

    @property
    def official_split(self) -> OfficialSplit:
        """The official split of a published benchmark that the test samples come from."""
        return OfficialSplit()


def find_official_split(task: Task, limit: int | None) -> OfficialSplit:
    """Return the official split of the test samples; with a `limit` of images it is not whole."""
    official_split: OfficialSplit = getattr(task, "official_split", OfficialSplit())
    return replace(official_split, is_whole=official_split.is_whole and limit is None)


def digest_content(content: Mapping[str, Any]) -> str:
    """Return the fingerprint of a task with this content: 16 hex digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_data(task: Task, manifest: Mapping[str, Any], labels: str | Path) -> None:
    """Raise ValueError for labels (folder `labels`) of other data or another division than the task has."""
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
            f"({describe_differences(manifest['division'], division)}): run `tokenscale label` "
            "with these settings, which answers nothing again"
        )


def describe_differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return the arguments that differ, with both values, as text for a message."""
    own = json.loads(json.dumps(own))
    texts = [
        f"{key}: {_shorten(stored.get(key))} there, {_shorten(own.get(key))} here"
        for key in dict.fromkeys([*stored, *own])
        if stored.get(key) != own.get(key)
    ]
    return "; ".join(texts) or "it does not say in what"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def draw_uniform(image_id: str, seed: int = 0) -> float:
    """Return a hash of the arguments, uniform in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{image_id}".encode("utf-8", "surrogatepass")).digest()
    # A float has 53 bits: with more, a hash close to 1 would round to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def divide_images(
    image_ids: Iterable[str], fractions: Mapping[Split, float], seed: int = 0
) -> dict[str, Split]:
    """Return the split of each image, in the order of `order_images`; each split holds its fraction of them.

    With fewer than `FEW_IMAGES` images the counts are rounded by largest remainders, and every split with a
    positive fraction gets at least one image if there are as many images as such splits. `fractions` has all
    splits (see `check_fractions`).
    """
    ordered = order_images(image_ids, seed)
    if len(ordered) >= FEW_IMAGES:
        return {image_id: assign_split(image_id, fractions, seed) for image_id in ordered}
    counts = apportion(len(ordered), [fractions[split] for split in SPLITS])
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(ordered, splits, strict=True))


def assign_split(image_id: str, fractions: Mapping[Split, float], seed: int = 0) -> Split:
    """Return the split of an image, from its hash alone, for a division of many images."""
    position = draw_uniform(image_id, seed)
    shares = [(split, fractions[split]) for split in SPLITS if fractions[split] > 0]
    for split, share in shares:
        position -= share
        if position < 0:
            return split
    return shares[-1][0]  # the fractions sum to 1 up to rounding


def carve_calibration(image_ids: Iterable[str], fraction: float, seed: int = 0) -> dict[str, Split]:
    """Divide the images of a train set without a calibration split into train and calibration."""
    return divide_images(image_ids, {"train": 1 - fraction, "calibration": fraction, "test": 0.0}, seed)


def assign_own_splits(
    own_splits: Mapping[str, Split | None],
    fractions: Mapping[Split, float],
    seed: int,
    *,
    carve: bool,
    name: Callable[[str], str] = str,
) -> dict[Split, list[str]]:
    """Return the images of each split, in the order of `order_images`.

    `own_splits` maps each image to the split that the data set gives it; images with None are divided by
    `fractions`. With `carve`, calibration is taken out of the images whose own split is train, by its share.
    An image is placed by the hash of its `name`; images of the same name are in one split.
    """
    train, calibration = fractions["train"], fractions["calibration"]
    share = calibration / (train + calibration) if carve and calibration else 0.0
    divided = divide_images((name(key) for key, own in own_splits.items() if own is None), fractions, seed)
    carved = carve_calibration((name(key) for key, own in own_splits.items() if own == "train"), share, seed)
    images: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for key in sorted(own_splits, key=lambda key: (draw_uniform(name(key), seed), key)):
        own = own_splits[key]
        split = divided[name(key)] if own is None else carved[name(key)] if own == "train" else own
        images[split].append(key)
    return images


def check_fractions(fractions: Mapping[str, float]) -> dict[Split, float]:
    """Return the fractions of all splits, 0 for missing ones. Raises ValueError unless they sum to 1."""
    complete: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    complete |= {check_split(split): float(fraction) for split, fraction in fractions.items()}
    if min(complete.values()) < 0 or not math.isclose(sum(complete.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions={dict(fractions)}: give numbers that are not negative and sum to 1")
    return complete


def check_split(split: str) -> Split:
    """Return `split` if it is the name of a split. Raises ValueError, naming the splits, otherwise."""
    for known in SPLITS:
        if known == split:
            return known
    raise ValueError(f"unknown split {split!r}: give one of {', '.join(SPLITS)}")


def order_images(image_ids: Iterable[str], seed: int = 0) -> list[str]:
    """Return the distinct images in the order of their hash: the first n are a random sample of size n."""
    return sorted(set(image_ids), key=lambda image_id: (draw_uniform(image_id, seed), image_id))
