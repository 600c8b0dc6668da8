"""Batches of tensors from labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.features import Features, Standard, fit_visual

_NO_IDS = np.empty(0, dtype=np.int64)


class Batch(NamedTuple):
    """Inputs of a network for B samples: T question tokens, V visual tokens, F statistics, S scales.

    Masks are False at padding. `question_ids` are rows of the frozen embeddings, which the network gets
    besides the batch. Visual tokens of several scales are concatenated, coarsest scale first. `statistics`
    are the standardised statistics (see `Features.read_statistics`), followed by the vector of the sentence
    encoder, if any, and the standardised decoder state, if read. `cost` is the number of visual tokens at
    each scale (`Features.count_paid_tokens`). `thumbnails` are those of the images, if they are read.
    """

    question_ids: Tensor  # [B, T] int64
    question_mask: Tensor  # [B, T] bool
    visual: Tensor  # [B, V, hidden] float32
    visual_mask: Tensor  # [B, V] bool
    statistics: Tensor  # [B, F] float32
    cost: Tensor  # [B, S] float32
    thumbnails: Tensor | None = None  # [B, side, side, 3] uint8


class Target(NamedTuple):
    """Training targets: at each scale the answer's score in [0, 1] and the reference's NLL in nats."""

    score: Tensor  # [B, S] float32
    nll: Tensor  # [B, S] float32


class BatchMaker:
    """Factory of batches of the `features` of samples, with statistics standardised by `standard`.

    `widths` are the numbers of visual tokens of training, per scale: with several scales, the tokens of each
    start at the same position as in training. With `fixed_widths`, every image has exactly these numbers of
    tokens (`features.fit_visual`). Raises ValueError if the inputs lack a feature.
    """

    def __init__(
        self,
        inputs: Inputs,
        features: Features,
        standard: Standard,
        widths: Sequence[int] = (),
        *,
        fixed_widths: bool = False,
    ) -> None:
        self.inputs, self.features = inputs, features
        if fixed_widths:
            self.visual = fit_visual(inputs, features.scales, widths)
        else:
            self.visual = [inputs.visual_at(scale) for scale in features.scales]
            for index, width in enumerate(widths[:-1]):  # no scale starts after the last one
                self.visual[index] = self.visual[index].fit(width, cut=False)
        statistics = features.read_statistics(inputs)
        image_standard, self._state_standard = standard.split(statistics.shape[1])
        self.statistics = image_standard.apply(statistics)
        self.sentences = features.read_sentences(inputs)
        self.states = features.read_states(inputs)
        self.cost = features.count_paid_tokens(inputs)
        self.thumbnails = features.read_thumbnails(inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def make(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return a batch of the given samples, padded to their longest question."""
        index = np.asarray(rows)
        images = self.inputs.image_row[index]
        ids, mask = self._read_questions(index)
        # The empty array is for predictors that read no visual tokens.
        empty = np.zeros((len(index), 0, self.inputs.hidden_size), dtype=np.float32)
        tokens = [empty, *(visual.tokens[images].astype(np.float32) for visual in self.visual)]
        masks = [empty[..., 0] > 0, *(visual.mask[images] for visual in self.visual)]
        states = self._state_standard.apply(self.states[index].astype(np.float32))
        return Batch(
            question_ids=ids,
            question_mask=mask,
            visual=torch.from_numpy(np.concatenate(tokens, axis=1)),
            visual_mask=torch.from_numpy(np.concatenate(masks, axis=1)),
            statistics=torch.from_numpy(
                np.concatenate([self.statistics[images], self.sentences[index], states], axis=1)
            ),
            cost=torch.from_numpy(self.cost[index].astype(np.float32)),
            thumbnails=None if self.thumbnails is None else torch.from_numpy(self.thumbnails[images]),
        )

    def iterate(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches of all samples, in order."""
        for start in range(0, len(self), batch_size):
            yield self.make(np.arange(start, min(start + batch_size, len(self))))

    def _read_questions(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Ids and mask. An unread or empty question has one masked position, since attention needs one."""
        read = self.features.question
        questions = [self.inputs.question_ids[row] if read else _NO_IDS for row in index]
        lengths = [len(question) for question in questions]
        mask = np.arange(max(1, *lengths)) < np.array(lengths)[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate(questions)
        return torch.from_numpy(ids), torch.from_numpy(mask)


class LabelsDataset(Dataset):
    """Dataset that makes whole batches: making single samples would take longer than the networks."""

    def __init__(self, labels: Labels, make_batches: Callable[[Inputs], BatchMaker]) -> None:
        self.outcomes = labels.outcomes
        self.batches = make_batches(labels.inputs)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitems__(self, rows: list[int]) -> tuple[Batch, Target]:
        outcomes = self.outcomes
        target = Target(torch.from_numpy(outcomes.score[rows]), torch.from_numpy(outcomes.nll[rows]))
        return self.batches.make(rows), target
