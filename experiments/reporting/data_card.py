"""Data card of exported outcomes: what they are, and how to evaluate a predictor on them."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.fronts import find_smallest_right
from experiments.evaluation.metrics import point_score
from experiments.evaluation.statistics import Bootstrap, number_images
from experiments.labels.export import CARD, OUTCOMES, ExportedOutcomes
from experiments.reporting.numbers import format_score, format_tokens
from experiments.reporting.page import render_markdown
from experiments.reporting.tables import format_markdown
from m3_backbone.outcomes.shards import write_text
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable

# Licences of the tasks whose images and questions come with tokenscale or its dependencies.
LICENCES = {"scenes": "apache-2.0", "scenes_shifted": "apache-2.0", "easy_vqa": "mit"}
NUM_RESAMPLES = 2000
_BAR = 30  # longest bar of the histogram, in characters


def write_card(
    exported: ExportedOutcomes, folder: Path, *, licence: str | None, title: str | None, has_images: bool
) -> None:
    """Write the data card of an export, `README.md`, into its folder."""
    write_text(folder / CARD, render_card(exported, licence=licence, title=title, has_images=has_images))


def render_card(
    exported: ExportedOutcomes, *, licence: str | None, title: str | None, has_images: bool
) -> str:
    """Return the data card as Markdown with a YAML header.

    `licence` is that of the task's questions and images; None: the known one, or "other".
    """
    manifest, tables = exported.manifest, exported.tables
    task, backbone = str(manifest["task"]), str(manifest["backbone"])
    given = licence or LICENCES.get(task)
    return render_markdown(
        "data_card.md",
        title=title or f"Outcomes of {backbone} on {task}",
        licence=given or "other",
        is_licence_known=given is not None,
        task=task,
        backbone=backbone,
        cost_name=exported.cost_name,
        names=exported.names,
        fingerprints=dict(manifest["fingerprints"]),
        outcomes=OUTCOMES,
        num_samples=sum(map(len, tables.values())),
        counts=_tabulate_counts(exported),
        scores={split: tabulate_scores(table) for split, table in tables.items()},
        needs={split: tabulate_needs(table) for split, table in tables.items()},
        has_images=has_images,
        has_confidence=all(t.options is None or t.options.has_confidence for t in tables.values()),
        split=list(tables)[-1],
        has_test=HELD_OUT in tables,
    )


def _tabulate_counts(exported: ExportedOutcomes) -> str:
    rows = [["split", "questions", "images"]]
    for split, table in exported.tables.items():
        rows.append([split, f"{len(table):,}", f"{len(set(table.cluster_id)):,}"])
    return format_markdown(rows)


def tabulate_scores(table: OutcomeTable) -> str:
    """Return mean cost, and mean score in percent with its 95% interval over images, of each scale."""
    image = number_images(table.cluster_id)
    num_images = int(image.max()) + 1
    sums = np.stack([np.bincount(image, column) for column in table.score.T.astype(np.float64)], axis=1)
    counts = np.bincount(image).astype(np.float64)

    def measure(weights: np.ndarray) -> dict[Any, np.ndarray]:
        counted = weights.astype(np.float64)
        return {point_score: (counted @ sums) / (counted @ counts)[:, None]}

    score = Bootstrap(NUM_RESAMPLES).estimate(measure, num_images)[point_score]
    rows = [["scale", "mean cost", "score"]]
    for column, scale in enumerate(table.scales):
        cost = format_tokens(table.cost[:, column].mean())
        rows.append([str(scale), cost, format_score(score[column])])
    return format_markdown(rows)


def tabulate_needs(table: OutcomeTable) -> str:
    """Return how many samples each scale is the smallest sufficient one for, as a table with bars."""
    smallest = find_smallest_right(table.score)
    labels = [*map(str, table.scales), "none"]
    counts = [int((smallest == column).sum()) for column in range(len(table.scales))]
    counts.append(int((smallest < 0).sum()))
    rows = [["smallest sufficient scale", "questions", "share", ""]]
    for label, count in zip(labels, counts, strict=True):
        bar = "\N{FULL BLOCK}" * round(_BAR * count / max(counts))
        rows.append([label, f"{count:,}", f"{count / len(table):.1%}", bar])
    return format_markdown(rows)
