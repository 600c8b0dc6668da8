"""The part of the train split that predictors are trained on, and soft targets from sampled answers."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from experiments.labels.resampled import Resampled, digest_resampled, locate_resampled, read_resampled
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.splitting import order_images, take_questions

# Key of the subset in the identity of a trained predictor; a predictor of all labels has none.
SUBSET = "subset"


@dataclass(frozen=True)
class Subset:
    """Part of the train split: numbers of images and of questions about each (None: all), and its targets.

    Images and questions are the first ones in the order of a hash of their ids and the seed of the training,
    so that those of a smaller number are among those of a larger one. With `soft`, the targets are means of
    the scores of sampled answers (`tokenscale resample split=train`) in place of the score of the greedy
    answer, and only samples that have sampled answers are used.
    """

    num_images: int | None = None
    questions_per_image: int | None = None
    soft: bool = False

    def identify(self, folder: Path | None) -> dict[str, Any]:
        """Return the subset of the labels in `folder` for the identity of a predictor.

        With `soft` it has a digest of the sampled answers.
        """
        content = asdict(self)
        if self.soft:
            assert folder is not None
            content["soft"] = digest_resampled(folder, "train")
        return content

    def take(self, labels: Labels, seed: int) -> Labels:
        """Return the part of the training labels. Raises ValueError for more images than there are."""
        if self.num_images is not None:
            images = order_images(labels.outcomes.cluster_id, seed)
            if self.num_images > len(images):
                raise ValueError(
                    f"labels.num_images={self.num_images}, but {len(images)} images can be trained on: give "
                    "at most as many, or null for all"
                )
            labels = labels.select(np.isin(labels.outcomes.cluster_id.astype(str), images[: self.num_images]))
        if self.questions_per_image is not None:
            labels = take_questions(labels, self.questions_per_image, seed)
        return labels

    def read(self, folder: Path, seed: int) -> Labels:
        """Read this part of the train split of a label folder, with the targets as scores."""
        split = TrainSplit.read(folder, soft=self.soft)
        return split.soften(self.take(split.labels, seed))


@dataclass(frozen=True, eq=False)
class TrainSplit:
    """The train split of a label folder, with the scores of sampled answers if they are to be targets."""

    labels: Labels
    soft_score: dict[str, np.ndarray] | None = None

    @classmethod
    def read(cls, folder: Path, *, soft: bool) -> Self:
        """Read the split; with `soft`, only the samples with sampled answers.

        Raises FileNotFoundError if there are none.
        """
        labels = read_labels(folder, "train")
        if not soft:
            return cls(labels)
        sampled = read_soft(folder, labels.outcomes)
        mean = sampled.score.mean(axis=0).astype(np.float32)
        labels = labels.select(sampled.rows)
        return cls(labels, dict(zip(labels.outcomes.sample_id, mean, strict=True)))

    def soften(self, labels: Labels) -> Labels:
        """Return samples of this split with their targets as scores."""
        if self.soft_score is None:
            return labels
        score = np.stack([self.soft_score[sample] for sample in labels.outcomes.sample_id])
        return replace(labels, outcomes=replace(labels.outcomes, score=score))


def read_soft(folder: Path, train: OutcomeTable) -> Resampled:
    """Read the scores of sampled answers to training questions. Raises FileNotFoundError without any."""
    digest_resampled(folder, "train")
    sampled = read_resampled(folder, train, "train")
    if sampled is None:
        raise FileNotFoundError(
            f"{locate_resampled(folder, 'train')} has no answers to questions of the train split: run "
            "`tokenscale resample split=train` again"
        )
    return sampled
