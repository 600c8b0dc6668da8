"""Settings of `run` and its steps, and of `resample`."""

from typing import Annotated, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, Field, model_validator

from experiments.settings.base import (
    Built,
    Deferred,
    FolderName,
    Labelled,
    NumImages,
    NumResamples,
    NumWorkers,
    PathText,
    Printed,
    Recorded,
    Refusal,
    Settings,
    accept,
)
from m3_backbone.arguments import (
    ClosedFraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Seed,
)


def _check_shard(text: str) -> str:
    from experiments.labels.labelling import ShardSubset

    return accept(text, ShardSubset.parse)


def _check_metric(name: str) -> str:
    from experiments.training.trained import VALIDATION_METRICS

    if name not in VALIDATION_METRICS:
        raise Refusal(
            f"give one of {', '.join(VALIDATION_METRICS)}: what a sweep optimises comes from validation"
        )
    return name


class Limit(Settings):
    """Whole images per split."""

    train: NumImages | None
    """images of the train split; null: all"""
    calibration: NumImages | None
    """images of the calibration split; null: all"""
    test: NumImages | None
    """images of the test split; null: all"""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if self.train == self.calibration == self.test == 0:
            raise Refusal("limit.train=0, limit.calibration=0, limit.test=0: give a number above 0 for one")
        return self


class Asking(Labelled):
    """Settings shared by the commands that ask the backbone."""

    backbone: Built
    """frozen model that answers"""
    task: Built
    """source of images, questions and scores"""


class Reading(Settings):
    """Reading and batching of images."""

    images_per_batch: PositiveInt
    """images that are encoded together"""
    num_workers: NumWorkers
    """processes that read images ahead of the model; 0: none"""


class LabelSettings(Asking, Reading):
    """`conf/settings/label.yaml`."""

    limit: Limit
    feature_scales: list[PositiveInt] | None
    """scales of the visual tokens stored for predictors; null: the backbone's own (M3: 1, 9, 36)"""
    decoder_state: bool
    """whether the decoder's hidden state at the coarsest scale is stored for predictors"""
    thumbnail_size: Annotated[int, Ge(8), Le(512)] | None
    """side length in pixels of the thumbnails stored for predictors; null: none are stored"""
    self_asking: bool
    """whether the model is asked at the coarsest scale if it can answer, for predictors"""
    self_asking_prompt: str
    """prompt in which it is asked; {question} stands for the question"""
    shard_size: PositiveInt
    """samples per file"""
    shard: Annotated[str, AfterValidator(_check_shard)] | None
    """i/n: the i-th of n parts of the files, from 0; null: all"""
    overwrite: bool
    """whether to move existing labels aside and label again"""
    allow_small: bool
    """whether splits of fewer than 8 images are accepted"""
    engine: Built
    """execution backend"""


class LabelSubset(Settings):
    """The part of the train split that predictors are trained on."""

    num_images: Annotated[int, Ge(2)] | None
    """images, validation included; null: all"""
    questions_per_image: PositiveInt | None
    """questions about each image; null: all"""
    soft: bool
    """whether the targets are mean scores of sampled answers (`resample split=train`)"""


class PredictorSettings(Settings):
    """`conf/settings/train.yaml`, and the predictors to train."""

    predictor: Built
    """predictor that estimates which scale a question needs"""
    baselines: dict[str, Built] = Field(default={})
    """further predictors to train and evaluate"""
    calibrator: Built | None = None
    """recalibration of the estimates on the calibration split; null: none"""
    seed: Seed
    """seed of the division into train and validation, and of training"""
    max_epochs: PositiveInt | None
    """maximum number of epochs of every predictor; null: that in conf/predictor"""
    validation_fraction: OpenFraction
    """share of the training images that is kept for early stopping"""
    labels: LabelSubset
    budget: PositiveFloat | None
    """mean visual tokens, or imported costs in their unit, at the default price; null: by tolerance"""
    tolerance: NonNegativeFloat
    """score that the default price may lose to the best fixed scale; 0.01: one point"""
    optimized_metric: Annotated[str, AfterValidator(_check_metric)]
    """validation metric that the command returns to an optimising sweep"""
    allow_small: bool
    """whether splits of fewer than 8 images are accepted"""


class Tracked(Settings):
    """Settings shared by the commands whose runs a tracker can show."""

    logger: Built | None
    """tracker that shows curves, configuration and results; null: none"""


class TrainSettings(Labelled, PredictorSettings, Tracked):
    """`experiments.train`."""

    trainer: Deferred
    """settings of Lightning's trainer"""


class Latency(Settings):
    """`conf/settings/latency.yaml`."""

    num_images: NonNegativeInt
    """timed images of the calibration split; 0: `run` times nothing"""
    num_rounds: PositiveInt
    """number of times that each image is timed"""
    batch_size: PositiveInt
    """questions that are answered together"""
    output_tokens: Annotated[int, Ge(2)] | None
    """length of long answers that are timed too, in tokens; null: none"""
    overwrite: bool
    """whether to measure existing timings again"""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if 0 < self.num_images < self.batch_size:
            raise Refusal(
                f"latency.num_images={self.num_images}: give at least latency.batch_size={self.batch_size} "
                "images, or they do not fill a batch"
            )
        return self


class LatencySettings(Asking, PredictorSettings):
    """`experiments.latency`."""

    trainer: Deferred
    """settings of Lightning's trainer"""
    latency: Latency


class Guarantee(Settings):
    """The guarantee on the loss."""

    alpha: ClosedFraction
    """mean score that may be lost against the finest scale; 0.01: one point"""
    delta: OpenFraction
    """probability with which the guarantee may fail"""
    most_questions: PositiveInt | None
    """maximum number of questions that one image counts for; null: that of the calibration images"""


class CheckedGuarantee(Guarantee):
    """The guarantee on the loss, and its check."""

    joint: bool
    """whether the guarantees of all predictors hold together with probability 1 - delta"""
    num_resplits: NonNegativeInt
    """number of resamples of the test images on which the guarantee is certified again; 0: none"""


class Intervals(Recorded):
    """Bootstrap over images."""

    num_resamples: NumResamples
    """bootstrap resamples of the images"""
    confidence: OpenFraction
    """coverage of the intervals; 0.95: 95%"""


class Sensitive(Settings):
    """Answers that decide which test questions need resolution."""

    finest: FolderName
    """whose answer at the finest scale decides: sampled, or a backbone with labels of the task"""
    downsampled: FolderName
    """whose answer at a coarser scale decides: sampled, or a backbone with labels of the task"""
    scale: PositiveInt | None
    """scale of the downsampled answer; null: the finest with at most a quarter of the visual tokens"""
    only: Literal["sensitive", "insensitive"] | None
    """group of questions that alone is evaluated; null: all questions"""


class EvaluateSettings(Labelled, PredictorSettings, Tracked, Intervals, Printed):
    """`conf/settings/evaluate.yaml`."""

    task: Built
    """source of images, questions and scores"""
    trainer: Deferred
    """settings of Lightning's trainer"""
    latency: Latency
    cascades: dict[str, Built] = Field(default={})
    """cascades to evaluate besides the predictors"""
    reference: str | None
    """name of the predictor that all others are compared with, besides the mix; null: none"""
    num_budgets: Annotated[int, Ge(2)]
    """number of log-spaced budgets of mean visual tokens"""
    num_prices: PositiveInt
    """maximum number of prices on a front, from the calibration split"""
    bootstrap_seed: Seed
    """seed of the resamples"""
    guarantee: CheckedGuarantee
    sensitive: Sensitive
    ladders: list[FolderName]
    """names of backbones whose fixed scales are compared with the predictor"""
    tariff: Built | None = None
    """prices of tokens and operations, for costs in currency or joules; null: none"""
    gallery: NonNegativeInt
    """samples in the gallery per type of success and failure; 0: none"""

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        compared = [self.predictor, *self.baselines.values(), *self.cascades.values()]
        names = list(dict.fromkeys(str(part.get("name")) for part in compared))
        if self.reference is not None and self.reference not in names:
            raise Refusal(
                f"reference={self.reference}: give one of the compared {', '.join(names)}, or null for none"
            )
        return self


class RunSettings(LabelSettings, TrainSettings, LatencySettings, EvaluateSettings):
    """`experiments.run`: the settings of its steps."""

    latest: PathText
    """link to the folder of the latest finished run"""

    @model_validator(mode="after")
    def _check_states(self) -> Self:
        for part in (self.predictor, *self.baselines.values()):
            features = part.get("features") or {}
            if features.get("decoder_state") and not self.decoder_state:
                raise Refusal(
                    f"predictor {part.get('name')} reads the decoder's state, which labelling does not keep: "
                    "set decoder_state=true"
                )
            if features.get("self_asking") and not self.self_asking:
                raise Refusal(
                    f"predictor {part.get('name')} reads whether the model says that it can answer, which "
                    "labelling does not ask: set self_asking=true"
                )
            side = features.get("thumbnail")
            if side is not None and side != self.thumbnail_size:
                raise Refusal(
                    f"predictor {part.get('name')} reads thumbnails of {side} pixels a side, and labelling "
                    f"keeps {self.thumbnail_size or 'none'}: set thumbnail_size={side}"
                )
        return self


class ResampleSettings(Asking, Reading, Recorded):
    """`experiments.resample`."""

    variation: Built
    """how the runs of one question differ"""
    engine: Built
    """execution backend"""
    split: Literal["train", "test"]
    """split of the questions"""
    num_images: PositiveInt | None
    """number of images, taken from the start of the split; null: all"""
    num_runs: Annotated[int, Ge(2)]
    """answers per question: one is scored, the others choose the scale"""
    overwrite: bool
    """whether to move answers of another variation aside"""
