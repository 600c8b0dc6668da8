"""A task cut into blocks of whole images, planned in one pass and fed with images decoded ahead."""

import hashlib
import itertools
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from threading import Thread
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from experiments.scorers import METRICS
from experiments.tasks.base import SPLITS, Sample, Split, Task
from experiments.tasks.images import UnreadableImage

Limits = Mapping[str, int | None]


@dataclass(frozen=True, eq=False)
class Block:
    """The samples of one shard: a fixed run of whole images of one split."""

    split: Split
    index: int
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}"

    @property
    def digest(self) -> str:
        """Of the samples' ids; a larger limit, which lets more images into the last block, changes it."""
        ids = "\n".join(f"{sample.sample_id}\t{sample.image_id}" for sample in self.samples)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageQuestions:
    """One image of a block, or the reason why it cannot be read, and the samples that ask about it."""

    block: Block
    samples: list[Sample]
    image: Image.Image | str


@dataclass(frozen=True)
class Plan:
    """What there is to do: digest and number of samples of each block, and the rows the task set aside."""

    digests: dict[str, str]
    sizes: dict[str, int]
    set_aside: list[dict[str, Any]]


def group_by_image(samples: Iterable[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    """Each image id with the samples on it, which lie side by side."""
    for image_id, group in itertools.groupby(samples, key=lambda sample: sample.image_id):
        yield image_id, list(group)


def iterate_blocks(task: Task, limit: Limits, shard_size: int) -> Iterator[Block]:
    """All samples of the first `limit` images of each split, in blocks that end with an image once they hold
    `shard_size` samples."""
    for split in SPLITS:
        yield from cut_into_blocks(split, task.samples(split), limit[split], shard_size)


def cut_into_blocks(
    split: Split, samples: Iterable[Sample], num_images: int | None, shard_size: int
) -> Iterator[Block]:
    """The samples of the first `num_images` images of a split, in blocks of at least `shard_size`."""
    index = 0
    collected: list[Sample] = []
    for _, group in itertools.islice(group_by_image(samples), num_images):
        collected += group
        if len(collected) >= shard_size:
            yield Block(split, index, tuple(collected))
            index, collected = index + 1, []
    if collected:
        yield Block(split, index, tuple(collected))


def plan(task: Task, limit: Limits, shard_size: int) -> Plan:
    """Go through all samples once, before the model: how many there are, and whether the task keeps its word.

    Raises ValueError for a sample_id that comes twice, an image in two splits or with its samples apart, a
    metric that nobody knows, and a text that is none.
    """
    digests, sizes = {}, {}
    sample_ids: set[str] = set()
    image_ids: dict[str, str] = {}
    for block in iterate_blocks(task, limit, shard_size):
        digests[block.name], sizes[block.name] = block.digest, len(block.samples)
        for image_id, samples in group_by_image(block.samples):
            if other := image_ids.get(image_id):
                problem = "are not side by side" if other == block.split else f"are in {other} too"
                raise ValueError(f"{task.name}: samples of image {image_id!r} of {block.split} {problem}")
            image_ids[image_id] = block.split
            for sample in samples:
                if sample.sample_id in sample_ids:
                    raise ValueError(f"{task.name}: sample_id {sample.sample_id!r} comes more than once")
                if sample.metric not in METRICS:
                    raise ValueError(
                        f"{task.name}: sample {sample.sample_id!r} has metric {sample.metric!r}; there are "
                        f"{', '.join(METRICS)}"
                    )
                _check_text(task, sample)
                sample_ids.add(sample.sample_id)
    return Plan(digests, sizes, list(task.set_aside))


def _check_text(task: Task, sample: Sample) -> None:
    """Raise ValueError for a text of a sample that is none: shards hold nothing else in its place."""
    texts = {
        "task": sample.task,
        "sample_id": sample.sample_id,
        "image_id": sample.image_id,
        "question": sample.question,
        **{f"references[{number}]": text for number, text in enumerate(sample.references)},
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(
                f"{task.name}: {name} of sample {sample.sample_id!r} is {text!r} and not a text: "
                "the task must give str"
            )


class _Images(Dataset[Image.Image | str]):
    """The images of a task by id; in place of one that cannot be read, the reason."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, image_id: str) -> Image.Image | str:
        try:
            return self.task.image(image_id)
        except UnreadableImage as error:
            return str(error)


def _follow_parent(worker_id: int) -> None:
    """End this worker when its parent ends, and not before.

    It leaves Ctrl-C to the parent; when that is killed it must not wait for ever to hand images over.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def decode_ahead(
    task: Task, blocks: Iterable[Block], *, num_workers: int, images_ahead: int
) -> Iterator[ImageQuestions]:
    """The images of `blocks` in order, read by `num_workers` processes (0: by this one).

    `blocks` is gone through only as fast as images are taken: no more than `images_ahead` of them wait.
    """
    waiting: deque[tuple[Block, list[Sample]]] = deque()

    def image_ids() -> Iterator[str]:
        for block in blocks:
            for image_id, samples in group_by_image(block.samples):
                waiting.append((block, samples))
                yield image_id

    loader: DataLoader[Image.Image | str] = DataLoader(
        _Images(task),
        sampler=image_ids(),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_follow_parent,
        prefetch_factor=max(1, images_ahead // num_workers) if num_workers else None,
    )
    try:
        for image in loader:
            yield ImageQuestions(*waiting.popleft(), image)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "a process that reads images died, for lack of memory perhaps: the same command goes on from the "
            "last finished shard; num_workers=0 reads images in the main process"
        ) from error
