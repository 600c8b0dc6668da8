"""The work of answering test questions several times, block by block, as any engine does it."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from experiments.labels.blocks import Block, ImageQuestions, cut_into_blocks, decode_ahead, group_by_image
from experiments.labels.resampled import Floats, ResampledFolder
from experiments.labels.variations import Variation
from experiments.tasks.base import Sample, Task
from experiments.tasks.scorers import score
from m3_backbone.backbone import Backbone

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
        for scale in self.backbone.ladder:
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
