"""Import of outcomes made elsewhere: a label folder without a backbone.

The folder has what predictors may read without a model: the question, statistics of the image if there is
one, and in place of the decoder's token embeddings a random vector for every word of the question.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from experiments.labels.blocks import (
    Answered,
    Block,
    Limits,
    group_by_image,
    iterate_blocks,
    iterate_images,
    plan,
    read_image,
)
from experiments.labels.folder import KeptInputs, LabelFolder
from experiments.labels.label_summary import LabelSummary, summarize
from experiments.labels.labelling import find_done
from experiments.tasks.base import SPLITS
from experiments.tasks.imported import BACKBONE
from experiments.tasks.outcome_file import OutcomeFile, Row
from m3_backbone.features import ImageFeatures, describe_image
from m3_backbone.outcomes.table import OutcomeTable, fill_unmeasured
from predictor.folder import FINGERPRINTS

log = logging.getLogger(__name__)

# Words are hashed to this many random vectors of this size, drawn with a fixed seed.
NUM_WORDS, WORD_SIZE = 8192, 64
_NO_LIMIT: Limits = dict.fromkeys(SPLITS)
_UNKNOWN = "imported"


def import_outcomes(
    file: OutcomeFile,
    folder: str | Path,
    *,
    shard_size: int = 5000,
    overwrite: bool = False,
    command: str = "the same command",
) -> LabelSummary:
    """Write the outcomes of a file as a label folder, and return its summary.

    A finished folder of the same file and arguments is kept; after another division only the splits are
    written anew. Rows whose image cannot be read are skipped. Raises ValueError for labels of another file,
    unless `overwrite`, which moves them aside.
    """
    target = LabelFolder(
        folder,
        fingerprints=make_fingerprints(file),
        scales=file.scales,
        kept=KeptInputs(()),
        data=file.content,
        division=file.division,
        options=file.options,
        command=command,
    )
    with target.locked(timeout=0 if overwrite else None):
        if not overwrite and target.has(_NO_LIMIT):
            log.info("labels are up to date: %s", target.path)
            return summarize(target)
        names = {"backbone": BACKBONE, "task": file.name, "image_set": file.image_set}
        target.remove_remains()
        target.begin(names=names, limit=_NO_LIMIT, shard_size=shard_size, overwrite=overwrite)
        answered = target.read_answered()
        work = plan(file, _NO_LIMIT, target.shard_size, answered)
        done = find_done(target, work)
        with tqdm(total=sum(work.sizes.values()), desc="importing", unit="rows", disable=None) as progress:
            for block in _list_blocks(file, target.shard_size, answered):
                if block.name not in done:
                    _write_block(file, target, block)
                progress.update(len(block.samples))
        if not target.has_embeddings():
            target.write_embeddings(make_word_vectors())
        target.finish(work)
    return summarize(target)


def _list_blocks(file: OutcomeFile, shard_size: int, answered: Answered) -> Sequence[Block]:
    return list(iterate_blocks(iterate_images(file, _NO_LIMIT), shard_size, answered))


def make_fingerprints(file: OutcomeFile) -> dict[str, str]:
    """Return the digest of the file with its arguments as `data`, and what the user declared.

    What the user does not declare is "imported", except for the weights: a digest of the names of the
    options, so that a predictor is not used for other options.
    """
    names = json.dumps([file.ladder, file.options.cost], ensure_ascii=False).encode()
    derived = {"weights": hashlib.sha256(names).hexdigest()[:16], "data": file.fingerprint}
    return {**dict.fromkeys(FINGERPRINTS, _UNKNOWN), **derived, **file.declared, "data": file.fingerprint}


def make_word_vectors() -> torch.Tensor:
    """Return random vectors float16 `[NUM_WORDS, WORD_SIZE]`, always the same."""
    random = np.random.default_rng(0)
    return torch.from_numpy(random.standard_normal((NUM_WORDS, WORD_SIZE)).astype(np.float16))


def hash_words(question: str) -> np.ndarray:
    """Return a row of the word vectors for every word of a question, int32 `[num_words]`."""
    words = re.findall(r"\w+", question.lower())
    digests = (hashlib.sha256(word.encode()).digest()[:4] for word in words)
    return np.array([int.from_bytes(digest, "big") % NUM_WORDS for digest in digests], dtype=np.int32)


def _write_block(file: OutcomeFile, target: LabelFolder, block: Block) -> None:
    """Write the shard of a block; an image that cannot be read is skipped with its samples."""
    features: dict[str, ImageFeatures] = {}
    skipped, unreadable, rows = [], [], []
    for image_id, samples in group_by_image(block.samples):
        image = read_image(file, image_id) if file.has_images else None
        if isinstance(image, str):
            unreadable.append(image_id)
            skipped += [
                {"sample_id": sample.sample_id, "image_id": image_id, "reason": image} for sample in samples
            ]
            continue
        features[image_id] = ImageFeatures({}, {} if image is None else describe_image(image))
        rows += file.find_rows(samples)
    target.write_shard(
        block.name, block.digest, make_table(file, target, rows), features, skipped, unreadable
    )


def make_table(file: OutcomeFile, target: LabelFolder, rows: Sequence[Row]) -> OutcomeTable:
    """Return the outcome table of rows; `visual_tokens` are costs in units of `file.options`."""
    samples = [row.sample for row in rows]

    def text(values: list[str]) -> np.ndarray:
        return np.array(values, dtype=object)

    def numbers(name: str) -> np.ndarray:
        values = np.array([file.order(getattr(row, name)) for row in rows], dtype=np.float64)
        return values.reshape(len(rows), len(file.ladder))

    unmeasured: Any = fill_unmeasured(len(rows), len(file.ladder))
    return OutcomeTable(
        scales=file.scales,
        fingerprints=target.fingerprints,
        family="native",  # every option that is tried is paid for in full
        options=file.options,
        sample_id=text([sample.sample_id for sample in samples]),
        image_id=text([sample.image_id for sample in samples]),
        task=text([sample.task for sample in samples]),
        kind=text([str(sample.attributes["kind"]) for sample in samples]),
        question=text([sample.question for sample in samples]),
        metric=text([sample.metric for sample in samples]),
        references=[list(sample.references) for sample in samples],
        attributes=[{"kind": sample.attributes["kind"]} for sample in samples],
        question_ids=[hash_words(sample.question) for sample in samples],
        answer=[file.order(row.answer) for row in rows],
        score=numbers("score").astype(np.float32),
        confidence=numbers("confidence").astype(np.float32),
        visual_tokens=file.to_units(numbers("cost")).astype(np.int32),
        **unmeasured,
    )


def describe_options(file: OutcomeFile) -> str:
    """Return the options with their mean costs, cheapest first, for the terminal."""
    options = asdict(file.options)
    costs = (
        f"{name} {scale * options['unit']:.4g}"
        for name, scale in zip(file.ladder, map(int, file.scales), strict=True)
    )
    return f"options, with their mean cost in {options['cost']}: {', '.join(costs)}"
