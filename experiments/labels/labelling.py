"""Labelling: a frozen backbone answers every sample of a task at every scale.

`label(task=..., backbone=..., folder=...)` is the function behind `tokenscale label`. On a finished folder it
returns without loading the model. After a change of the limits, or of the division into splits, it answers
only images that were never labelled. It migrates labels of earlier versions.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from experiments.labels.block_labels import BlockLabels
from experiments.labels.blocks import (
    Answered,
    Block,
    ImageQuestions,
    Limits,
    Plan,
    iterate_blocks,
    iterate_images,
    plan,
    read_image,
)
from experiments.labels.engines import Engine, Job, LocalEngine, run_job
from experiments.labels.files import refuse_parts
from experiments.labels.folder import KeptInputs, LabelFolder
from experiments.labels.label_summary import LabelSummary, summarize
from experiments.labels.migration import is_of_earlier_version, migrate
from experiments.labels.records import WorkRecord
from experiments.tasks.base import SPLITS, Task
from m3_backbone.asking import check_prompt
from m3_backbone.backbone import NO_STATES, Backbone

log = logging.getLogger(__name__)


# Seconds to wait for the run on another part of the shards to write the manifest.
PATIENCE = 60


@dataclass(frozen=True)
class ShardSubset:
    """Every `count`-th shard from `index` on: the part of the labelling that one of several runs does."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse `i/n`; None means all shards. Raises ValueError for other text."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(f"shard={text}: give i/n with i from 0 to n - 1, as 0/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        return f"-{self.index}-of-{self.count}"

    @property
    def file_name(self) -> str:
        """Part of the name of a file about this part."""
        return self.name.removeprefix("-")

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return dict(itertools.islice(sizes.items(), self.index, None, self.count))


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelJob(Job):
    """Labelling of the blocks of a task within the limits, without the samples in `answered`."""

    folder: LabelFolder
    limits: Limits
    answered: Answered

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks of the task within the limits that are not answered, in order."""
        return iterate_blocks(iterate_images(self.task, self.limits), self.folder.shard_size, self.answered)

    def work_on_block(self, block: Block, batches: Iterable[Sequence[ImageQuestions]]) -> Iterator[int]:
        """Answer a block at every scale and write its shard."""
        with self.folder.recording_block(block.name):
            labels = BlockLabels(self.backbone, self.folder.kept)
            for batch in batches:
                labels.add(batch)
                yield sum(len(item.samples) for item in batch)
            table = labels.to_table(self.folder.fingerprints, self.task.score)
            self.folder.write_shard(
                block.name, block.digest, table, labels.features, labels.skipped, labels.unreadable
            )

    def work_on(self, blocks: Iterable[Block]) -> Iterator[int]:
        """Label blocks, then write the token embeddings if they are missing."""
        yield from super().work_on(blocks)
        if not self.folder.has_embeddings():
            self.folder.write_embeddings(self.backbone.token_embeddings())


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelling:
    """Labelling of a task within limits into the folder `target`, or of one part of it (`subset`)."""

    task: Task
    backbone: Backbone
    target: LabelFolder
    limits: Limits
    subset: ShardSubset
    shard_size: int
    images_per_batch: int
    num_workers: int
    engine: Engine
    record: WorkRecord | None

    def is_finished(self) -> bool:
        """Whether the folder has all samples, and no image that could not be read is readable now."""
        return self.target.has(self.limits) and not list_readable_again(self.target, self.task)

    def run_whole(self, overwrite: bool) -> LabelSummary:
        """Label what is missing. Parallel sweep jobs share labels: the first makes them, the others wait."""
        target = self.target
        # A run that overwrites does not wait: it would remove what the other run has just made.
        with target.locked(timeout=0 if overwrite else None):
            # Another process may have finished the labels meanwhile; they may be in use already.
            if overwrite or not self.is_finished():
                refuse_parts(target.path)
                target.remove_remains()
                self._begin(overwrite)
                work, job = self._prepare()
                with self._recording(work):
                    run_job(self.engine, job, work.sizes, find_done(target, work))
                    target.finish(work)
        return replace(summarize(target), replaced=target.replaced)

    def run_part(self, overwrite: bool) -> LabelSummary:
        """Label what is missing of this part; the run that ends last completes the folder."""
        target, subset = self.target, self.subset
        if overwrite:
            raise ValueError(
                f"shard={subset} with overwrite=true would replace the files of the other parts: move "
                f"{target.path} away before the first part is labelled"
            )
        with target.locked(subset.name):
            # One process at a time writes the manifest.
            with target.locked(timeout=PATIENCE):
                if self.is_finished():
                    return summarize(target)
                if not target.is_begun(self.limits):
                    refuse_parts(target.path, but=subset.name)
                    self._begin(overwrite=False)
                work, job = self._prepare()
            with self._recording(work):
                run_job(self.engine, job, subset.of(work.sizes), find_done(target, work))
                with target.locked(timeout=PATIENCE):
                    missing = len(work.digests) - len(find_done(target, work))
                    if not missing and not target.has(self.limits):
                        target.finish(work)
        if missing:
            return LabelSummary(target.path, target.scales, num_missing=missing)
        return summarize(target)

    def _begin(self, overwrite: bool) -> None:
        names = {"backbone": self.backbone.name, "task": self.task.name, "image_set": self.task.image_set}
        self.target.begin(names=names, limit=self.limits, shard_size=self.shard_size, overwrite=overwrite)

    def _prepare(self) -> tuple[Plan, LabelJob]:
        """Return the plan of all blocks that are not answered, and the job that works on them."""
        readable = list_readable_again(self.target, self.task)
        if readable:
            log.info("%d images that could not be read before can be read now", len(readable))
        answered = self.target.read_answered(retried=readable)
        job = LabelJob(
            task=self.task,
            backbone=self.backbone,
            images_per_batch=self.images_per_batch,
            num_workers=self.num_workers,
            folder=self.target,
            limits=self.limits,
            answered=answered,
        )
        return plan(self.task, self.limits, self.target.shard_size, answered), job

    def _recording(self, work: Plan) -> AbstractContextManager[None]:
        """Keep the record of this process in the folder while it works on the plan."""
        blocks = {name: (digest, work.sizes[name]) for name, digest in work.digests.items()}
        content = {"part": str(self.subset), "blocks": blocks}
        record = self.record or WorkRecord.begin()
        return self.target.recording(self.subset.file_name, record.model_copy(update=content))


def label(
    *,
    task: Task,
    backbone: Backbone,
    folder: str | Path,
    limit: Limits | None = None,
    kept: KeptInputs = KeptInputs(),
    shard_size: int = 1000,
    images_per_batch: int = 32,
    num_workers: int = 1,
    overwrite: bool = False,
    engine: Engine | None = None,
    shard: str | None = None,
    command: str = "the same command",
    record: WorkRecord | None = None,
    check: Callable[[Task, Limits], None] | None = None,
) -> LabelSummary:
    """Write the outcomes and features of every split that `folder` lacks; returns a summary of the labels.

    Args:
        limit: number of images per split; None, or a split that is not named, means all.
        kept: what is stored for predictors besides the answers.
        shard_size: samples per file; a killed run loses the work on at most one file.
        images_per_batch: images that are encoded together.
        num_workers: processes that read images ahead of the model; 0 reads them in this process.
        overwrite: move existing labels in `folder` to a folder beside it, and label again.
        engine: execution backend; this process by default.
        shard: `i/n` labels only the i-th (from 0) of n parts of the files; the run that ends last
            completes the folder.
        command: the command that resumes after an error, for messages.
        record: record of this process with the command that does its part again, for `tokenscale status`.
        check: called with task and limits before anything is labelled; may raise ValueError.

    Raises ValueError for a task that is no `Task`, for labels of another backbone or other data, and for a
    folder that another run holds; OSError if the folder cannot be written.
    """
    if not isinstance(task, Task):
        raise ValueError(
            f"{type(task).__name__} is not derived from experiments.tasks.base.Task: derive it from that "
            "class, which scores answers by the metric of each sample where the task has no score of its own"
        )
    if kept.decoder_state and not backbone.has_states:
        raise ValueError(NO_STATES.format(name=backbone.name))
    if kept.self_asking is not None:
        check_prompt(kept.self_asking)
    target = LabelFolder(
        folder,
        fingerprints={**backbone.fingerprints, "data": task.fingerprint},
        scales=backbone.scales,
        kept=replace(kept, feature_scales=choose_feature_scales(kept.feature_scales, backbone)),
        data=task.content,
        division=task.division,
        command=command,
    )
    labelling = Labelling(
        task=task,
        backbone=backbone,
        target=target,
        limits=_complete_limits(limit or {}),
        subset=ShardSubset.parse(shard),
        shard_size=shard_size,
        images_per_batch=images_per_batch,
        num_workers=num_workers,
        engine=engine or LocalEngine(),
        record=record,
    )
    if not overwrite and is_of_earlier_version(target.path):
        with target.locked(timeout=None):
            migrate(target, task, backbone)
    if not overwrite and labelling.is_finished():
        log.info("labels are up to date: %s", target.path)
        return summarize(target)
    if check is not None:
        check(task, labelling.limits)
    return labelling.run_whole(overwrite) if labelling.subset.is_whole else labelling.run_part(overwrite)


def list_readable_again(target: LabelFolder, task: Task) -> list[str]:
    """Return the ids of images that were unreadable in an earlier labelling and can be read now."""
    return [
        image_id for image_id in target.list_unreadable() if not isinstance(read_image(task, image_id), str)
    ]


def choose_feature_scales(scales: Sequence[int] | None, backbone: Backbone) -> tuple[int, ...]:
    """Return `scales` in the order of the ladder. Raises ValueError for a scale that is not on it."""
    ladder = backbone.scales
    if scales is None:
        return backbone.feature_scales
    if unknown := set(scales) - set(ladder):
        raise ValueError(
            f"feature_scales={list(scales)}: {backbone.name} has no scale "
            f"{', '.join(map(str, sorted(unknown)))}: give some of {', '.join(map(str, ladder))}, "
            f"or null for {', '.join(map(str, backbone.feature_scales))}"
        )
    return tuple(scale for scale in ladder if scale in scales)


def find_done(target: LabelFolder, work: Plan) -> set[str]:
    """Return the names of the blocks whose shards are complete."""
    return {name for name, digest in work.digests.items() if target.holds(name, digest)}


def _complete_limits(limit: Limits) -> dict[str, int | None]:
    """Return `limit` with every split in it. Raises ValueError for unknown splits and negative numbers."""
    if unknown := set(limit) - set(SPLITS):
        raise ValueError(f"limit names unknown splits {sorted(unknown)}: splits are {', '.join(SPLITS)}")
    for split, number in limit.items():
        if number is not None and number < 0:
            raise ValueError(f"limit.{split}={number}: give a number of images, or null for all")
    return {split: limit.get(split) for split in SPLITS}
