"""Labels as batches of tensors, and the LightningDataModule that serves them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.features import Features, Standard

_NO_IDS = np.empty(0, dtype=np.int64)


class Batch(NamedTuple):
    """What a network sees of some B samples: T question tokens, V visual tokens, F statistics, S scales.

    Masks are True at real tokens. `question_ids` are rows of the frozen embeddings, which are handed to the
    network beside the batch. Visual tokens of several scales follow one another, coarsest scale first.
    Statistics are standardised (see `Features.read_statistics`); after them comes the vector of the
    sentence encoder, if any. `cost` is the count of visual tokens at each scale.
    """

    question_ids: Tensor  # [B, T] int64
    question_mask: Tensor  # [B, T] bool
    visual: Tensor  # [B, V, hidden] float32
    visual_mask: Tensor  # [B, V] bool
    statistics: Tensor  # [B, F] float32
    cost: Tensor  # [B, S] float32


class Target(NamedTuple):
    """What is learned: at each scale the score in [0, 1] of the answer, and the reference's NLL in nats."""

    score: Tensor  # [B, S] float32
    nll: Tensor  # [B, S] float32


class BatchMaker:
    """Makes batches of samples: what `features` name of them, the statistics in units of `standard`.

    `widths` are the most visual tokens that an image of the training part has, per scale: of several scales
    each begins at the same place as it did in training, whichever images are at hand. Raises ValueError where
    the inputs lack what is to be read.
    """

    def __init__(
        self, inputs: Inputs, features: Features, standard: Standard, widths: Sequence[int] = ()
    ) -> None:
        self.inputs, self.features = inputs, features
        self.visual = [inputs.visual_at(scale) for scale in features.scales]
        for place, width in enumerate(widths[:-1]):  # after the last scale nothing begins
            self.visual[place] = self.visual[place].fit(width, cut=False)
        self.statistics = standard.apply(features.read_statistics(inputs))
        self.sentences = features.read_sentences(inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def make(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given samples, padded to the longest question among them."""
        index = np.asarray(rows)
        images = self.inputs.image_row[index]
        ids, mask = self._read_questions(index)
        # The empty array stands for a predictor that reads no visual tokens.
        none = np.zeros((len(index), 0, self.inputs.hidden_size), dtype=np.float32)
        tokens = [none, *(each.tokens[images].astype(np.float32) for each in self.visual)]
        masks = [none[..., 0] > 0, *(each.mask[images] for each in self.visual)]
        return Batch(
            question_ids=ids,
            question_mask=mask,
            visual=torch.from_numpy(np.concatenate(tokens, axis=1)),
            visual_mask=torch.from_numpy(np.concatenate(masks, axis=1)),
            statistics=torch.from_numpy(
                np.concatenate([self.statistics[images], self.sentences[index]], axis=1)
            ),
            cost=torch.from_numpy(self.inputs.visual_tokens[index].astype(np.float32)),
        )

    def iterate(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order."""
        for start in range(0, len(self), batch_size):
            yield self.make(np.arange(start, min(start + batch_size, len(self))))

    def _read_questions(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Ids and mask; an unread or empty question has one (masked) position, as attention needs one."""
        read = self.features.question
        questions = [self.inputs.question_ids[row] if read else _NO_IDS for row in index]
        lengths = [len(question) for question in questions]
        mask = np.arange(max(1, *lengths)) < np.array(lengths)[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate(questions)
        return torch.from_numpy(ids), torch.from_numpy(mask)


class LabelsDataset(Dataset):
    """Whole batches at once: a sample at a time would cost more than the networks do."""

    def __init__(self, labels: Labels, features: Features, standard: Standard, widths: Sequence[int]) -> None:
        self.outcomes = labels.outcomes
        self.batches = BatchMaker(labels.inputs, features, standard, widths)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitems__(self, rows: list[int]) -> tuple[Batch, Target]:
        outcomes = self.outcomes
        target = Target(torch.from_numpy(outcomes.score[rows]), torch.from_numpy(outcomes.nll[rows]))
        return self.batches.make(rows), target


class LabelsDataModule(lightning.LightningDataModule):
    """Training batches in an order fixed by seed and epoch, validation batches in that of the table."""

    def __init__(
        self,
        train: Labels,
        validation: Labels,
        features: Features,
        standard: Standard,
        widths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train, self.validation = (
            LabelsDataset(part, features, standard, widths) for part in (train, validation)
        )
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
