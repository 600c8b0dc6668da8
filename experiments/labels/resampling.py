"""Sampled answers: variations of a question, and the job that answers them.

What may differ when a question is asked again, where a right answer should not hang on it.

An oracle over several runs needs runs that are equally good and differ in their luck alone: answers drawn at
random, or, with options to choose from, the same options in another order.

The work of answering test questions several times, block by block, as any engine does it.
"""

import itertools
import logging
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from experiments.labels.blocks import Block, ImageQuestions, cut_into_blocks, decode_ahead, group_by_image
from experiments.labels.engines import Engine, LocalEngine
from experiments.labels.labelling import run
from experiments.labels.resampled import Floats, Resampled, ResampledFolder, read_resampled
from experiments.tasks.base import Sample, Task, check_data
from experiments.tasks.scoring import LETTER_METRICS, score
from m3_backbone.arguments import PositiveFloat, checked
from m3_backbone.backbone import Backbone
from m3_backbone.decoding.sampling import Draw
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import OutcomeTable, check_fingerprints

log = logging.getLogger(__name__)

_OPTIONS = re.compile(r"^A\. .*(?:\n[B-Z]\. .*)+", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """How a sample is asked in one run: the answer is drawn as `draw` says, or greedy."""

    question: str
    references: tuple[str, ...]
    draw: Draw | None = None


class Variation(Protocol):
    """`identity` is what may not differ between runs that are looked at together."""

    @property
    def identity(self) -> Mapping[str, float | str]: ...

    def suits(self, sample: Sample, num_runs: int) -> bool:
        """Whether the sample can be asked in so many different ways."""
        ...

    def ask(self, sample: Sample, scale: int, run: int) -> Asked: ...


class DrawnAnswers:
    """Answers drawn from the model's own distribution at `temperature`. ValueError where it is not above 0.

    With the same `seed` a sample has the same answers, whatever else is asked.
    """

    @checked
    def __init__(self, temperature: PositiveFloat = 1.0, seed: int = 0) -> None:
        self._draw = Draw(temperature, (seed,))
        self.identity: Mapping[str, float | str] = {"temperature": float(temperature), "seed": seed}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return True

    def ask(self, sample: Sample, scale: int, run: int) -> Asked:
        key = (*self._draw.key, sample.sample_id, scale, run)
        return Asked(sample.question, sample.references, replace(self._draw, key=key))


class RotatedOptions:
    """Greedy answers with the options of a multiple-choice question moved on by one place a run.

    Options are lines "A. text", "B. text", ... one after the other, and the reference is a letter. Run 0 is
    the question as it was labelled. Questions with fewer options than runs do not suit: two runs would be the
    same.
    """

    identity: Mapping[str, float | str] = {"options": "rotated"}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return sample.metric in LETTER_METRICS and len(_find_options(sample.question)[0]) >= num_runs

    def ask(self, sample: Sample, scale: int, run: int) -> Asked:
        options, (start, stop) = _find_options(sample.question)
        shift = run % len(options)
        moved = options[shift:] + options[:shift]
        lines = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, moved, strict=False)]
        question = sample.question[:start] + "\n".join(lines) + sample.question[stop:]
        places = [string.ascii_uppercase.index(letter.strip().upper()) for letter in sample.references]
        references = tuple(string.ascii_uppercase[(place - shift) % len(options)] for place in places)
        return Asked(question, references)


def _find_options(question: str) -> tuple[list[str], tuple[int, int]]:
    """Texts of the options, in order, and where they stand; none where letters are missing or out of order.

    The last such lines count: a context before the question may have lines of its own.
    """
    blocks = list(_OPTIONS.finditer(question))
    lines = blocks[-1].group().split("\n") if blocks else []
    if [line[0] for line in lines] != list(string.ascii_uppercase[: len(lines)]) or not lines:
        return [], (0, 0)
    return [line[3:] for line in lines], blocks[-1].span()


# Samples per file: what a killed run has to do again at most. Files of another size would not go on.
SHARD_SIZE = 250


@dataclass(frozen=True, eq=False)
class ResampleJob:
    """All that a process needs to answer blocks of test samples several times.

    `guesses` are, by sample_id, answers that are likely; they make decoding faster and change no answer.
    """

    task: Task
    backbone: Backbone
    folder: ResampledFolder
    variation: Variation
    samples: Sequence[Sample]
    guesses: Mapping[str, Sequence[str]]
    num_images: int | None
    num_runs: int
    images_per_batch: int
    num_workers: int

    def blocks(self) -> Iterator[Block]:
        """All blocks of the test samples, in order."""
        names = (f"test-{number:05d}" for number in itertools.count())
        images = itertools.islice(group_by_image(self.samples), self.num_images)
        return cut_into_blocks(names, (samples for _, samples in images), SHARD_SIZE)

    def work_on(self, blocks: Iterable[Block]) -> Iterator[int]:
        """Answer and write the scores; yields, batch by batch, how many samples are done."""
        images = decode_ahead(
            self.task, blocks, num_workers=self.num_workers, images_ahead=self.images_per_batch
        )
        for block, group in itertools.groupby(images, key=lambda item: item.block):
            scores: list[Floats] = []
            while batch := list(itertools.islice(group, self.images_per_batch)):
                scores.append(self.score_runs(batch))
                yield scores[-1].shape[1]
            samples = [sample.sample_id for sample in block.samples]
            self.folder.write(block.name, samples, np.concatenate(scores, axis=1))

    def score_runs(self, batch: Sequence[ImageQuestions]) -> Floats:
        """Scores `[num_runs, num_samples, num_scales]` of the answers; each image is encoded once."""
        pictures = []
        for item in batch:
            if not isinstance(item.image, Image.Image):
                raise OSError(f"{item.image}; when it was labelled it could be read: mend it, or label again")
            pictures.append(item.image)
        encoded = self.backbone.encode(pictures)
        runs = range(self.num_runs)
        rows = [
            (image, sample, run)
            for image, item in zip(encoded, batch, strict=True)
            for sample in item.samples
            for run in runs
        ]
        scores = []
        for scale in self.backbone.scales:
            asked = [self.variation.ask(sample, scale, run) for _, sample, run in rows]
            draws = [each.draw for each in asked if each.draw is not None]
            answers = self.backbone.answer(
                [image for image, _, _ in rows],
                [each.question for each in asked],
                scale,
                references=[
                    (*each.references, *self.guesses[sample.sample_id])
                    for each, (_, sample, _) in zip(asked, rows, strict=True)
                ],
                draws=draws or None,
            )
            scores.append(
                [
                    score(sample.metric, answer.text, each.references)
                    for each, (_, sample, _), answer in zip(asked, rows, answers, strict=True)
                ]
            )
        return np.array(scores).reshape(len(scores), -1, self.num_runs).transpose(2, 1, 0)


def resample_answers(
    backbone: Backbone,
    task: Task,
    test: OutcomeTable,
    folder: ResampledFolder,
    variation: Variation,
    *,
    num_images: int | None = None,
    num_runs: int = 4,
    images_per_batch: int = 32,
    num_workers: int = 0,
    overwrite: bool = False,
    engine: Engine | None = None,
) -> Resampled:
    """Fill `folder` with scores of several answers to the questions on the first images of `test`.

    Returns all that is there then. Raises ValueError for fewer than two runs, where no question can be asked
    in so many ways, where task or backbone are not those that labelled, and where the folder holds another
    variation, unless that is to be replaced (`overwrite`), or more than is asked for.
    """
    if num_runs < 2:
        raise ValueError(f"num_runs={num_runs} leaves no other run to choose by: take 2 or more")
    labels = folder.path.parent
    check_data(task, read_manifest(labels), labels)
    own = {key: test.fingerprints[key] for key in backbone.fingerprints}
    check_fingerprints(own, backbone.fingerprints, "the labels", f"backbone {backbone.name}")
    folder.begin(test.sample_id, overwrite=overwrite)
    every = list_samples(test)
    samples = [sample for sample in every if variation.suits(sample, num_runs)]
    if not samples:
        raise ValueError(
            f"no test question of {labels} can be asked in {num_runs} different ways: take a smaller "
            "num_runs or another variation"
        )
    if len(samples) < len(every):
        left_out = len(every) - len(samples)
        log.info("left out: %d of %d questions, with no %d ways to ask", left_out, len(every), num_runs)
    # What was answered is, beside what is right, the likeliest answer.
    guesses = {sample.sample_id: tuple(answers) for sample, answers in zip(every, test.answer, strict=True)}
    job = ResampleJob(
        task,
        backbone,
        folder,
        variation,
        samples,
        guesses,
        num_images,
        num_runs,
        images_per_batch,
        num_workers,
    )
    blocks = {block.name: [sample.sample_id for sample in block.samples] for block in job.blocks()}
    folder.refuse_less(blocks, num_runs)
    done = {name for name, samples in blocks.items() if folder.holds(name, samples, num_runs)}
    run(engine or LocalEngine(), job, {name: len(samples) for name, samples in blocks.items()}, done)
    resampled = read_resampled(labels, test)
    if resampled is None:
        raise ValueError(f"num_images={num_images} of {labels} have no question: nothing was drawn")
    return resampled


def list_samples(table: OutcomeTable) -> list[Sample]:
    """The samples of an outcome table of the test split."""
    return [
        Sample(
            sample_id=table.sample_id[row],
            image_id=table.image_id[row],
            task=table.task[row],
            split="test",
            question=table.question[row],
            references=tuple(table.references[row]),
            metric=table.metric[row],
            attributes=table.attributes[row],
        )
        for row in range(len(table))
    ]
