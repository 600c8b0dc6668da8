"""A synthetic labelling whose truth is known: the scale needed depends on question and image together.

A picture is crowded to degree 0, 1 or 2. Its coarse visual tokens show that as a direction common to all of
them, under noise of their own. A question is of one of three kinds, told by one word of it:

    "ground"  needs the coarsest scale, whatever the picture
    "count"   needs the scale of index = crowding
    "read"    needs the finest scale, save on a picture of crowding 0, where the coarsest does

An answer at the needed scale or a finer one is right with chance 0.9, at a coarser one with chance 0.1.
So the best estimates are known, with the picture (`true_estimates`) and without it (`blind_estimates`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3_backbone.features import ImageFeatures
from m3_backbone.outcomes.labels import Inputs, Labels, TokenEmbeddings, VisualTokens
from m3_backbone.outcomes.table import OutcomeTable
from tests.label_folders import write_label_folder

SCALES = (1, 9, 36)
KINDS = ("ground", "count", "read")
FILLERS = ("please", "now", "here", "this", "that")
VOCABULARY = (*KINDS, *FILLERS)
HIDDEN, NUM_COARSE = 24, 9
STATISTICS = ("tower/crowding", "image/width", "image/height")  # the first shows the crowding, dimly
RIGHT, WRONG = 0.9, 0.1
FINGERPRINTS = {"weights": "aa", "data": "bb", "prompt": "cc", "decoding": "dd"}


def find_needed(kind: np.ndarray, crowding: np.ndarray) -> np.ndarray:
    """Index of the scale that a question of this kind needs on a picture of this crowding."""
    by_kind = np.array([[0, 0, 0], [0, 1, 2], [0, 2, 2]])
    return by_kind[kind, crowding]


def true_estimates(labels: Labels) -> np.ndarray:
    kind = np.array([KINDS.index(row["kind"]) for row in labels.outcomes.attributes])
    crowding = np.array([row["crowding"] for row in labels.outcomes.attributes])
    return np.where(np.arange(3) >= find_needed(kind, crowding)[:, None], RIGHT, WRONG)


def blind_estimates(labels: Labels) -> np.ndarray:
    """What the kind of question alone tells: the truth averaged over the three degrees of crowding."""
    kind = np.array([KINDS.index(row["kind"]) for row in labels.outcomes.attributes])
    degrees = [np.full(len(kind), degree) for degree in range(3)]
    right = [np.arange(3) >= find_needed(kind, degree)[:, None] for degree in degrees]
    return WRONG + (RIGHT - WRONG) * np.mean(right, axis=0)


def make_labels(num_images: int, seed: int, questions_per_image: int = 4, split: str = "train") -> Labels:
    """Labels of a fresh draw; the embeddings, and what crowding looks like, are the same for every seed."""
    world = np.random.default_rng(0)
    embeddings = world.normal(size=(len(VOCABULARY), HIDDEN)).astype(np.float32)
    directions = world.normal(size=(3, HIDDEN))
    draw = np.random.default_rng([seed, num_images])
    num_samples = num_images * questions_per_image
    image_row = np.repeat(np.arange(num_images), questions_per_image)
    crowding = draw.integers(0, 3, num_images)
    visual = directions[crowding][:, None] * 0.5 + draw.normal(size=(num_images, NUM_COARSE, HIDDEN))
    kind = draw.integers(0, 3, num_samples)
    question = [f"{draw.choice(FILLERS)} {KINDS[k]} {draw.choice(FILLERS)}" for k in kind]
    inputs = Inputs(
        scales=SCALES,
        question=question,
        task=np.full(num_samples, "synthetic", dtype=object),
        question_ids=[np.array([VOCABULARY.index(w) for w in q.split()], dtype=np.int32) for q in question],
        image_row=image_row,
        visual={
            1: VisualTokens.pad(list(visual.mean(axis=1, keepdims=True))),
            NUM_COARSE: VisualTokens.pad(list(visual)),
            36: VisualTokens.pad(list(visual.repeat(4, axis=1))),
        },
        statistics=np.column_stack(
            [crowding + draw.normal(0, 0.5, num_images), draw.integers(30, 60, (num_images, 2))]
        ).astype(np.float32),
        statistic_names=STATISTICS,
        token_embeddings=TokenEmbeddings.hold(torch.from_numpy(embeddings)),
        visual_tokens=np.tile(np.array(SCALES, dtype=np.int32), (num_samples, 1)),
    )
    chance = np.where(np.arange(3) >= find_needed(kind, crowding[image_row])[:, None], RIGHT, WRONG)
    score = (draw.random(chance.shape) < chance).astype(np.float32)
    attributes = [
        {"kind": KINDS[k], "crowding": int(c)} for k, c in zip(kind, crowding[image_row], strict=True)
    ]
    return label(inputs, score, image_prefix=f"{split}-{seed}", attributes=attributes)


def label(
    inputs: Inputs,
    score: np.ndarray,
    *,
    image_prefix: str,
    attributes: list[dict[str, Any]] | None = None,
    fingerprints: dict[str, str] = FINGERPRINTS,
) -> Labels:
    """Inputs with these scores `[n, S]`; what else an outcome table holds is filled in."""
    num_samples = len(inputs)
    image_id = np.array([f"{image_prefix}-{row}" for row in inputs.image_row], dtype=object)
    attributes = attributes or [{"kind": "any"}] * num_samples
    outcomes = OutcomeTable(
        scales=inputs.scales,
        fingerprints=fingerprints,
        sample_id=np.array([f"{image}-{i}" for i, image in enumerate(image_id)], dtype=object),
        image_id=image_id,
        task=inputs.task,
        kind=np.array([row["kind"] for row in attributes], dtype=object),
        question=np.array(inputs.question, dtype=object),
        metric=np.full(num_samples, "exact", dtype=object),
        references=[["yes"]] * num_samples,
        attributes=attributes,
        question_ids=inputs.question_ids,
        answer=[["yes" if right else "no" for right in row] for row in score],
        score=score,
        nll=(1 - score).astype(np.float32),
        reference_tokens=np.full(score.shape, 2, dtype=np.int32),
        confidence=np.full(score.shape, 0.5, dtype=np.float32),
        margin=np.ones(score.shape, dtype=np.float32),
        visual_tokens=inputs.visual_tokens,
        prefill_flops=10**9 * inputs.visual_tokens.astype(np.int64),
        vision_flops=np.full(score.shape, 5 * 10**9, dtype=np.int64),
    )
    return Labels(inputs=inputs, outcomes=outcomes)


def write_labels(folder: Path, splits: dict[str, Labels]) -> None:
    """A finished label folder of these splits, one shard each."""
    shards = {}
    for split, labels in splits.items():
        inputs = labels.inputs
        images = {
            image_id: ImageFeatures(
                {scale: each.tokens[row][each.mask[row]] for scale, each in inputs.visual.items()},
                dict(zip(inputs.statistic_names, inputs.statistics[row].tolist(), strict=True)),
            )
            for row, image_id in enumerate(dict.fromkeys(labels.outcomes.image_id))
        }
        shards[f"{split}-00000"] = (split, labels.outcomes, images)
    write_label_folder(folder, shards, next(iter(splits.values())).inputs.token_embeddings.tensor)


def with_states(labels: Labels) -> Labels:
    """The labels with decoder states, of which the second number says whether the finest scale is right."""
    rng = np.random.default_rng(len(labels))
    state = rng.normal(size=(len(labels), 4)).astype(np.float16)
    state[:, 1] = 100 + 10 * labels.outcomes.score[:, -1]
    probability = rng.random(len(labels)).astype(np.float32)
    states: dict[str, Any] = {"decoder_state": state, "first_probability": probability}
    return replace(
        labels,
        inputs=replace(labels.inputs, **states),
        outcomes=replace(labels.outcomes, **states),
    )


def with_asking(labels: Labels) -> Labels:
    """The labels with self-asking, whose log-odds say whether the coarsest scale is right."""
    score = labels.outcomes.score[:, 0]
    noise = np.random.default_rng(1).normal(size=len(score))
    asked: dict[str, Any] = {
        "yes_log_odds": (2 * score - 1 + noise).astype(np.float32),
        "asking_flops": np.full(len(score), 10**9, dtype=np.int64),
    }
    inputs = replace(labels.inputs, **asked, asking_prompt="Can you answer {question}?")
    return replace(labels, inputs=inputs, outcomes=replace(labels.outcomes, **asked))


def with_thumbnails(labels: Labels, side: int = 64) -> Labels:
    """The labels with thumbnails, of which the brightness says whether the coarsest scale is right."""
    inputs, score = labels.inputs, labels.outcomes.score
    noise = np.random.default_rng(0).integers(0, 60, size=(len(inputs.statistics), side, side, 3))
    is_easy = np.zeros(len(noise), dtype=bool)
    is_easy[inputs.image_row] = score[:, 0] > 0.5
    thumbnails = (noise + np.where(is_easy, 180, 0)[:, None, None, None]).astype(np.uint8)
    return replace(labels, inputs=replace(inputs, thumbnails=thumbnails))
