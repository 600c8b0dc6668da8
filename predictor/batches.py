"""Labels as batches of tensors, and the LightningDataModule that serves them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from m3_backbone.labels import Inputs, Labels


class Batch(NamedTuple):
    """What a network sees of some samples; B samples, T question tokens, V coarse visual tokens, S scales.

    Masks are True at real tokens. `question_ids` are rows of the frozen embeddings, which are handed to the
    network beside the batch. `cost` is the count of visual tokens at each scale.
    """

    question_ids: Tensor  # [B, T] int64
    question_mask: Tensor  # [B, T] bool
    visual: Tensor  # [B, V, hidden] float32
    visual_mask: Tensor  # [B, V] bool
    cost: Tensor  # [B, S] float32


class Target(NamedTuple):
    """What is learned: at each scale the score in [0, 1] of the answer, and the reference's NLL in nats."""

    score: Tensor  # [B, S] float32
    nll: Tensor  # [B, S] float32


def make_batch(inputs: Inputs, rows: Sequence[int] | np.ndarray) -> Batch:
    """The given samples, padded to the longest question among them."""
    questions = [torch.from_numpy(inputs.question_ids[row].astype(np.int64)) for row in rows]
    # An empty question still gets one (masked) position, as attention needs a sequence.
    length = max(1, *(len(ids) for ids in questions))
    ids = torch.zeros(len(questions), length, dtype=torch.int64)
    mask = torch.zeros(len(questions), length, dtype=torch.bool)
    for i, question in enumerate(questions):
        ids[i, : len(question)] = question
        mask[i, : len(question)] = True
    image_rows = inputs.image_row[np.asarray(rows)]
    return Batch(
        question_ids=ids,
        question_mask=mask,
        visual=torch.from_numpy(inputs.visual[image_rows].astype(np.float32)),
        visual_mask=torch.from_numpy(inputs.visual_mask[image_rows]),
        cost=torch.from_numpy(inputs.visual_tokens[np.asarray(rows)].astype(np.float32)),
    )


def iterate_batches(inputs: Inputs, batch_size: int) -> Iterator[Batch]:
    """All samples in order."""
    for start in range(0, len(inputs), batch_size):
        yield make_batch(inputs, np.arange(start, min(start + batch_size, len(inputs))))


class LabelsDataset(Dataset):
    """Whole batches at once: a sample at a time would cost more than the networks do."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> tuple[Batch, Target]:
        outcomes = self.labels.outcomes
        target = Target(torch.from_numpy(outcomes.score[rows]), torch.from_numpy(outcomes.nll[rows]))
        return make_batch(self.labels.inputs, rows), target


class LabelsDataModule(lightning.LightningDataModule):
    """Training batches in an order fixed by seed and epoch, validation batches in that of the table."""

    def __init__(self, train: Labels, validation: Labels, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.train, self.validation = LabelsDataset(train), LabelsDataset(validation)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        return self._make_loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._make_loader(self.validation, shuffle=False)

    def _make_loader(self, dataset: LabelsDataset, shuffle: bool) -> DataLoader:
        # This sampler on one device, too: it orders by seed and epoch, so that a run that was killed and
        # resumed sees what an undisturbed one sees.
        sampler: DistributedSampler = DistributedSampler(dataset, 1, 0, shuffle=shuffle, seed=self.seed)
        return DataLoader(dataset, self.batch_size, sampler=sampler, collate_fn=lambda batch: batch)
