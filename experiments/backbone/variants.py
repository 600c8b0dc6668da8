"""Variants of the embedded backbone, trained and compared."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from experiments.backbone.training import train_checkpoint
from experiments.evaluation.statistics import Bootstrap
from experiments.evaluation.variants import Variant, VariantComparison, compare_variants
from experiments.labels.folder import KeptInputs
from experiments.labels.held_out import EvaluationRecord, EvaluationRecorder
from experiments.labels.labelling import label
from experiments.reporting.findings import describe_record
from experiments.reporting.page import save_figure
from experiments.reporting.variants import (
    draw_variants,
    tabulate_variants,
    to_csv,
    to_json,
    to_markdown,
    write_findings,
)
from experiments.tasks.base import Task
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.shards import write_text
from m3_backbone.outcomes.table import OutcomeTable

# The last file of a checkpoint to be written.
_MARK = "m3_processor.json"
_RECIPE = ("seed", "scenes", "others", "vocab_size", "image", "tower", "decoder", "start", "model", "pooling")


def make_start(config: DictConfig, folder: Path, finest: int) -> Path:
    """Train the model that all variants start from; returns its checkpoint."""
    return _train_once(config, folder, {"model": {**config.start, "scale_groups": [[finest]]}})


def train_variant(config: DictConfig, variant: Variant, seed: int, start: Path, folder: Path) -> Path:
    """Train one variant on the pictures of one seed; returns its checkpoint."""
    first = int(config.start.num_pictures + seed * config.model.num_pictures)
    model = {"scale_groups": variant.scale_groups, "first_picture": first}
    changes = {"start_from": str(start), "pooling": variant.pooling, "seed": seed, "model": model}
    return _train_once(config, folder, changes)


def _train_once(config: DictConfig, folder: Path, changes: dict[str, Any]) -> Path:
    """Return the checkpoint in the folder, trained if missing. Raises ValueError as `check_recipe` does."""
    changed = OmegaConf.merge(config, changes)
    assert isinstance(changed, DictConfig)
    check_recipe(read_recipe(changed), folder / "recipe.json")
    checkpoint = folder / "checkpoint"
    if not (checkpoint / _MARK).is_file():
        train_checkpoint(changed, folder)
    return checkpoint


def read_recipe(config: DictConfig) -> dict[str, Any]:
    """Return the settings that determine the weights, without batch size and number of workers."""
    recipe: dict[str, Any] = {}
    for key in _RECIPE:
        part = config.get(key)
        recipe[key] = OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
    for training in (recipe["tower"]["training"], recipe["model"], recipe["start"]):
        for key in ("batch_size", "num_workers"):
            training.pop(key, None)
    return recipe


def check_recipe(recipe: dict[str, Any], path: Path) -> None:
    """Write the recipe if there is none. Raises ValueError if the existing one differs."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(recipe, indent=1) + "\n")
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    if differing := [key for key in recipe if recipe[key] != stored.get(key)]:
        raise ValueError(
            f"{path.parent} was trained with other settings of {', '.join(differing)} ({path.name}): "
            "give another folder with folder=FOLDER, or the former settings"
        )


@rank_zero_only
def report(
    config: DictConfig,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    recorder: EvaluationRecorder,
) -> None:
    """Answer the test pictures with every model, and write table, findings and plot."""
    task = instantiate(config.test, _convert_="all")
    folders = {
        (variant.name, seed): label_test(task, folder / variant.name / str(seed), config.num_images)
        for variant, seed in itertools.product(variants, seeds)
    }
    # A comparison of models on the test split is recorded as one evaluation of all of them.
    models = {
        f"{name} {seed}": str(read_manifest(labels)["fingerprints"]["weights"])
        for (name, seed), labels in folders.items()
    }
    tables: dict[tuple[str, int], OutcomeTable] = {}
    records: dict[tuple[str, int], EvaluationRecord] = {}
    for key, labels in folders.items():
        test, record = recorder.open_test(labels, models)
        tables[key] = test.outcomes
        records[key] = record
    bootstrap = Bootstrap(config.num_resamples, config.confidence)
    comparison = compare_variants(variants, tables, seeds, bootstrap)
    write_comparison(comparison, folder)
    print(describe_record(records[variants[0].name, seeds[0]]))
    print("", tabulate_variants(comparison), "", *write_findings(comparison), sep="\n")
    print(f"\nfigure, table and findings: {folder / 'figure2.*'}")


def label_test(task: Task, folder: Path, num_images: int | None) -> Path:
    """Return the label folder with the answers of one model about the first test images, made once."""
    name = f"{folder.parent.name} {folder.name}"
    backbone = LlavaBackbone(folder / "checkpoint", name=name, dtype="float32")
    # No workers: under DDP they would be forked from a process with a process group.
    label(
        task=task,
        backbone=backbone,
        folder=folder / "labels",
        limit={"train": 0, "calibration": 0, "test": num_images},
        kept=KeptInputs((backbone.scales[0],)),
        num_workers=0,
    )
    return folder / "labels"


def write_comparison(comparison: VariantComparison, folder: Path) -> None:
    """Write `figure2.json`, `.md`, `.csv`, `.png`, `.pdf` and `.svg`."""
    write_text(folder / "figure2.json", json.dumps(to_json(comparison), indent=1) + "\n")
    write_text(folder / "figure2.md", to_markdown(comparison))
    write_text(folder / "figure2.csv", to_csv(comparison))
    save_figure(draw_variants(comparison), folder / "figure2", ("png", "pdf", "svg"))
