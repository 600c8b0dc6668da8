"""What a predictor learns from: what it may see of each sample, and what happened at every scale."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from m3_backbone.outcomes import OutcomeTable, Rows, take, to_index
from m3_backbone.shards import find_shards, read_features

SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that a policy may see of n samples before any of them is answered.

    `visual` [num_images, num_coarse, hidden] float16 holds the coarse visual tokens of each image, padded;
    `visual_mask` [num_images, num_coarse] is True at real tokens; `image_row` [n] says which image a sample
    asks about. `question_ids` are token ids of the question text, rows of `token_embeddings` [vocab, hidden].
    `visual_tokens` int32 [n, S] is what each scale would cost; it follows from the size of the image.
    """

    scales: tuple[int, ...]
    question: list[str]
    task: np.ndarray
    question_ids: list[np.ndarray]
    image_row: np.ndarray
    visual: np.ndarray
    visual_mask: np.ndarray
    token_embeddings: Tensor
    visual_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.question)

    def select(self, rows: Rows) -> Self:
        """The given samples, of a boolean mask [n], indices or a slice; images and embeddings stay shared."""
        index = to_index(rows, len(self))
        columns = {name: take(getattr(self, name), index) for name in _ROW_COLUMNS}
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ROW_COLUMNS}
        return type(self)(**shared, **columns)


_ROW_COLUMNS = ("question", "task", "question_ids", "image_row", "visual_tokens")


@dataclass(frozen=True, eq=False)
class Labels:
    """Inputs and outcomes of the same samples, row by row."""

    inputs: Inputs
    outcomes: OutcomeTable

    def __len__(self) -> int:
        return len(self.outcomes)

    def select(self, rows: Rows) -> Self:
        """The given samples, of a boolean mask [n], distinct indices or a slice."""
        return type(self)(inputs=self.inputs.select(rows), outcomes=self.outcomes.select(rows))


def read_labels(folder: str | Path, split: str) -> Labels:
    """Outcomes and frozen features of one split of a finished label folder."""
    folder = Path(folder)
    outcomes = OutcomeTable.read(folder, split)
    features: dict[str, np.ndarray] = {}
    for path in find_shards(folder, "features", split):
        features |= read_features(path)
    row_of = {image_id: row for row, image_id in enumerate(dict.fromkeys(outcomes.image_id))}
    if missing := [image_id for image_id in row_of if image_id not in features]:
        raise ValueError(
            f"{folder / 'features'} lacks image {missing[0]!r} of {split}: "
            f"delete {folder / 'outcomes'} and run the label command again"
        )
    visual, visual_mask = pad_visual([features[image_id] for image_id in row_of])
    inputs = Inputs(
        scales=outcomes.scales,
        question=outcomes.question.tolist(),
        task=outcomes.task,
        question_ids=outcomes.question_ids,
        image_row=np.array([row_of[image_id] for image_id in outcomes.image_id], dtype=np.int64),
        visual=visual,
        visual_mask=visual_mask,
        token_embeddings=load_file(folder / "token_embeddings.safetensors")["token_embeddings"],
        visual_tokens=outcomes.visual_tokens,
    )
    return Labels(inputs=inputs, outcomes=outcomes)


def pad_visual(visual: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One array [num_tokens, hidden] per image as float16 [num_images, num_coarse, hidden], and its mask."""
    longest = max(len(tokens) for tokens in visual)
    padded = np.zeros((len(visual), longest, visual[0].shape[1]), dtype=np.float16)
    mask = np.zeros((len(visual), longest), dtype=bool)
    for row, tokens in enumerate(visual):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return padded, mask
