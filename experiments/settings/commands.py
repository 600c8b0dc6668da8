"""Settings of the commands other than `run` and its steps."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, Field, model_validator

from experiments.settings.base import (
    Built,
    Deferred,
    Described,
    FolderName,
    Labelled,
    NumProcesses,
    NumResamples,
    Paths,
    PathText,
    Printed,
    Recorded,
    Refusal,
    Settings,
    check_folder_name,
)
from experiments.settings.pipeline import (
    Guarantee,
    Intervals,
    LabelSettings,
    Latency,
    PredictorSettings,
    Tracked,
)
from m3_backbone.arguments import (
    ClosedFraction,
    HalfOpenFraction,
    NonNegativeFloat,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Seed,
)


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


def _check_repo(name: str) -> str:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise Refusal("give USER/NAME of letters, digits and ._-, as on the Hugging Face hub") from error
    return name


RepoName = Annotated[str, AfterValidator(_check_repo)]


class TrainedChoice(Labelled):
    """Selection of a trained predictor."""

    backbone: Built
    """frozen model that answers"""
    predictor: Built
    """predictor that estimates which scale a question needs"""
    seed: Seed
    """seed that the predictor was trained with"""
    trained: PathText | None
    """folder of the trained predictor if several match; null: the only match"""
    trust: list[str]
    """packages, modules or classes that the folder may be built from, besides tokenscale and predictor"""


class OperatingPoint(Settings):
    """Operating point of the policy; all null: the default price."""

    price: NonNegativeFloat | None
    """price of one answer at the finest scale, in estimated chance; 0.1: ten points"""
    budget: PositiveFloat | None
    """mean visual tokens to stay within"""
    point: str | None
    """name of an operating point saved with the prices"""


class AnswerSettings(TrainedChoice, OperatingPoint):
    """`experiments.answer`."""

    image: PathText
    """path of the image"""
    question: str
    """question about the image"""
    scale: PositiveInt | None
    """scale to force; null: the predictor chooses"""
    escalate: bool
    """whether to retry at finer scales, given the answer, while that is worth it"""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise Refusal("give the URL of an engine without credentials, as http://127.0.0.1:8001, or null")
    return url


class DemoLimits(Settings):
    """Limits of a question in the demo."""

    body_seconds: PositiveFloat
    """time in which a request has to arrive"""
    image_bytes: PositiveInt
    """largest size of an image file"""
    pixels: PositiveInt
    """largest number of pixels of an image"""
    question_chars: PositiveInt
    """largest number of characters of a question"""


class LimitSettings(DemoLimits):
    """Limits of a request."""

    body_bytes: PositiveInt
    """largest size of a request"""


class DriftSettings(Settings):
    """Comparison of answers with the finest scale's."""

    share: ClosedFraction
    """share of the answers that are compared in the background; 0: none"""
    delta: OpenFraction
    """largest probability of a warning while the stated disagreement holds"""
    max_queue: PositiveInt
    """comparisons that may wait; more are dropped"""
    record: PathText | None
    """file that compared answers, at all scales, are appended to; null: none"""
    record_bytes: PositiveInt
    """largest size of this file"""

    @model_validator(mode="after")
    def _check_record(self) -> Self:
        if self.record is not None and not self.share:
            raise Refusal(f"drift.record={self.record}, drift.share=0: give a share above 0, as 0.02")
        return self


class ServeSettings(TrainedChoice, OperatingPoint):
    """`experiments.serve`."""

    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    host: Annotated[str, Len(1)]
    """address that the server listens at"""
    port: Annotated[int, Ge(0), Le(65535)]
    """port that the server listens at; 0: any free one"""
    upstream: Annotated[str, AfterValidator(_check_url)] | None
    """URL of an engine that answers; null: this process answers"""
    upstream_seconds: PositiveFloat
    """time that the engine may take between two pieces of a response"""
    adapter: Built
    """form in which the engine takes a scale"""
    scale: PositiveInt | None
    """scale of requests that do not choose one; null: the predictor chooses"""
    escalate: bool
    """whether answers are retried at finer scales while that is worth it"""
    window_ms: NonNegativeFloat
    """milliseconds for which an idle server waits for more requests"""
    max_batch: PositiveInt
    """most requests that are answered together"""
    max_requests: PositiveInt
    """most requests in progress, waiting ones included; more are answered with 429"""
    shutdown_seconds: PositiveInt
    """seconds in which a server that stops finishes its requests"""
    drift: DriftSettings
    limits: LimitSettings
    allow_remote_images: bool
    """whether images by URL are fetched from remote_hosts"""
    remote_hosts: list[Annotated[str, Len(1)]]
    """hosts that images are fetched from"""

    @model_validator(mode="after")
    def _check_remote_hosts(self) -> Self:
        if self.allow_remote_images != bool(self.remote_hosts):
            raise Refusal(
                f"allow_remote_images={str(self.allow_remote_images).lower()}, "
                f"remote_hosts=[{','.join(self.remote_hosts)}]: give both or neither"
            )
        return self


class DemoSettings(TrainedChoice):
    """`experiments.demo`."""

    task: Built
    """task whose training pictures are offered"""
    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    host: Annotated[str, Len(1)]
    """address that the page is served at"""
    port: Annotated[int, Ge(0), Le(65535)]
    """port that the page is served at; 0: any free one"""
    num_examples: Annotated[int, Ge(0), Le(20)]
    """pictures that are offered"""
    max_waiting: PositiveInt
    """most questions that wait for an answer; more are refused"""
    limits: DemoLimits


class CheckBackboneSettings(Settings):
    """`experiments.check_backbone`."""

    backbone: Built
    """frozen model that is checked"""
    checks: Annotated[list[str], Len(1)] | None
    """words, as [drafts, fingerprints]: only checks whose names contain one of them run; null: all"""


class PublishSettings(TrainedChoice):
    """`experiments.publish`."""

    folder: PathText
    """folder that the model is written to"""
    repo: RepoName | None
    """USER/NAME on the Hugging Face hub; null: the model is not uploaded"""
    private: bool
    """whether a new repository is private"""
    guarantee: Guarantee


class RecalibrateSettings(TrainedChoice):
    """`experiments.recalibrate`."""

    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    output: PathText
    """folder that is written"""
    calibrator: Built | None = None
    """recalibration of the estimates on half of the images; null: that of the predictor stays"""
    record: PathText | None
    """answers that a server has recorded; null: the labels of backbone and task"""
    num_images: PositiveInt | None
    """images whose samples are used; null: all"""
    budget: PositiveFloat | None
    """mean visual tokens that the default price may spend; null: chosen by tolerance"""
    tolerance: NonNegativeFloat
    """score that the default price may lose to the best fixed scale; 0.01: one point"""
    guarantee: Guarantee


class EstimateSettings(LabelSettings):
    """`experiments.estimate`."""

    device: Literal["h200", "h100", "a100", "l40s", "rtx4090", "cpu"]
    """device that labels; GPUs are known from their data sheets, the CPU is measured"""
    num_devices: PositiveInt
    """devices, or machines for cpu, that share the work"""
    mfu: Annotated[float, Gt(0), Le(1)]
    """share of the peak of a GPU that is reached"""
    acceptance: ClosedFraction
    """share of the answers that equal a reference or the answer at a finer scale"""
    num_images: PositiveInt
    """images whose sizes, questions and references are read"""


class StatusSettings(Labelled):
    """`experiments.status`."""

    folder: PathText
    """folder of the labels of one task, of a run, of a sweep, or of runs"""
    verify: bool
    """whether to compare all files of finished labels with their digests"""
    print_json: bool
    """whether to print one JSON object in place of tables"""


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


class ExportSettings(Labelled, Recorded):
    """`experiments.export`."""

    labels: PathText | None
    """label folder; null: that of task and backbone"""
    folder: PathText
    """folder that is written"""
    overwrite: bool
    """whether files of an earlier export in the folder are replaced"""
    splits: Annotated[list[Literal["train", "calibration", "test"]], Len(1)]
    """splits that are exported"""
    matrices: bool
    """whether quality and cost are written as matrices too"""
    images: bool
    """whether the images of the task are copied"""
    license: str | None
    """licence of the questions and images; null: that of the built-in tasks, else `other`"""
    title: str | None
    """title of the data card; null: names of backbone and task"""
    repo: RepoName | None
    """USER/NAME on the Hugging Face hub; null: the folder is not uploaded"""
    private: bool
    """whether a new data set is private"""


class ImportOutcomesSettings(Labelled):
    """`experiments.import_outcomes`."""

    file: PathText
    """CSV or Parquet file with one row per question"""
    options: dict[str, dict[str, str | float | int]] | None
    """columns of each option, {NAME: {score: ..., cost: ...}}; null: columns NAME.score and NAME.cost"""
    columns: dict[str, str | None]
    """column of each part of a row"""
    images: PathText | None
    """folder of the images that the column `image` names; null: there are none"""
    cost_name: str
    """plural noun for the costs, such as dollars"""
    cost_unit: PositiveFloat | None
    """unit of which costs are stored as whole numbers; null: chosen by the data"""
    fractions: dict[str, ClosedFraction]
    """shares of the images, if no column says the split of a row"""
    seed: Seed
    """seed of this division"""
    declared: dict[str, str | None]
    """fingerprints of what made the outcomes"""
    overwrite: bool
    """whether to move existing labels aside and import again"""
    allow_small: bool
    """whether splits of fewer than 8 images are accepted"""


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


class ModelCardSettings(Recorded):
    """`experiments.model_card`."""

    paths: Paths
    output: PathText
    """file that is written"""
    labels: dict[str, PathText]
    """label folder of each task"""
    facts: dict[str, str]
    """sections of the card"""


class ParitySettings(Settings):
    """`experiments.parity`."""

    fixture: PathText | None
    """folder with checkpoint, images and expected values"""
    scoring: PathText | None
    """JSON list of {metric, prediction, references, score}"""
    router: PathText | None
    """file of AVG-LLaVA's router and its expected values"""
    abstractor: PathText | None
    """file of MQT-LLaVA's query transformer and its expected values"""
    abstractor_heads: PositiveInt | None
    """attention heads of the query transformer"""


class BenchAdaptiveSettings(TrainedChoice, OperatingPoint):
    """`experiments.bench_adaptive`."""

    task: Built
    """source of images, questions and scores"""
    split: Literal["train", "calibration"]
    """split that the questions are from"""
    num_questions: PositiveInt
    """questions, each about an image of its own"""
    batch_sizes: Annotated[list[PositiveInt], Len(1)]
    """questions that are answered together"""
    repeats: PositiveInt
    """repetitions of the whole measurement"""
    drawn: dict[int, ClosedFraction]
    """share of each scale, if the weights are random"""


class BenchLabellingSettings(Settings):
    """`experiments.bench_labelling`."""

    backbone: Built
    """frozen model that answers"""
    task: Built
    """source of images, questions and scores"""
    split: Literal["train", "calibration", "test"]
    """split that the images are from"""
    num_images: PositiveInt
    """images"""
    questions_per_image: PositiveInt | None
    """questions about each image; null: all that the task has"""
    num_naive: PositiveInt | None
    """questions that are answered with plain `generate`; null: all"""
    repeats: PositiveInt
    """repetitions of the whole measurement"""


class GpuCheckSettings(Settings):
    """`experiments.gpu_check`."""

    size: Literal["small", "7b"]
    """shapes of the benchmarks"""
    device: str | None
    """cpu, cuda or cuda:N; null: a GPU if there is one"""
    steps: Annotated[list[str], Len(1)] | None
    """words, as [parity, attention]: only parts whose names contain one of them run; null: all"""
    recordings: PathText | None
    """folder with recordings of the authors' code, as tests/fixtures/official_m3; null: none are compared"""
    folder: PathText
    """folder of the page and the JSON file"""
    overwrite: bool
    """whether to replace the results in the folder instead of resuming them"""
    task: Built
    """source of images and questions"""
    predictor: Built
    """predictor that is timed with drawn choices"""
    seed: Seed
    """seed of the predictor"""


class BenchEvaluationSettings(Settings):
    """`experiments.bench_evaluation`."""

    num_images: PositiveInt
    """images of the synthetic outcomes"""
    questions_per_image: PositiveInt
    """questions about each image"""
    num_scales: Annotated[int, Ge(2), Le(32)]
    """scales of the ladder"""
    num_prices: PositiveInt
    """maximum number of prices on a front"""
    num_resamples: NumResamples
    """bootstrap resamples of the images"""
    num_budgets: Annotated[int, Ge(2)]
    """budgets of mean cost"""
    seed: Seed
    """seed of the outcomes"""
