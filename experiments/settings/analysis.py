"""Settings of the commands that compare, search and analyse."""

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Len
from pydantic import AfterValidator, Field, model_validator

from experiments.settings.base import (
    Built,
    Deferred,
    Described,
    FolderName,
    Labelled,
    NumProcesses,
    Paths,
    PathText,
    Printed,
    Refusal,
    Settings,
    check_folder_name,
)
from experiments.settings.pipeline import Intervals, Latency, PredictorSettings, Tracked
from m3_backbone.arguments import HalfOpenFraction, OpenFraction, PositiveInt, Seed


def _check_objective(name: str) -> str:
    from experiments.training.study import OBJECTIVES

    if name not in OBJECTIVES:
        raise Refusal(f"give some of {', '.join(OBJECTIVES)}")
    return name


def _check_storage(text: str) -> str:
    if "://" not in text and not text.endswith(".journal"):
        raise Refusal("give the URL of a database, as sqlite:///FILE, a file that ends in .journal, or null")
    return text


def _check_labelled(name: str) -> str:
    backbone, slash, task = name.partition("/")
    for part in (backbone, task) if slash else (backbone,):
        check_folder_name(part)
    return name


class SharedPaths(Settings):
    """Folders of a command that has several tasks or backbones, and so no folder for one of them."""

    outputs: PathText
    """folder of all results"""
    store: PathText
    """folder of labels, predictors and timings; those of a paper are in its own folder"""
    evaluations: PathText
    """folder of the records of test evaluations"""
    labels: None = None
    """left null, as there are several"""
    predictors: None = None
    """left null, as there are several"""
    latency: None = None
    """left null, as there are several"""


class PaperStep(Settings):
    """One command of a paper."""

    command: str
    """name of the command"""
    arguments: list[str] = Field(default=[])
    """its options; with -m it is a sweep"""
    title: str = ""
    """what the step shows; empty: it prepares others, as labelling does"""
    needs: list[str] = Field(default=[])
    """names of the steps whose results it reads"""
    tables: list[str] = Field(default=[])
    """names of tables in the folder of its run"""
    figures: list[str] = Field(default=[])
    """names of figures in the folder of its run"""


class PaperSettings(Settings):
    """`experiments.paper`."""

    paths: SharedPaths
    folder: PathText
    """folder of tables, figures, page, labels and predictors"""
    steps: list[str] | None
    """names of steps to run, with those that they need; null: all"""
    settings: list[str]
    """options that every command gets if it has them"""
    list_of_steps: Annotated[dict[str, PaperStep], Len(1)]
    """steps by name: command, arguments, title, needs, tables and figures"""


class FailuresSettings(Labelled):
    """`experiments.failures`."""

    task: Built
    """source of images, questions and scores"""
    seed: Seed
    """seed of the choice of images"""
    split: Literal["train", "calibration"]
    """split that the samples are from; not test, as what failures teach goes into the next training"""
    scale: PositiveInt | None
    """scale whose wrong answers are shown; null: the finest"""
    per_kind: PositiveInt
    """images per question type"""


class GranularitySettings(Labelled, Intervals):
    """`experiments.granularity`."""

    seed: Seed
    """seed of the models"""
    margin: HalfOpenFraction
    """mean score below the best scale's within which a scale is sufficient; 0.01: one point"""
    equivalence_margin: OpenFraction
    """difference in mean score below which policies are equivalent; 0.005: half a point"""
    bootstrap_seed: Seed
    """seed of the resamples"""


class TransferPaths(SharedPaths):
    """Folders of the labels of several tasks."""

    all_labels: PathText
    """folder of the label folders of all tasks"""


class TransferSettings(PredictorSettings, Intervals):
    """`experiments.transfer`."""

    paths: TransferPaths
    backbone: Described = Field(default={})
    """frozen model that answers"""
    trainer: Built
    """settings of Lightning's trainer"""
    sources: Annotated[list[FolderName], Len(1)] | FolderName
    """tasks that are trained on"""
    targets: Annotated[list[FolderName], Len(1)] | FolderName
    """tasks that are tested on"""
    source_backbones: list[FolderName]
    """backbones whose labels are trained on; []: the backbone itself"""
    leave_one_out: bool
    """whether a target is left out of its own sources"""
    native: bool
    """whether a predictor is trained on each target too"""
    split: Literal["test", "calibration"]
    """split of the targets that is evaluated"""
    outcomes_of: FolderName | None
    """source whose outcomes the other versions of its samples get in training; null: each has its own"""
    num_recalibration: PositiveInt
    """number of calibration samples of the target that prices are fitted on"""
    seed: Seed
    """seed of the samples for new prices and of the resamples; the default of seeds"""
    seeds: Annotated[list[Seed], Len(1)]
    """training seeds; results are means over them"""

    @model_validator(mode="after")
    def _check_outcomes(self) -> Self:
        sources = [self.sources] if isinstance(self.sources, str) else self.sources
        if self.outcomes_of is not None and self.outcomes_of not in sources:
            raise Refusal(f"outcomes_of={self.outcomes_of}: give one of the sources, or null")
        return self


class BackbonePaths(SharedPaths):
    """Folders of the labels, predictors and timings of several backbones."""

    all_labels: PathText
    """folder with one folder of labels per backbone"""
    all_predictors: PathText
    """folder with one folder of trained predictors per backbone"""
    all_latencies: PathText
    """folder with one folder of timings per backbone"""


class CompareBackbonesSettings(PredictorSettings, Intervals, Printed):
    """`experiments.compare_backbones`."""

    paths: BackbonePaths
    task: Described
    """source of images, questions and scores"""
    trainer: Deferred
    """settings of Lightning's trainer, which select the trained predictors"""
    latency: Latency
    backbones: Annotated[list[Annotated[str, AfterValidator(_check_labelled)]], Len(2)]
    """names of labelled backbones, the reference first; NAME/TASK: labels of another task than `task`"""
    fixed_only: bool
    """whether fixed scales, their mix and oracles are compared without predictors"""
    num_budgets: Annotated[int, Ge(2)]
    """number of log-spaced budgets"""
    num_prices: PositiveInt
    """maximum number of prices on a front"""
    bootstrap_seed: Seed
    """seed of the resamples"""


class Study(Settings):
    """A search with Optuna."""

    name: FolderName
    """name of the study"""
    folder: PathText
    """folder of the study"""
    num_trials: PositiveInt
    """finished trials of the whole study, pruned ones included"""
    objectives: Annotated[list[Annotated[str, AfterValidator(_check_objective)]], Len(1)]
    """objectives to optimise; several: their Pareto front, without pruning"""
    storage: Annotated[str, AfterValidator(_check_storage)] | None
    """URL of a database, or a file that ends in .journal; null: SQLite in the folder"""
    heartbeat: PositiveInt
    """seconds between heartbeats of a worker"""
    grace: PositiveInt
    """seconds without a heartbeat after which another worker retries the trial"""
    sampler: Built
    """sampler of Optuna"""
    pruner: Built
    """pruner of Optuna"""

    @model_validator(mode="after")
    def _check_grace(self) -> Self:
        if self.grace <= self.heartbeat:
            raise Refusal(
                f"study.grace={self.grace}: give more than study.heartbeat={self.heartbeat} seconds, or "
                "living workers lose their trials"
            )
        return self


class Space(Settings):
    """Search space of a predictor."""

    space: Annotated[list[dict[str, Any]], Len(1)]
    """parameters {name, type, low, high, log, choices}, as in conf/tune/"""


class TuneSettings(Labelled, PredictorSettings, Tracked):
    """`experiments.tune`."""

    trainer: Built
    """settings of Lightning's trainer"""
    study: Study
    tune: Space
    """search space"""


class LabelCurveSettings(Labelled):
    """`experiments.label_curve`."""

    trainer: Built
    """settings of Lightning's trainer"""
    predictors: Annotated[dict[str, Built], Len(1)]
    """predictors to train"""
    num_images: Annotated[list[Annotated[int, Ge(4)] | None], Len(1)]
    """numbers of labelled training images; null: all but those for validation"""
    questions_per_image: Annotated[list[PositiveInt | None], Len(1)]
    """numbers of questions about each image; null: all"""
    soft: Annotated[list[bool], Len(1)]
    """targets: false, greedy outcomes; true, means of sampled answers"""
    seeds: Annotated[list[Seed], Len(1)]
    """seeds of images, validation part and training"""
    seed: Seed
    """replaced by each of seeds"""
    validation_fraction: OpenFraction
    """share of the images on which results are measured"""
    stopping_fraction: OpenFraction
    """share of the labelled images that is kept for early stopping"""
    confidence: OpenFraction
    """coverage of the intervals over seeds; 0.95: 95%"""
    num_processes: NumProcesses
    """trainings at the same time"""
    folder: PathText
    """folder of the result of each training"""
    allow_small: bool
    """whether a train split of fewer than 8 images is accepted"""


class CompareSettings(Printed):
    """`experiments.compare`."""

    paths: Paths
    runs: Annotated[list[PathText], Len(1)] | PathText
    """folders of finished runs, or of folders of runs"""
