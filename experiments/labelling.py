"""Labelling: a frozen backbone answers every sample of a task at every scale.

`label(task=..., backbone=..., folder=...)` is the plain function behind `python -m experiments.label`. Called
again on a finished folder it returns at once, without loading the model.
"""

import itertools
import logging
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from experiments.block_labels import BlockLabels
from experiments.blocks import Limits, decode_ahead, iterate_blocks, plan
from experiments.label_folder import LabelFolder
from experiments.tasks.base import SPLITS, Task
from m3_backbone.backbone import Backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelSummary:
    """What a label folder holds: samples and mean scores per split, and rows set aside per reason."""

    folder: Path
    scales: tuple[int, ...]
    counts: dict[str, int]
    accuracy: dict[str, list[float]]
    set_aside: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{'split':<12}{'samples':>9}   score in % at" + "".join(f"{scale:>7}" for scale in self.scales)
        ]
        for split, count in self.counts.items():
            shares = "".join(f"{100 * share:>7.1f}" for share in self.accuracy.get(split, []))
            lines.append(f"{split:<12}{count:>9,}{'':>16}{shares}")
        if self.set_aside:
            path = self.folder / "set_aside.jsonl"
            lines.append(f"set aside: {sum(self.set_aside.values()):,} rows, with reasons in {path}")
            lines += [f"{count:>8,} x {reason}" for reason, count in Counter(self.set_aside).most_common(10)]
        return "\n".join(lines)


def label(
    *,
    task: Task,
    backbone: Backbone,
    folder: str | Path,
    limit: Limits | None = None,
    feature_scale: int = 9,
    shard_size: int = 1000,
    images_per_batch: int = 32,
    num_workers: int = 1,
    overwrite: bool = False,
    command: str = "the same command",
) -> LabelSummary:
    """Fill `folder` with outcomes and features of every split, or with what is missing of them.

    Args:
        limit: whole images per split; no limit for a split that is not named, or None.
        feature_scale: scale of the coarse visual tokens that are kept for the predictor.
        shard_size: samples per file; a killed run loses the work on one file at most.
        images_per_batch: images that are encoded together.
        num_workers: processes that read images ahead of the model; 0 reads them in between.
        overwrite: throw away whatever labels are in `folder`.
        command: what goes on after an error, for messages.
    """
    limits = _complete_limits(limit or {})
    target = LabelFolder(
        folder,
        fingerprints={**backbone.fingerprints, "data": task.fingerprint},
        scales=tuple(backbone.ladder),
        feature_scale=backbone.ladder.check(feature_scale),
        command=command,
    )
    if not overwrite and target.open() and target.is_finished(limits):
        log.info("labels are up to date: %s", target.path)
        return summarize(target)
    with target.locked():
        names = {"backbone": backbone.name, "task": task.name}
        target.begin(names=names, limit=limits, shard_size=shard_size, overwrite=overwrite)
        work = plan(task, limits, target.shard_size)
        done = {name for name, digest in work.digests.items() if target.holds(name, digest)}
        blocks = (b for b in iterate_blocks(task, limits, target.shard_size) if b.name not in done)
        images = decode_ahead(task, blocks, num_workers=num_workers, images_ahead=images_per_batch)
        with tqdm(
            desc=f"{task.name} x {backbone.name}",
            total=sum(work.sizes.values()),
            initial=sum(work.sizes[name] for name in done),
            unit=" samples",
            mininterval=0.1 if sys.stderr.isatty() else 30,  # a moving bar, or a few lines in a log file
        ) as progress:
            for block, group in itertools.groupby(images, key=lambda item: item.block):
                labels = BlockLabels(backbone, target.feature_scale)
                while batch := list(itertools.islice(group, images_per_batch)):
                    labels.add(batch)
                    progress.update(sum(len(item.samples) for item in batch))
                table = labels.to_table(target.fingerprints)
                target.write_shard(block.name, block.digest, table, labels.visual, labels.set_aside)
        if not target.has_embeddings():
            target.write_embeddings(backbone.token_embeddings())
        target.finish(work.digests, work.set_aside)
    return summarize(target)


def summarize(target: LabelFolder) -> LabelSummary:
    """The counts of a finished folder."""
    manifest = target.manifest
    reasons = dict(Counter(row["reason"] for row in target.read_set_aside()))
    return LabelSummary(target.path, target.scales, manifest["counts"], manifest["accuracy"], reasons)


def _complete_limits(limit: Limits) -> dict[str, int | None]:
    """`limit` with every split in it."""
    if unknown := set(limit) - set(SPLITS):
        raise ValueError(f"limit names unknown splits {sorted(unknown)}: splits are {', '.join(SPLITS)}")
    for split, most in limit.items():
        if most is not None and most < 0:
            raise ValueError(f"limit.{split}={most}: give a number of images, or null for all")
    return {split: limit.get(split) for split in SPLITS}
