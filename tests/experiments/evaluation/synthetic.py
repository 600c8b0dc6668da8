"""Outcome tables with a known structure, for tests of what is computed from outcomes.

Each image has a crowding in [0, 1], each kind of question a demand; their sum, plus noise, says at which
scale the answer first becomes right. From there on it stays right with 95% chance, before it is right with
the chance of a guess. So image and question both matter, the finest scale is right most often, and some
samples fail at every scale.
"""

import numpy as np

from experiments.evaluation.fronts import Floats
from m3_backbone.outcomes.table import OutcomeTable

SCALES = (1, 9, 36, 144)
KINDS = {"background": (-0.2, 0.25), "existence": (0.15, 0.5), "count": (0.5, 0.15), "character": (0.8, 0.05)}
FINGERPRINTS = {"weights": "0" * 16, "data": "1" * 16, "prompt": "2" * 16, "decoding": "3" * 16}


def make_outcomes(split: str, num_images: int, questions_per_image: int = 4, seed: int = 0) -> OutcomeTable:
    """An outcome table of `num_images * questions_per_image` samples over the ladder 1, 9, 36, 144."""
    rng = np.random.default_rng([seed, *split.encode()])
    num_rows, num_scales = num_images * questions_per_image, len(SCALES)
    image = np.repeat(np.arange(num_images), questions_per_image)
    crowding = rng.random(num_images)[image]
    kind = rng.choice(list(KINDS), num_rows)
    demand, guess = np.array([KINDS[name] for name in kind]).T
    first_right = np.digitize(demand + crowding + 0.15 * rng.normal(size=num_rows), [0.3, 0.7, 1.15, 1.5])
    chance = np.where(np.arange(num_scales) >= first_right[:, None], 0.95, guess[:, None])
    right = rng.random((num_rows, num_scales)) < chance
    sample_id = [f"{split}/{row:05d}" for row in range(num_rows)]
    reference = [f"answer {row % 10}" for row in range(num_rows)]
    return OutcomeTable(
        scales=SCALES,
        fingerprints=FINGERPRINTS,
        sample_id=np.array(sample_id, dtype=object),
        image_id=np.array([f"{split}/image-{number}" for number in image], dtype=object),
        task=np.full(num_rows, "synthetic", dtype=object),
        kind=kind.astype(object),
        question=np.array(
            [f"{name}, crowding {c:.3f}?" for name, c in zip(kind, crowding, strict=True)], dtype=object
        ),
        metric=np.full(num_rows, "exact", dtype=object),
        references=[[text] for text in reference],
        attributes=[{"crowding": round(float(c), 3)} for c in crowding],
        question_ids=[np.array([1, 2, 3], dtype=np.int32)] * num_rows,
        answer=[
            [text if hit else "something else" for hit in row]
            for text, row in zip(reference, right, strict=True)
        ],
        score=right.astype(np.float32),
        nll=np.where(right, 0.1, 2.0).astype(np.float32),
        reference_tokens=np.full(right.shape, 3, dtype=np.int32),
        confidence=np.where(right, 0.9, 0.5).astype(np.float32),
        margin=np.ones(right.shape, dtype=np.float32),
        visual_tokens=np.tile(np.array(SCALES, dtype=np.int32), (num_rows, 1)),
        prefill_flops=np.tile(10**9 * np.array(SCALES, dtype=np.int64), (num_rows, 1)),
    )


def estimate_outcomes(table: OutcomeTable, *, see_image: bool = True) -> Floats:
    """What a good predictor would say of samples whose demand, and with `see_image` crowding, it knows."""
    demand, guess = np.array([KINDS[name] for name in table.kind]).T
    crowding = (
        np.array([row["crowding"] for row in table.attributes]) if see_image else np.full(len(table), 0.5)
    )
    spread = 0.15 if see_image else 0.33
    reach = (np.array([0.3, 0.7, 1.15, 1.5]) - (demand + crowding)[:, None]) / spread
    sure = 1 / (1 + np.exp(-1.7 * reach))
    return guess[:, None] + (0.95 - guess[:, None]) * sure
