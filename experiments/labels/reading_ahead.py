"""Reading of the images of blocks in other processes, ahead of the model."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from threading import Thread

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from experiments.labels.blocks import Block, ImageQuestions, group_by_image, read_image
from experiments.tasks.base import Sample, Task


class _Images(Dataset[Image.Image | str]):
    """The images of a task by id; in place of one that cannot be read, the reason."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, image_id: str) -> Image.Image | str:
        return read_image(self.task, image_id)


def _follow_parent(worker_id: int) -> None:
    """End this worker process when its parent process ends.

    The worker ignores Ctrl-C, which the parent handles. Without the watch, the worker of a killed parent
    would wait for ever to hand over its images.
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
    """Yield the images of `blocks` in order, read by `num_workers` processes (0: by this one).

    At most `images_ahead` images are read ahead of the consumer. Raises OSError if a worker process dies.
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
            "a process that reads images died, perhaps for lack of memory: run the same command again, which "
            "resumes after the last finished shard; num_workers=0 reads images in the main process"
        ) from error
