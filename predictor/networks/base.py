"""What every network is: it encodes a sample, and reads its outputs off that and the statistics."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from predictor.batches import Batch
from predictor.folder import Buildable


@dataclass(frozen=True)
class InputShape:
    """What a network is built for.

    `num_visual` visual tokens of `hidden_size`, the most that an image of the training part has, and
    `num_statistics` numbers: statistics of the image, the vector of a sentence encoder, and the price where
    the objective gives it.
    """

    hidden_size: int
    num_visual: int
    num_statistics: int


class Network(nn.Module, Buildable, ABC):
    """`encode` does the work, once per sample; `read_off` turns codes and statistics into outputs.

    So an objective may ask for the outputs at many prices, which stand among the statistics, and pay for one
    encoding. A subclass is made as `network(shape, num_outputs, **own)`.
    """

    def __init__(self, shape: InputShape, num_outputs: int) -> None:
        super().__init__()
        self.shape, self.num_outputs = shape, num_outputs

    def forward(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Outputs `[batch, num_outputs]` from a batch and the frozen embeddings `[vocab, hidden_size]`."""
        return self.read_off(self.encode(batch, token_embeddings), batch.statistics)

    @abstractmethod
    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Codes `[batch, code_size]`."""

    @abstractmethod
    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        """Outputs `[batch, num_outputs]` from codes and statistics `[batch, num_statistics]`."""

    def pad_visual(self, batch: Batch) -> Tensor:
        """Visual tokens `[batch, num_visual, hidden_size]`; zeros where an image has fewer.

        Raises ValueError for an image that has more of them than any image trained on.
        """
        missing = self.shape.num_visual - batch.visual.shape[1]
        if missing < 0:
            raise ValueError(
                f"an image has {batch.visual.shape[1]} visual tokens, more than the {self.shape.num_visual} "
                "of training: train on such images, or take a network for any number, as cross_attention"
            )
        visual = batch.visual * batch.visual_mask[..., None]
        return nn.functional.pad(visual, (0, 0, 0, missing))


def embed_words(question_ids: Tensor, token_embeddings: Tensor, transform: nn.Module, like: Tensor) -> Tensor:
    """`transform`ed embeddings `[batch, num_words, width]`; each distinct word is transformed once."""
    words, word_of = torch.unique(question_ids, return_inverse=True)
    return transform(token_embeddings[words].to(like))[word_of]


def average(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens, `[batch, width]`; zeros where there is none."""
    weights = mask[..., None].to(tokens)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
