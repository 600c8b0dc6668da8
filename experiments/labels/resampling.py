"""Several answers to each question of a split, under variations that should not affect the score.

A cross-fitted oracle needs runs that are equally good and differ by chance only: answers sampled at a
temperature, or greedy answers to a multiple-choice question with its options in another order.
"""

import itertools
import logging
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from experiments.labels.block_labels import find_coarsest_on
from experiments.labels.blocks import Block, ImageQuestions, cut_into_blocks, group_by_image
from experiments.labels.engines import Engine, Job, LocalEngine, run_job
from experiments.labels.records import WorkRecord
from experiments.labels.resampled import Floats, Resampled, ResampledFolder, read_resampled
from experiments.tasks.base import Sample, Split, Task, check_data
from experiments.tasks.scoring import LETTER_METRICS
from m3_backbone.arguments import PositiveFloat, checked
from m3_backbone.backbone import Backbone, EncodedImage
from m3_backbone.decoding.sampling import Draw
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import OutcomeTable, check_fingerprints

log = logging.getLogger(__name__)

_OPTIONS = re.compile(r"^A\. .*(?:\n[B-Z]\. .*)+", re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """Question and references of a sample in one run; the answer is greedy if `draw` is None."""

    question: str
    references: tuple[str, ...]
    draw: Draw | None = None


class Variation(Protocol):
    """Protocol of a variation of questions or answers between runs.

    Only runs with the same `identity` may be combined.
    """

    @property
    def identity(self) -> Mapping[str, float | str]: ...

    def suits(self, sample: Sample, num_runs: int) -> bool:
        """Whether the sample has `num_runs` different variants."""
        ...

    def vary(self, sample: Sample, scale: int, run: int) -> Variant:
        """Return the variant of a sample in run `run`, from 0."""
        ...


class DrawnAnswers:
    """Answers sampled from the model at `temperature`, which is above 0 (else ValueError).

    The answers to a sample depend on `seed`, sample_id, scale and run only.
    """

    @checked
    def __init__(self, temperature: PositiveFloat = 1.0, seed: int = 0) -> None:
        self._draw = Draw(temperature, (seed,))
        self.identity: Mapping[str, float | str] = {"temperature": float(temperature), "seed": seed}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return True

    def vary(self, sample: Sample, scale: int, run: int) -> Variant:
        key = (*self._draw.key, sample.sample_id, scale, run)
        return Variant(sample.question, sample.references, replace(self._draw, key=key))


class RotatedOptions:
    """Greedy answers with the options of a multiple-choice question rotated by one place per run.

    Options are consecutive lines "A. text", "B. text", ..., and the reference is a letter. Run 0 is the
    question as it was labelled. A question needs at least as many options as there are runs, or two runs
    would be the same.
    """

    identity: Mapping[str, float | str] = {"options": "rotated"}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return sample.metric in LETTER_METRICS and len(_find_options(sample.question)[0]) >= num_runs

    def vary(self, sample: Sample, scale: int, run: int) -> Variant:
        options, (start, stop) = _find_options(sample.question)
        shift = run % len(options)
        rotated = options[shift:] + options[:shift]
        lines = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, rotated, strict=False)]
        question = sample.question[:start] + "\n".join(lines) + sample.question[stop:]
        indices = [string.ascii_uppercase.index(letter.strip().upper()) for letter in sample.references]
        references = tuple(string.ascii_uppercase[(index - shift) % len(options)] for index in indices)
        return Variant(question, references)


def _find_options(question: str) -> tuple[list[str], tuple[int, int]]:
    """Return the texts of the options and their (start, stop) in the question; ([], (0, 0)) if it has none.

    The letters have to be A, B, ... without gaps. Of several blocks of such lines the last one counts, as the
    context before the question may contain others.
    """
    blocks = list(_OPTIONS.finditer(question))
    lines = blocks[-1].group().split("\n") if blocks else []
    if [line[0] for line in lines] != list(string.ascii_uppercase[: len(lines)]) or not lines:
        return [], (0, 0)
    return [line[3:] for line in lines], blocks[-1].span()


# Samples per file; a killed run loses at most these. With another size, existing files could not be resumed.
SHARD_SIZE = 250


@dataclass(frozen=True, eq=False, kw_only=True)
class ResampleJob(Job):
    """Job that answers each sample in several runs and writes the scores.

    `guesses` maps sample_id to likely answers, used as drafts: they speed up decoding and change no answer.
    """

    folder: ResampledFolder
    variation: Variation
    samples: Sequence[Sample]
    guesses: Mapping[str, Sequence[str]]
    num_images: int | None
    num_runs: int
    split: Split = "test"

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks of the samples, in order."""
        names = (f"{self.split}-{number:05d}" for number in itertools.count())
        images = itertools.islice(group_by_image(self.samples), self.num_images)
        return cut_into_blocks(names, (samples for _, samples in images), SHARD_SIZE)

    def work_on_block(self, block: Block, batches: Iterable[Sequence[ImageQuestions]]) -> Iterator[int]:
        """Answer a block in every run and write the scores."""
        with self.folder.recording_block(block.name):
            scores: list[Floats] = []
            for batch in batches:
                scores.append(self.score_runs(batch))
                yield scores[-1].shape[1]
            samples = [sample.sample_id for sample in block.samples]
            self.folder.write(block.name, samples, np.concatenate(scores, axis=1))

    def score_runs(self, batch: Sequence[ImageQuestions]) -> Floats:
        """Return the scores `[num_runs, num_samples, num_scales]`; each image is encoded once.

        Scales that coincide on an image share one answer per run, given at the coarsest of them.
        """
        pictures = []
        for item in batch:
            if not isinstance(item.image, Image.Image):
                raise OSError(
                    f"{item.image}; it was readable when it was labelled: restore the file, or label again"
                )
            pictures.append(item.image)
        encoded = self.backbone.encode(pictures)
        runs = range(self.num_runs)
        rows = [
            (image, sample, run)
            for image, item in zip(encoded, batch, strict=True)
            for sample in item.samples
            for run in runs
        ]
        coarsest = find_coarsest_on(self.backbone, [image for image, _, _ in rows], self.backbone.scales)
        scores = np.zeros(coarsest.shape)
        for column, scale in enumerate(self.backbone.scales):
            distinct = np.flatnonzero(coarsest[:, column] == column)
            scores[distinct, column] = self._score_at(scale, [rows[row] for row in distinct])
        scores = np.take_along_axis(scores, coarsest, axis=1)
        return scores.reshape(-1, self.num_runs, len(self.backbone.scales)).transpose(1, 0, 2)

    def _score_at(self, scale: int, rows: Sequence[tuple[EncodedImage, Sample, int]]) -> list[float]:
        """Return the score at `scale` of each (encoded image, sample, run)."""
        if not rows:
            return []
        variants = [self.variation.vary(sample, scale, run) for _, sample, run in rows]
        draws = [variant.draw for variant in variants if variant.draw is not None]
        answers = self.backbone.answer(
            [image for image, _, _ in rows],
            [variant.question for variant in variants],
            scale,
            references=[
                (*variant.references, *self.guesses[sample.sample_id])
                for variant, (_, sample, _) in zip(variants, rows, strict=True)
            ],
            draws=draws or None,
        )
        varied = [
            replace(sample, question=variant.question, references=variant.references)
            for variant, (_, sample, _) in zip(variants, rows, strict=True)
        ]
        return [self.task.score(sample, answer.text) for sample, answer in zip(varied, answers, strict=True)]


def resample_answers(
    backbone: Backbone,
    task: Task,
    table: OutcomeTable,
    folder: ResampledFolder,
    variation: Variation,
    *,
    split: Split = "test",
    num_images: int | None = None,
    num_runs: int = 4,
    images_per_batch: int = 32,
    num_workers: int = 0,
    overwrite: bool = False,
    engine: Engine | None = None,
    record: WorkRecord | None = None,
) -> Resampled:
    """Write scores of `num_runs` answers to the questions on the first `num_images` images of `table`.

    `table` are the outcomes of `split`. Returns all scores in `folder`. `record` is as in
    `labels.labelling.label`. Raises ValueError for fewer than two runs, if no question has `num_runs`
    variants, if task or backbone are not those of the labels, and if the folder holds another variation
    (unless `overwrite`), more runs or more images.
    """
    if num_runs < 2:
        raise ValueError(f"num_runs={num_runs} leaves no second run to choose the scale by: give 2 or more")
    labels = folder.path.parent
    check_data(task, read_manifest(labels), labels)
    own = {key: table.fingerprints[key] for key in backbone.fingerprints}
    check_fingerprints(own, backbone.fingerprints, "the labels", f"backbone {backbone.name}")
    split_samples = list_samples(table, split)
    samples = select_varied(split_samples, variation, num_runs, origin=f"{split} question of {labels}")
    # Besides the references, the greedy answers are the likeliest ones.
    guesses = {
        sample.sample_id: tuple(answers) for sample, answers in zip(split_samples, table.answer, strict=True)
    }
    job = ResampleJob(
        task=task,
        backbone=backbone,
        images_per_batch=images_per_batch,
        num_workers=num_workers,
        folder=folder,
        variation=variation,
        samples=samples,
        guesses=guesses,
        num_images=num_images,
        num_runs=num_runs,
        split=split,
    )
    blocks = {block.name: [sample.sample_id for sample in block.samples] for block in job.blocks()}
    sizes = {name: len(ids) for name, ids in blocks.items()}

    def find_done() -> set[str]:
        return {name for name, ids in blocks.items() if folder.holds(name, ids, num_runs)}

    with ExitStack() as stack:
        # A finished folder may be read-only: the lock is taken only if something is to be written.
        if folder.find_unusable(table.sample_id, overwrite=overwrite) or find_done() != blocks.keys():
            stack.enter_context(folder.locked())
            folder.begin(table.sample_id, overwrite=overwrite)
            folder.refuse_less(blocks, num_runs)
            # In place of a digest, the number of runs that the file of a block has to hold.
            planned = {name: (str(num_runs), size) for name, size in sizes.items()}
            own_record = (record or WorkRecord.begin()).model_copy(update={"part": "0/1", "blocks": planned})
            stack.enter_context(folder.recording("0-of-1", own_record))
        run_job(engine or LocalEngine(), job, sizes, find_done())
    resampled = read_resampled(labels, table, split)
    if resampled is None:
        raise ValueError(
            f"num_images={num_images} of {labels} have no question to sample: give a larger num_images"
        )
    return resampled


def select_varied(
    samples: Sequence[Sample], variation: Variation, num_runs: int, *, origin: str
) -> list[Sample]:
    """Return the samples with `num_runs` variants; ValueError that names `origin` if there are none."""
    varied = [sample for sample in samples if variation.suits(sample, num_runs)]
    if not varied:
        raise ValueError(
            f"no {origin} has {num_runs} different variants: give a smaller num_runs or another variation"
        )
    if num_left_out := len(samples) - len(varied):
        log.info(
            "left out: %d of %d questions have fewer than %d variants", num_left_out, len(samples), num_runs
        )
    return varied


def list_samples(table: OutcomeTable, split: Split) -> list[Sample]:
    """Return the samples of an outcome table of a split."""
    return [
        Sample(
            sample_id=table.sample_id[row],
            image_id=table.image_id[row],
            task=table.task[row],
            split=split,
            question=table.question[row],
            references=tuple(table.references[row]),
            metric=table.metric[row],
            attributes=table.attributes[row],
        )
        for row in range(len(table))
    ]
