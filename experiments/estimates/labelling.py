"""Work, time, memory and disk of labelling a task with a backbone, calculated without answering anything.

The samples and images of the task are counted. Of an evenly spaced sample of the images, the sizes are read
and the questions and references are turned into tokens, which gives the exact numbers of tokens that the
decoder will process. What the answers will be is the one thing that has to be assumed.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from experiments.labels.block_labels import AnsweredSample, BlockLabels
from experiments.labels.blocks import ImageSamples, Limits, iterate_images, read_image
from experiments.labels.folder import KeptInputs
from experiments.tasks.base import Task
from m3_backbone.backbone import Answer
from m3_backbone.decoding.planning import FlopsPerToken, PlannedQuestion, PlannedWork, plan_work
from m3_backbone.features import describe_image
from m3_backbone.ladder import distinct_scales
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.outcomes.table import find_cluster


@dataclass(frozen=True, eq=False)
class SampledImage:
    """An image of the sample: its size (width, height) and its questions."""

    size: tuple[int, int]
    samples: ImageSamples


@dataclass(frozen=True, eq=False)
class Workload:
    """All images and samples of a task, and a sample of its images.

    `reading_seconds` is the mean processor time of reading and describing an image, `num_train_images` the
    number of images of the train split.
    """

    num_images: int
    num_samples: int
    sampled: list[SampledImage]
    num_unreadable: int
    reading_seconds: float
    num_train_images: int = 0

    @property
    def num_sampled(self) -> int:
        """Number of questions about the images of the sample."""
        return sum(len(image.samples.samples) for image in self.sampled)

    @property
    def factor(self) -> float:
        """Number of samples of the task for each one about the images of the sample."""
        return self.num_samples / self.num_sampled


def read_workload(task: Task, limit: Limits, num_images: int) -> Workload:
    """Count images and samples within the limits, and read `num_images` evenly spaced images.

    Raises ValueError for a task without samples, and if none of these images can be read.
    """
    images = list(iterate_images(task, limit))
    if not images:
        raise ValueError(
            f"{task.name} has no samples within these limits: give larger ones with limit.train=N"
        )
    step = max(1, len(images) // num_images)
    chosen = images[::step][:num_images]
    sampled: list[SampledImage] = []
    reason = ""
    start = time.process_time()
    for item in chosen:
        image = read_image(task, item.image_id)
        if isinstance(image, Image.Image):
            describe_image(image)
            sampled.append(SampledImage(image.size, item))
        else:
            reason = image
    seconds = time.process_time() - start
    if not sampled:
        raise ValueError(
            f"none of the {len(chosen)} images of {task.name} that the estimate is based on can be read "
            f"({reason}): fetch the images, or name their folder with task.images=FOLDER"
        )
    num_samples = sum(len(item.samples) for item in images)
    num_unreadable = len(chosen) - len(sampled)
    # As in label curves, images of one cluster count as one.
    train = [item for item in images if item.split == "train"]
    num_train = len({find_cluster(item.image_id, item.samples[0].attributes) for item in train})
    return Workload(len(images), num_samples, sampled, num_unreadable, seconds / len(chosen), num_train)


@dataclass
class LabellingWork:
    """Operations of labelling a whole task, and the passes in which they run.

    `prompts` are operations of the passes over prompts and drafts, `decoding` of the steps behind these;
    `row_length` is the mean number of tokens of an image with its questions in one pass, `largest_batch` and
    `largest_outputs` are the most tokens and rows of logits of a pass.
    """

    vision: float = 0
    prompts: float = 0
    decoding: float = 0
    passes: float = 0
    steps: float = 0
    row_length: float = 0
    rows_per_step: float = 0
    largest_batch: float = 0
    largest_outputs: float = 0

    @property
    def total(self) -> float:
        """All operations."""
        return self.vision + self.prompts + self.decoding


def count_labelling(
    backbone: ModelBackbone, workload: Workload, *, images_per_batch: int, acceptance: float
) -> LabellingWork:
    """Return the work of labelling the task: the mean over the sampled images times their number.

    `acceptance` is the probability that an answer equals a draft: a reference, or the answer at a finer
    scale. Scales that coincide on an image are answered once.
    """
    per_token = FlopsPerToken.of(backbone)
    total, planned = LabellingWork(), PlannedWork()
    segments = 0.0
    images = workload.sampled
    for start in range(0, len(images), images_per_batch):
        batch = images[start : start + images_per_batch]
        scales_of = [distinct_scales(backbone, image.size) for image in batch]
        for image, scales in zip(batch, scales_of, strict=True):
            total.vision += count_vision(backbone, image.size, scales)
        answered: set[int] = set()
        for scale in reversed(backbone.scales):
            numbers = [number for number, scales in enumerate(scales_of) if scale in scales]
            for is_finest in (True, False):
                part = [number for number in numbers if (number not in answered) == is_finest]
                work = plan_work(
                    backbone,
                    [batch[number].size for number in part],
                    _to_questions(backbone, [batch[number] for number in part]),
                    scale,
                    acceptance=acceptance,
                    is_finest=is_finest,
                )
                planned = planned + work
                segments += len(part)
            answered |= set(numbers)
    total.prompts, total.decoding = per_token.count(planned)
    total.passes, total.steps = planned.passes, planned.steps
    total.row_length = planned.tokens / max(segments, 1)
    total.rows_per_step = planned.decoded_tokens / max(planned.steps, 1e-9)
    total.largest_batch, total.largest_outputs = planned.largest_batch, planned.largest_outputs
    for name in ("vision", "prompts", "decoding", "passes", "steps"):
        setattr(total, name, getattr(total, name) * workload.factor)
    return total


def _to_questions(backbone: ModelBackbone, images: Sequence[SampledImage]) -> list[PlannedQuestion]:
    return [
        PlannedQuestion.of(backbone, number, sample.question, sample.references)
        for number, image in enumerate(images)
        for sample in image.samples.samples
    ]


def count_vision(backbone: ModelBackbone, size: tuple[int, int], scales: Sequence[int]) -> float:
    """Return the operations of all vision passes of an image that is answered at `scales`, ascending."""
    flops = [backbone.vision_flops(size, scale) for scale in scales]
    if backbone.family == "pooled":
        return flops[-1]
    # A thumbnail is counted at every scale, and runs once.
    shared = flops[0] * (len(flops) - 1) if backbone.family == "thumbnail" else 0
    return sum(flops) - shared


def measure_rows(backbone: ModelBackbone, workload: Workload) -> float:
    """Return the bytes of a row of the outcome table on disk: rows of the sample with made-up numbers."""
    rng = np.random.default_rng(0)
    labels = BlockLabels(backbone, KeptInputs())
    for image in workload.sampled:
        costs = [backbone.num_visual_tokens(image.size, scale) for scale in backbone.scales]
        vision = [backbone.vision_flops(image.size, scale) for scale in backbone.scales]
        for sample in image.samples.samples:
            prefill = [backbone.prefill_flops(image.size, sample.question, s) for s in backbone.scales]
            answers = [
                Answer(next(iter(sample.references), ""), [], rng.random(), rng.random(), rng.random(), 1)
                for _ in backbone.scales
            ]
            ids = backbone.question_ids(sample.question)
            labels.answered.append(AnsweredSample(sample, ids, costs, prefill, vision, answers))
    table: Any = labels.to_table({}, lambda sample, answer: 0.0).to_arrow()
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return len(file.getvalue()) / workload.num_sampled


def measure_features(backbone: ModelBackbone, workload: Workload, scales: Sequence[int]) -> float:
    """Return the bytes of the stored features of an image: its visual tokens at `scales` in float16."""
    hidden = backbone.checkpoint.config.get_text_config().hidden_size
    tokens = [backbone.num_visual_tokens(image.size, s) for image in workload.sampled for s in scales]
    return 2 * hidden * sum(tokens) / len(workload.sampled)
