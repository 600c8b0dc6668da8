"""What others have published of these checkpoints on these tasks, to see at once whether a run agrees.

The values are accuracies in percent as the authors print them (VQA accuracy on VizWiz and TextVQA, relaxed
accuracy on ChartQA, ANLS on DocVQA). A run agrees with them as far as its questions, prompt and decoding are
theirs; a run on a part of the questions has its own interval besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Cai et al., Matryoshka Multimodal Models, ICLR 2025, arXiv 2405.17430"


@dataclass(frozen=True)
class Published:
    """Scores in [0, 1] per scale, of one checkpoint on one task, and the oracle's where it is given.

    The oracle takes the smallest scale that is right and charges the coarsest where none is (the authors'
    convention). `oracle_scale` is its mean scale: with tiles, visual tokens a tile and not a sample.
    """

    checkpoint: str
    table: str
    scores: Mapping[int, float]
    oracle_score: float | None = None
    oracle_scale: float | None = None
    source: str = SOURCE


_SCALES = (576, 144, 36, 9, 1)
_PLAIN = {
    "mmbench": (65.9, 66.4, 64.8, 63.1, 59.5),
    "gqa": (61.9, 61.3, 60.3, 58.0, 52.6),
    "pope": (87.4, 87.0, 85.5, 83.4, 78.4),
    "vizwiz": (54.9, 53.1, 52.8, 51.9, 49.4),
    "seed": (60.6, 59.7, 58.0, 55.4, 50.1),
}
# Scores per scale, then the oracle's mean tokens and score.
_TILED = {
    "textvqa": ((63.13, 62.61, 58.71, 51.97, 38.92), 31.39, 70.51),
    "ai2d": ((66.71, 68.07, 67.36, 66.77, 64.57), 11.54, 76.36),
    "chartqa": ((58.96, 57.04, 50.24, 42.00, 31.04), 41.78, 70.76),
    "docvqa": ((72.61, 66.48, 55.94, 43.52, 31.63), 64.09, 81.73),
    "mmbench": ((67.96, 69.50, 68.56, 67.35, 62.97), 8.90, 74.35),
    "pope": ((87.20, 87.67, 87.29, 86.17, 83.38), 6.08, 94.29),
    "scienceqa": ((72.46, 72.32, 72.11, 71.85, 71.19), 7.43, 76.07),
    "mmmu": ((34.0, 36.1, 36.8, 35.2, 34.8), 22.85, 50.44),
}


def _to_shares(percents: tuple[float, ...]) -> dict[int, float]:
    return {scale: round(value / 100, 6) for scale, value in zip(_SCALES, percents, strict=True)}


# By the names of conf/backbone and conf/task.
_PUBLISHED = {
    ("m3_llava_7b", task): Published(
        "LLaVA-1.5-7B-M3", "LLaVA-1.5-7B-M3, accuracy per scale", _to_shares(percents)
    )
    for task, percents in _PLAIN.items()
} | {
    ("m3_llava_next_7b", task): Published(
        "LLaVA-NeXT-7B-M3",
        "LLaVA-NeXT-7B-M3, accuracy per scale of a tile, and the oracle",
        _to_shares(percents),
        round(oracle / 100, 6),
        tokens,
    )
    for task, (percents, tokens, oracle) in _TILED.items()
}


def find_published(backbone: str, task: str) -> Published | None:
    """What is published of a backbone on a task, by the names of their configurations; None for nothing."""
    return _PUBLISHED.get((backbone, task))
