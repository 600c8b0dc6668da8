"""Interface of networks, which encode a sample and map code and statistics to outputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from predictor.batches import Batch
from predictor.folder import Buildable


@dataclass(frozen=True)
class InputShape:
    """Sizes of a network's inputs.

    `num_visual` is the maximum number of visual tokens of a training image, each of size `hidden_size`; if
    the network sets `reads_positions`, it is the number of every image. `num_statistics` is the total size of
    the image statistics, the vector of a sentence encoder, and the price if the objective provides one.
    """

    hidden_size: int
    num_visual: int
    num_statistics: int


class Network(nn.Module, Buildable, ABC):
    """Network in two steps: `encode` maps samples to codes, `read_off` maps codes and statistics to outputs.

    An objective can thus compute the outputs at many prices, which are part of the statistics, after encoding
    once. A subclass is constructed as `network(shape, num_outputs, **arguments)`.

    Attributes:
        reads_positions: whether weights belong to positions of visual tokens. Such a network gets the same
            number of visual tokens for every image (`features.fit_visual`).
        reads_thumbnails: whether the network needs thumbnails (`Features.thumbnail`).
    """

    reads_positions: ClassVar[bool] = False
    reads_thumbnails: ClassVar[bool] = False

    def __init__(self, shape: InputShape, num_outputs: int) -> None:
        super().__init__()
        self.shape, self.num_outputs = shape, num_outputs

    def forward(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Outputs `[batch, num_outputs]` from a batch and the frozen embeddings `[vocab, hidden_size]`."""
        return self.read_off(self.encode(batch, token_embeddings), batch.statistics)

    @abstractmethod
    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Codes `[batch, code_size]` of a batch."""

    @abstractmethod
    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        """Outputs `[batch, num_outputs]` from codes and statistics `[batch, num_statistics]`."""

    def pad_visual(self, batch: Batch) -> Tensor:
        """Visual tokens `[batch, num_visual, hidden_size]`, padded with zeros.

        Raises ValueError for an image with more visual tokens than `num_visual`, which a predictor whose
        network sets `reads_positions` does not make.
        """
        missing = self.shape.num_visual - batch.visual.shape[1]
        if missing < 0:
            raise ValueError(
                f"an image has {batch.visual.shape[1]} visual tokens, more than the {self.shape.num_visual} "
                "of training: train on such images, or use a network for any number, such as cross_attention"
            )
        visual = batch.visual * batch.visual_mask[..., None]
        return nn.functional.pad(visual, (0, 0, 0, missing))


def draw_normal(*shape: int, divisor: float = 1.0) -> Tensor:
    """Return `torch.randn(*shape) / divisor`; on the meta device, which has no values, only the shape.

    There PyTorch would import its compiler to draw them, which takes 2 s whenever a predictor is loaded.
    """
    values = torch.empty(*shape)
    return values if values.is_meta else values.normal_().div_(divisor)


def embed_words(question_ids: Tensor, token_embeddings: Tensor, transform: nn.Module, like: Tensor) -> Tensor:
    """Embeddings `[batch, num_words, width]` after `transform`, which runs once per distinct word."""
    words, word_of = torch.unique(question_ids, return_inverse=True)
    return transform(token_embeddings[words].to(like))[word_of]


def average(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens at which the mask is True, `[batch, width]`; zeros if there are none."""
    weights = mask[..., None].to(tokens)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
