"""Labels of the sources of a transfer: of other tasks, or of another backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.evaluation.stability import find_pairs
from experiments.tasks.base import Split
from experiments.training.joining import as_backbone, join_labels
from experiments.training.trained import TrainingSettings
from m3_backbone.outcomes.labels import Labels, read_labels
from predictor.base import ScalePredictor
from predictor.splitting import split_validation


@dataclass(frozen=True)
class Source:
    """Labels that are trained on: of a task, by another backbone if `backbone` is given."""

    task: str
    backbone: str | None = None

    @property
    def name(self) -> str:
        return self.task if self.backbone is None else f"{self.task} of {self.backbone}"

    def find(self, labels: Path) -> Path:
        """Return the label folder, given the folder `labels` of the evaluated backbone's tasks."""
        return (labels if self.backbone is None else labels.parent / self.backbone) / self.task


def list_sources(tasks: Sequence[str], backbones: Sequence[str], backbone: str) -> list[Source]:
    """Return the sources of every backbone, by default of `backbone`, the one that is evaluated."""
    return [
        Source(task, None if name == backbone else name) for name in backbones or [backbone] for task in tasks
    ]


def name_sources(sources: Sequence[Source]) -> str:
    """Return the name of labels that are joined from several sources."""
    return " + ".join(source.name for source in sources)


@dataclass(frozen=True)
class SourceReader:
    """Reads the labels of sources, and joins them.

    `labels` is the folder of the evaluated backbone's tasks. Of a train split, the subset of `settings` is
    read. Versions of the samples of the source `outcomes_of` get its outcomes. With `like`, labels of the
    evaluated backbone, all sources are read as labels of that backbone (`as_backbone`).
    """

    labels: Path
    settings: TrainingSettings
    outcomes_of: str | None = None
    like: Labels | None = None

    def read(self, source: Source, split: Split) -> Labels:
        folder = source.find(self.labels)
        if split == "train":
            labels = self.settings.subset.read(folder, self.settings.seed)
        else:
            labels = read_labels(folder, split)
        if self.outcomes_of is not None and source.task != self.outcomes_of:
            labels = take_outcomes(labels, read_labels(folder.parent / self.outcomes_of, split))
        return labels if self.like is None else as_backbone(labels, self.like)

    def read_training(self, sources: Sequence[Source]) -> tuple[Labels, Labels]:
        """Return the joint labels for training and for validation; every source is divided by itself."""
        fraction, seed = self.settings.validation_fraction, self.settings.seed
        halves = {
            source.name: split_validation(self.read(source, "train"), fraction, seed) for source in sources
        }
        train, validation = (
            join_labels({name: half[side] for name, half in halves.items()}) for side in (0, 1)
        )
        return train, validation

    def read_calibration(self, sources: Sequence[Source]) -> Labels:
        """Return the joint labels of the calibration splits."""
        return join_labels({source.name: self.read(source, "calibration") for source in sources})


def take_outcomes(version: Labels, original: Labels) -> Labels:
    """Return labels with the scores and likelihoods of `original` if they are a version of its samples."""
    if (rows := find_pairs(original.outcomes, version.outcomes)) is None:
        return version
    columns = {name: getattr(original.outcomes, name)[rows] for name in ("score", "nll")}
    return replace(version, outcomes=replace(version.outcomes, **columns))


def check_outside(predictor: ScalePredictor) -> None:
    """Raise ValueError for a predictor that reads what only the backbone computes."""
    is_resolved = predictor.features.visual is not None
    if not is_resolved or predictor.reads_backbone:
        raise ValueError(
            f"{predictor.name} reads tokens of the backbone, and another backbone has others: with "
            "source_backbones choose predictor=question_only, image_statistics or thumbnail, or features "
            "without visual tokens, question ids and tower statistics"
        )
