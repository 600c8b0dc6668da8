"""Division of a task into blocks of whole images, according to a plan."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from experiments.tasks.base import SPLITS, Sample, Split, Task
from experiments.tasks.scoring import METRICS
from m3_backbone.images import UnreadableImage, to_rgb

Limits = Mapping[str, int | None]


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive samples of whole images that make up the shard `name`."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def digest(self) -> str:
        """Digest of the sample ids and image ids."""
        ids = "\n".join(f"{sample.sample_id}\t{sample.image_id}" for sample in self.samples)
        return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class ImageQuestions:
    """The samples on one image of a block; `image` is the reason, as text, if it cannot be read."""

    block: Block
    samples: list[Sample]
    image: Image.Image | str


class ImageSamples(NamedTuple):
    """An image of a split with its samples."""

    split: Split
    image_id: str
    samples: list[Sample]


@dataclass(frozen=True, eq=False)
class Answered:
    """Samples that earlier labellings answered or skipped: image id -> sample ids, and shard names."""

    samples: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shards: Collection[str] = ()

    def covers(self, image_id: str, samples: Iterable[Sample]) -> bool:
        """Whether all samples of an image were answered or skipped before."""
        known = self.samples.get(image_id)
        return known is not None and all(sample.sample_id in known for sample in samples)


@dataclass(frozen=True)
class Plan:
    """Blocks to label, and the images of each split.

    `digests` and `sizes` map the name of each block to its digest and its number of samples. `images` are
    the image ids of each split within the limits, answered before or not. `skipped` are the samples that the
    task itself skipped (`Task.skipped`).
    """

    digests: dict[str, str]
    sizes: dict[str, int]
    images: dict[Split, list[str]]
    skipped: list[dict[str, Any]]


def group_by_image(samples: Iterable[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    """Yield each image id with its samples, which must be consecutive in `samples`."""
    for image_id, group in itertools.groupby(samples, key=lambda sample: sample.image_id):
        yield image_id, list(group)


def iterate_images(task: Task, limit: Limits) -> Iterator[ImageSamples]:
    """Yield the first `limit` images of each split, with their samples."""
    for split in SPLITS:
        for image_id, samples in itertools.islice(group_by_image(task.samples(split)), limit[split]):
            yield ImageSamples(split, image_id, samples)


def iterate_blocks(images: Iterable[ImageSamples], shard_size: int, answered: Answered) -> Iterator[Block]:
    """Yield blocks of the images that are not in `answered`.

    A block ends with the image that brings it to `shard_size` samples, and has images of one split only. Its
    name is a number that no shard has yet.
    """
    names = name_shards(answered.shards)
    for _, group in itertools.groupby(images, key=lambda image: image.split):
        rest = (image.samples for image in group if not answered.covers(image.image_id, image.samples))
        yield from cut_into_blocks(names, rest, shard_size)


def name_shards(taken: Collection[str] = ()) -> Iterator[str]:
    """Yield names 00000, 00001, ... that are not in `taken`."""
    return (name for number in itertools.count() if (name := f"{number:05d}") not in taken)


def cut_into_blocks(
    names: Iterator[str], images: Iterable[Sequence[Sample]], shard_size: int
) -> Iterator[Block]:
    """Yield blocks of at least `shard_size` samples of whole images; the last one may be smaller."""
    collected: list[Sample] = []
    for samples in images:
        collected += samples
        if len(collected) >= shard_size:
            yield Block(next(names), tuple(collected))
            collected = []
    if collected:
        yield Block(next(names), tuple(collected))


def plan(task: Task, limit: Limits, shard_size: int, answered: Answered) -> Plan:
    """Plan the blocks in one pass over all samples, before the model is loaded.

    Raises ValueError as `check_images` does.
    """
    digests, sizes = {}, {}
    images: dict[Split, list[str]] = {split: [] for split in SPLITS}
    checked = check_images(task, iterate_images(task, limit), images)
    for block in iterate_blocks(checked, shard_size, answered):
        digests[block.name], sizes[block.name] = block.digest, len(block.samples)
    # Tasks written for tokenscale 0.1 have `set_aside` in place of `skipped`.
    return Plan(
        digests, sizes, images, [dict(row) for row in (*task.skipped, *getattr(task, "set_aside", ()))]
    )


def check_images(
    task: Task, images: Iterable[ImageSamples], passed: dict[Split, list[str]]
) -> Iterator[ImageSamples]:
    """Yield the images unchanged, and append the id of each to its split in `passed`.

    Raises ValueError for a duplicate sample_id, an image in two splits or with samples that are not
    consecutive, an unknown metric if the task scores by built-in metrics, and an id, question, metric or
    reference that is not a str.
    """
    scores_by_metric = type(task).score is Task.score
    sample_ids: set[str] = set()
    split_of: dict[str, Split] = {}
    for image in images:
        if other := split_of.get(image.image_id):
            problem = "are not side by side" if other == image.split else f"are in {other} too"
            raise ValueError(f"{task.name}: samples of image {image.image_id!r} of {image.split} {problem}")
        split_of[image.image_id] = image.split
        passed[image.split].append(image.image_id)
        for sample in image.samples:
            if sample.sample_id in sample_ids:
                raise ValueError(f"{task.name}: sample_id {sample.sample_id!r} comes more than once")
            if scores_by_metric and sample.metric not in METRICS:
                raise ValueError(
                    f"{task.name}: sample {sample.sample_id!r} has metric {sample.metric!r}; there are "
                    f"{', '.join(METRICS)}"
                )
            _check_text(task.name, sample)
            sample_ids.add(sample.sample_id)
        yield image


def read_image(task: Task, image_id: str) -> Image.Image | str:
    """Return an image of a task as 8-bit RGB, or the reason, as text, why it cannot be read."""
    try:
        return to_rgb(task.image(image_id), image_id)
    except MemoryError:
        return str(UnreadableImage(image_id, "not enough memory to open it"))
    except UnreadableImage as error:
        return str(error)


def _check_text(task: str, sample: Sample) -> None:
    """Raise ValueError unless the texts of a sample are str, as shards store them."""
    texts = {
        "task": sample.task,
        "sample_id": sample.sample_id,
        "image_id": sample.image_id,
        "question": sample.question,
        "metric": sample.metric,
        **{f"references[{number}]": text for number, text in enumerate(sample.references)},
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(
                f"{task}: {name} of sample {sample.sample_id!r} is {text!r} and not a text: "
                "the task must give str"
            )
