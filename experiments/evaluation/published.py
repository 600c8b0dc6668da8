"""Published results of these checkpoints on these tasks, to compare a run with.

The values are accuracies in percent as printed by the authors (VQA accuracy on VizWiz and TextVQA, relaxed
accuracy on ChartQA, ANLS on DocVQA), for the tasks that have a configuration in `conf/task`. A run can agree
with them only on the same split and with the same prompt, decoding and scorer. Values of LLaVA-1.5-7B-M3 come
from LLaVA's scripts (POPE: metric `yes_no_llava`). As we read the paper, those of LLaVA-NeXT-7B-M3 come from
lmms-eval (POPE: `yes_no`, ScienceQA: `multiple_choice_letter`). This project splits GQA and POPE by hash, so
its test split is a part of theirs. The test answers of VizWiz are not public, so its test split is their
validation split.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from experiments.tasks.base import Task, find_official_split

# Our test split is the split of the published values, a part of it, another split, or unspecified.
Relation = Literal["same", "part", "other", "unknown"]

SOURCE = "Cai et al., Matryoshka Multimodal Models, ICLR 2025, arXiv 2405.17430"


@dataclass(frozen=True)
class Published:
    """Published scores in [0, 1] of one checkpoint on one task, per scale and, if given, of the oracle.

    The oracle takes the smallest sufficient scale, or the coarsest if every scale fails (the authors'
    convention). `oracle_scale` is its mean scale: with tiles, visual tokens per tile rather than per sample.
    `split` is the official split of the published values, `relation` how our test split relates to it, and
    `own_split` the official split that our test split comes from.
    """

    checkpoint: str
    table: str
    split: str
    scores: Mapping[int, float]
    oracle_score: float | None = None
    oracle_scale: float | None = None
    source: str = SOURCE
    relation: Relation = "unknown"
    own_split: str | None = None


_SCALES = (576, 144, 36, 9, 1)
_PLAIN = {
    "gqa": (61.9, 61.3, 60.3, 58.0, 52.6),
    "pope": (87.4, 87.0, 85.5, 83.4, 78.4),
    "vizwiz": (54.9, 53.1, 52.8, 51.9, 49.4),
}
# Scores per scale, then the oracle's mean tokens and score.
_TILED = {
    "textvqa": ((63.13, 62.61, 58.71, 51.97, 38.92), 31.39, 70.51),
    "ai2d": ((66.71, 68.07, 67.36, 66.77, 64.57), 11.54, 76.36),
    "chartqa": ((58.96, 57.04, 50.24, 42.00, 31.04), 41.78, 70.76),
    "docvqa": ((72.61, 66.48, 55.94, 43.52, 31.63), 64.09, 81.73),
    "pope": ((87.20, 87.67, 87.29, 86.17, 83.38), 6.08, 94.29),
    "scienceqa": ((72.46, 72.32, 72.11, 71.85, 71.19), 7.43, 76.07),
}


# The official splits, by the names that conf/task gives them.
_SPLITS = {
    "gqa": "testdev balanced",
    "pope": "COCO",
    "vizwiz": "test",
    "textvqa": "validation",
    "ai2d": "test",
    "chartqa": "test",
    "docvqa": "validation",
    "scienceqa": "test",
}


def _to_shares(percents: tuple[float, ...]) -> dict[int, float]:
    return {scale: round(value / 100, 6) for scale, value in zip(_SCALES, percents, strict=True)}


# By the names of conf/backbone and conf/task.
_PUBLISHED = {
    ("m3_llava_7b", task): Published(
        "LLaVA-1.5-7B-M3", "LLaVA-1.5-7B-M3, accuracy per scale", _SPLITS[task], _to_shares(percents)
    )
    for task, percents in _PLAIN.items()
} | {
    ("m3_llava_next_7b", task): Published(
        "LLaVA-NeXT-7B-M3",
        "LLaVA-NeXT-7B-M3, accuracy per scale of a tile, and the oracle",
        _SPLITS[task],
        _to_shares(percents),
        round(oracle / 100, 6),
        tokens,
    )
    for task, (percents, tokens, oracle) in _TILED.items()
}


def find_published(backbone: str, task: str) -> Published | None:
    """Return the published results of a backbone on a task, by names of configurations; None if none.

    The same questions with lmms-eval's prompt and scorer (`textvqa_lmms`) have the same published results.
    """
    return _PUBLISHED.get((backbone, task.removesuffix("_lmms")))


def relate(published: Published | None, task: Task, limit: int | None) -> Published | None:
    """Return `published` with the relation of our test split (at most `limit` images) filled in."""
    if published is None:
        return None
    ours = find_official_split(task, limit)
    relation: Relation = "other"
    if ours.name is None:
        relation = "unknown"
    elif ours.name == published.split:
        relation = "same" if ours.is_whole else "part"
    return replace(published, relation=relation, own_split=ours.name)
