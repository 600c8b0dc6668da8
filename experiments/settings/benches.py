"""Settings of the commands that check or time an implementation."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, Len

from experiments.settings.base import Built, NumResamples, PathText, Settings
from experiments.settings.use import OperatingPoint, TrainedChoice
from m3_backbone.arguments import ClosedFraction, PositiveInt, Seed


class CheckBackboneSettings(Settings):
    """`experiments.check_backbone`."""

    backbone: Built
    """frozen model that is checked"""
    checks: Annotated[list[str], Len(1)] | None
    """words, as [drafts, fingerprints]: only checks whose names contain one of them run; null: all"""


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
    """folder with recordings of the authors' code, such as tests/fixtures/official_m3; null: no comparison"""
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
