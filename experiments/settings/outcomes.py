"""Settings of the commands that estimate, describe, import or export outcomes."""

from typing import Annotated, Literal

from annotated_types import Gt, Le, Len

from experiments.settings.base import Labelled, Paths, PathText, Recorded
from experiments.settings.pipeline import LabelSettings
from experiments.settings.use import RepoName
from m3_backbone.arguments import ClosedFraction, PositiveFloat, PositiveInt, Seed


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


class ModelCardSettings(Recorded):
    """`experiments.model_card`."""

    paths: Paths
    output: PathText
    """file that is written"""
    labels: dict[str, PathText]
    """label folder of each task"""
    facts: dict[str, str]
    """sections of the card"""
