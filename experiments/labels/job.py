"""The work on one label folder, block by block, as any process of any engine does it."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from experiments.labels.block_labels import BlockLabels
from experiments.labels.blocks import Answered, Block, Limits, decode_ahead, iterate_blocks, iterate_images
from experiments.labels.folder import LabelFolder
from experiments.tasks.base import Task
from m3_backbone.backbone import Backbone


@dataclass(frozen=True, eq=False)
class LabelJob:
    """All that a process needs to label blocks of a task; engines send it to their processes by pickle.

    `answered` is what needs no answer any more. `images_per_batch` images are encoded together; `num_workers`
    processes read images ahead of the model.
    """

    task: Task
    backbone: Backbone
    folder: LabelFolder
    limits: Limits
    answered: Answered
    images_per_batch: int
    num_workers: int

    def blocks(self) -> Iterator[Block]:
        """All blocks of the task within the limits that are not answered, in order."""
        return iterate_blocks(iterate_images(self.task, self.limits), self.folder.shard_size, self.answered)

    def work_on(self, blocks: Iterable[Block]) -> Iterator[int]:
        """Label and write blocks; yields, batch by batch, how many samples are done."""
        images = decode_ahead(
            self.task, blocks, num_workers=self.num_workers, images_ahead=self.images_per_batch
        )
        for block, group in itertools.groupby(images, key=lambda item: item.block):
            labels = BlockLabels(self.backbone, self.folder.feature_scales)
            while batch := list(itertools.islice(group, self.images_per_batch)):
                labels.add(batch)
                yield sum(len(item.samples) for item in batch)
            table = labels.to_table(self.folder.fingerprints)
            self.folder.write_shard(
                block.name, block.digest, table, labels.features, labels.set_aside, labels.unreadable
            )
        if not self.folder.has_embeddings():
            self.folder.write_embeddings(self.backbone.token_embeddings())
