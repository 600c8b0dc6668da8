"""Trainings on parts of the train split, for the share of the gap against the number of labels.

For each seed, the images of the train split are put in the order of a hash. The last ones are the validation
part, on which results are measured and which no training sees; a training gets the first n of the others. Of
these n, a share is held back for early stopping, so that n counts all images that a training needs labels of.
"""

import copy
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import joblib
import lightning
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.labels.files import to_file_name
from experiments.labels.progress import show_progress
from experiments.training.configured import read_trainer
from experiments.training.subset import Subset, TrainSplit, read_soft
from experiments.training.trained import TrainingSettings, check_names, identify
from experiments.training.trainer import quiet_lightning, value_bounds
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest, seal, unseal
from predictor.base import FitContext, ScalePredictor
from predictor.files import FolderError, read_json, write_json
from predictor.policy.front import policy_value
from predictor.splitting import order_images, split_validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Result of one training on the validation part, with greedy outcomes.

    `share` is the share of the gap from mix to budgeted oracle, averaged over log-spaced budgets.
    `num_answers` is the number of answers per scale that the targets were made of, and
    `questions_per_image` None for all questions.
    """

    predictor: str
    num_images: int
    questions_per_image: int | None
    soft: bool
    seed: int
    num_samples: int
    num_answers: int
    share: float
    seconds: float


@dataclass(frozen=True, eq=False)
class CurveLabels:
    """Train split of one seed: samples that are trained on (`pool`) and that results are measured on."""

    pool: Labels
    validation: Labels
    split: TrainSplit

    @classmethod
    def divide(cls, folder: Path, validation_fraction: float, seed: int, *, soft: bool) -> Self:
        """Divide the train split; with `soft`, the pool has only images with sampled answers."""
        labels = _read(folder, soft=False).labels
        images = order_images(labels.outcomes.cluster_id, seed)
        measured = images[-count_validation(folder, validation_fraction) :]
        is_measured = np.isin(labels.outcomes.cluster_id.astype(str), measured)
        split = _read(folder, soft=soft)
        in_pool = ~np.isin(split.labels.outcomes.cluster_id.astype(str), measured)
        return cls(split.labels.select(in_pool), labels.select(is_measured), split)

    @property
    def num_images(self) -> int:
        """Number of images that can be trained on."""
        return len(set(self.pool.outcomes.cluster_id))


def count_validation(folder: Path, validation_fraction: float) -> int:
    """Return the number of images of the train split on which results are measured."""
    num_images = len(set(_read(folder, soft=False).labels.outcomes.cluster_id))
    return max(1, round(validation_fraction * num_images))


@functools.lru_cache(maxsize=2)
def _read(folder: Path, *, soft: bool) -> TrainSplit:
    return TrainSplit.read(folder, soft=soft)


@dataclass(frozen=True, eq=False)
class CurveTraining:
    """One training: an untrained predictor, the subset that it gets, and where its result is kept.

    `validation_fraction` is the share of the images that results are measured on, `stopping_fraction` that of
    the subset that is held back for early stopping, `trainer` as in `TrainingSettings`.
    """

    predictor: ScalePredictor
    subset: Subset
    seed: int
    labels: Path
    results: Path
    validation_fraction: float
    stopping_fraction: float
    make_trainer: Callable[..., lightning.Trainer] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON."""
        settings = TrainingSettings(
            seed=self.seed,
            validation_fraction=self.stopping_fraction,
            trainer=self.trainer,
            subset=self.subset,
        )
        content = identify(self.predictor, read_manifest(self.labels), settings, self.labels)
        return {**content, "measured_fraction": self.validation_fraction}

    @property
    def path(self) -> Path:
        """File of the result."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        return self.results / to_file_name(self.predictor.name) / f"{digest}.json"

    def read(self) -> Measurement | None:
        """Read the result; None if it is missing or damaged."""
        if not self.path.exists():
            return None
        try:
            content = unseal(read_json(self.path))
            return Measurement(**content["measurement"]) if content["identity"] == self.identity else None
        except (FolderError, KeyError, TypeError, ValueError) as error:
            log.warning("measured again: %s is damaged (%s)", self.path, error)
            return None

    def measure(self) -> Measurement:
        """Train, measure on the validation part, and write the result."""
        part = CurveLabels.divide(self.labels, self.validation_fraction, self.seed, soft=self.subset.soft)
        subset = self.subset.take(part.pool, self.seed)
        train, stopping = split_validation(subset, self.stopping_fraction, self.seed)
        start = time.perf_counter()
        self.predictor.fit(
            part.split.soften(train), part.split.soften(stopping), FitContext(None, self.make_trainer)
        )
        seconds = time.perf_counter() - start
        inputs, score = part.validation.inputs, part.validation.outcomes.score.astype(np.float64)
        cost = self.predictor.features.count_paid_tokens(inputs)
        value = policy_value(self.predictor.predict(inputs), cost, score)
        mix, oracle = value_bounds(part.pool, part.validation)
        num_runs = count_runs(self.labels) if self.subset.soft else 1
        measurement = Measurement(
            predictor=self.predictor.name,
            num_images=len(set(subset.outcomes.cluster_id)),
            questions_per_image=self.subset.questions_per_image,
            soft=self.subset.soft,
            seed=self.seed,
            num_samples=len(subset),
            num_answers=num_runs * len(subset),
            share=(value - mix) / (oracle - mix) if oracle > mix else 0.0,
            seconds=seconds,
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, seal({"identity": self.identity, "measurement": asdict(measurement)}))
        return measurement


@functools.lru_cache(maxsize=1)
def count_runs(labels: Path) -> int:
    """Return the number of sampled answers to each training question."""
    return len(read_soft(labels, read_labels(labels, "train").outcomes).score)


def plan_subsets(
    labels: Path,
    *,
    num_images: Sequence[int | None],
    questions_per_image: Sequence[int | None],
    soft: Sequence[bool],
    seeds: Sequence[int],
    validation_fraction: float,
) -> list[Subset]:
    """Return the subsets of all combinations; None images are all that can be trained on with every seed.

    Raises ValueError for more images than there are, before anything is trained.
    """
    subsets = []
    for is_soft in soft:
        divisions = [CurveLabels.divide(labels, validation_fraction, seed, soft=is_soft) for seed in seeds]
        available = min(division.num_images for division in divisions)
        if too_many := [number for number in num_images if number is not None and number > available]:
            raise ValueError(
                f"num_images={max(too_many)}, but {labels} has {available} images to train on"
                f"{' with sampled answers' * is_soft} besides those for validation: give at most as many, "
                "or null for all"
            )
        numbers = sorted({number or available for number in num_images})
        subsets += [
            Subset(number, per_image, is_soft) for per_image in questions_per_image for number in numbers
        ]
    return subsets


def make_trainings(config: DictConfig, labels: Path) -> list[CurveTraining]:
    """Return the trainings of the configuration of `label_curve`, seed by seed.

    Raises ValueError for predictors of the same name, and as `plan_subsets`.
    """
    check_names([str(part.name) for part in config.predictors.values()])
    seeds = list(dict.fromkeys(config.seeds))
    subsets = plan_subsets(
        labels,
        num_images=list(config.num_images),
        questions_per_image=list(dict.fromkeys(config.questions_per_image)),
        soft=list(dict.fromkeys(config.soft)),
        seeds=seeds,
        validation_fraction=config.validation_fraction,
    )
    trainings, config = [], copy.deepcopy(config)
    for seed in seeds:
        config.seed = seed  # the predictors interpolate it
        for part in config.predictors.values():
            predictor = instantiate(part, _convert_="all")
            trainings += [
                CurveTraining(
                    predictor=copy.deepcopy(predictor),
                    subset=subset,
                    seed=seed,
                    labels=labels,
                    results=Path(config.folder),
                    validation_fraction=config.validation_fraction,
                    stopping_fraction=config.stopping_fraction,
                    make_trainer=functools.partial(instantiate, config.trainer),
                    trainer=read_trainer(config.trainer),
                )
                for subset in subsets
            ]
    return trainings


def measure_curve(
    trainings: Sequence[CurveTraining], num_processes: int
) -> tuple[list[Measurement], list[str]]:
    """Return the measurements of all trainings in order, and a line for each that failed.

    Finished trainings are read from their files; `num_processes` processes share the others.
    """
    results = [training.read() for training in trainings]
    missing = [number for number, result in enumerate(results) if result is None]
    failures = []
    with show_progress(
        "label curve", total=len(trainings), initial=len(trainings) - len(missing), unit="trainings"
    ) as bar:
        measured = joblib.Parallel(n_jobs=num_processes, return_as="generator_unordered")(
            joblib.delayed(_measure)(number, trainings[number]) for number in missing
        )
        for number, result in measured:
            if isinstance(result, str):
                failures.append(result)
            else:
                results[number] = result
            bar.update(1)
    return [result for result in results if result is not None], failures


def _measure(number: int, training: CurveTraining) -> tuple[int, Measurement | str]:
    """Return the result of a training, or a line that says why there is none."""
    quiet_lightning()
    try:
        return number, training.measure()
    except ValueError as error:
        subset = training.subset
        return number, (
            f"{training.predictor.name}, {subset.num_images} images, seed {training.seed}: {error}"
        )
