"""Labelling: a frozen backbone answers every sample of a task at every scale.

`label(task=..., backbone=..., folder=...)` is the function behind `tokenscale label`. On a finished folder it
returns without loading the model. After a change of the limits, or of the division into splits, it answers
only images that were never labelled. It migrates labels of earlier versions.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
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
from experiments.labels.division import NEAR_TIE
from experiments.labels.engines import Engine, Job, LocalEngine, run_job
from experiments.labels.files import refuse_parts
from experiments.labels.folder import KeptInputs, LabelFolder
from experiments.labels.migration import is_of_earlier_version, migrate
from experiments.labels.records import WorkRecord
from experiments.tasks.base import SPLITS, Task
from m3_backbone.asking import check_prompt
from m3_backbone.backbone import NO_STATES, Backbone
from m3_backbone.outcomes.table import HELD_OUT

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


@dataclass(frozen=True)
class LabelSummary:
    """Samples per split, mean scores of every split except test, and number of skipped samples per reason.

    `num_missing` files are still to be made by runs on other parts. `replaced` is the folder of the former
    labels after `overwrite`. `num_near_ties` counts answers with a margin below `NEAR_TIE`.
    """

    folder: Path
    scales: tuple[int, ...]
    counts: dict[str, int] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    num_near_ties: int = 0
    num_missing: int = 0
    replaced: Path | None = None
    skipped_file: Path | None = None

    def describe(self) -> str:
        """Return the numbers of answered and skipped samples as text."""
        return f"{sum(self.counts.values()):,} samples, {sum(self.skipped.values()):,} skipped"

    def __str__(self) -> str:
        if self.num_missing:
            return f"this part is done; {self.num_missing:,} files of other parts are still missing"
        lines = [
            f"{'split':<12}{'samples':>9}   score in % at" + "".join(f" {scale:>6}" for scale in self.scales)
        ]
        for split, count in self.counts.items():
            shares = "".join(
                f" {100 * share:>{max(6, len(str(scale)))}.1f}"
                for scale, share in zip(self.scales, self.accuracy.get(split, ()), strict=False)
            )
            if count and split == HELD_OUT:
                shares = "held out: shown by recorded evaluations only"
            lines.append(f"{split:<12}{count:>9,}{'':>16}{shares}")
        num_skipped = sum(self.skipped.values())
        reasons = f", with reasons in {self.skipped_file}" if num_skipped else ""
        lines.append(f"skipped: {num_skipped:,} samples{reasons}")
        if self.skipped:
            lines += [f"{count:>8,} x {reason}" for reason, count in Counter(self.skipped).most_common(10)]
        if self.num_near_ties:
            num_answers = len(self.scales) * sum(self.counts.values())
            lines.append(
                f"near ties: {self.num_near_ties:,} of {num_answers:,} answers lead by less than "
                f"{NEAR_TIE:g} nats; rounding on another machine may change them"
            )
        if self.replaced is not None:
            lines.append(f"the former labels are kept in {self.replaced}")
        return "\n".join(lines)


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
    subset = ShardSubset.parse(shard)
    limits = _complete_limits(limit or {})
    target = LabelFolder(
        folder,
        fingerprints={**backbone.fingerprints, "data": task.fingerprint},
        scales=backbone.scales,
        kept=replace(kept, feature_scales=choose_feature_scales(kept.feature_scales, backbone)),
        data=task.content,
        division=task.division,
        command=command,
    )

    def is_finished() -> bool:
        return target.has(limits) and not list_readable_again(target, task)

    if not overwrite and is_of_earlier_version(target.path):
        with target.locked(timeout=None):
            migrate(target, task, backbone)
    if not overwrite and is_finished():
        log.info("labels are up to date: %s", target.path)
        return summarize(target)
    if check is not None:
        check(task, limits)
    names = {"backbone": backbone.name, "task": task.name, "image_set": task.image_set}
    begin = partial(target.begin, names=names, limit=limits, shard_size=shard_size)
    engine = engine or LocalEngine()

    def prepare() -> tuple[Plan, LabelJob]:
        readable = list_readable_again(target, task)
        if readable:
            log.info("%d images that could not be read before can be read now", len(readable))
        answered = target.read_answered(retried=readable)
        work = plan(task, limits, target.shard_size, answered)
        job = LabelJob(
            task=task,
            backbone=backbone,
            images_per_batch=images_per_batch,
            num_workers=num_workers,
            folder=target,
            limits=limits,
            answered=answered,
        )
        return work, job

    def keep_record(work: Plan) -> AbstractContextManager[None]:
        blocks = {name: (digest, work.sizes[name]) for name, digest in work.digests.items()}
        content = {"part": str(subset), "blocks": blocks}
        return target.recording(subset.file_name, (record or WorkRecord.begin()).model_copy(update=content))

    if subset.is_whole:
        # Parallel sweep jobs share labels: the first makes them, the others wait (unless overwriting).
        with target.locked(timeout=0 if overwrite else None):
            # Another process may have finished the labels meanwhile; they may be in use already.
            if overwrite or not is_finished():
                refuse_parts(target.path)
                target.remove_remains()
                begin(overwrite=overwrite)
                work, job = prepare()
                with keep_record(work):
                    run_job(engine, job, work.sizes, find_done(target, work))
                    target.finish(work)
        return replace(summarize(target), replaced=target.replaced)
    if overwrite:
        raise ValueError(
            f"shard={subset} with overwrite=true would replace the files of the other parts: move "
            f"{target.path} away before the first part is labelled"
        )
    with target.locked(subset.name):
        # One process at a time writes the manifest.
        with target.locked(timeout=PATIENCE):
            if is_finished():
                return summarize(target)
            if not target.is_begun(limits):
                refuse_parts(target.path, but=subset.name)
                begin()
            work, job = prepare()
        with keep_record(work):
            run_job(engine, job, subset.of(work.sizes), find_done(target, work))
            with target.locked(timeout=PATIENCE):
                missing = len(work.digests) - len(find_done(target, work))
                if not missing and not target.has(limits):
                    target.finish(work)
    return summarize(target) if not missing else LabelSummary(target.path, target.scales, num_missing=missing)


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


def summarize(target: LabelFolder) -> LabelSummary:
    """Return the summary of a finished folder."""
    manifest = target.manifest
    reasons = dict(Counter(row["reason"] for row in target.read_skipped()))
    return LabelSummary(
        target.path,
        target.scales,
        manifest["counts"],
        manifest["accuracy"],
        reasons,
        manifest["near_ties"]["num_answers"],
        skipped_file=target.skipped_file,
    )


def _complete_limits(limit: Limits) -> dict[str, int | None]:
    """Return `limit` with every split in it. Raises ValueError for unknown splits and negative numbers."""
    if unknown := set(limit) - set(SPLITS):
        raise ValueError(f"limit names unknown splits {sorted(unknown)}: splits are {', '.join(SPLITS)}")
    for split, number in limit.items():
        if number is not None and number < 0:
            raise ValueError(f"limit.{split}={number}: give a number of images, or null for all")
    return {split: limit.get(split) for split in SPLITS}
