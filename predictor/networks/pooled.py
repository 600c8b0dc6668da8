"""Networks on pooled features without attention: linear, and with hidden layers."""

import itertools

import torch
from torch import Tensor, nn

from m3_backbone.arguments import HalfOpenFraction, NonNegativeInt, PositiveInt, checked
from predictor.batches import Batch
from predictor.networks.base import InputShape, Network, average, embed_words


class Linear(Network):
    """One linear layer on the mean word embedding, the mean visual token and the statistics."""

    def __init__(self, shape: InputShape, num_outputs: int) -> None:
        super().__init__(shape, num_outputs)
        self.normalize = nn.LayerNorm(shape.hidden_size, elementwise_affine=False)
        self.head = nn.Linear(2 * shape.hidden_size + shape.num_statistics, num_outputs)

    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        words = embed_words(batch.question_ids, token_embeddings, self.normalize, batch.visual)
        visual = self.normalize(batch.visual)
        return torch.cat([average(words, batch.question_mask), average(visual, batch.visual_mask)], dim=-1)

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.head(torch.cat([codes, statistics], dim=-1))


class MLP(Network):
    """Multilayer perceptron with `num_layers` hidden layers.

    Its inputs are the mean word embedding, projected to `width`, the visual tokens, each projected to
    `token_width` and concatenated by position, and the statistics. Images with another number of visual
    tokens are padded, cut or resampled (`features.fit_visual`).
    """

    reads_positions = True

    @checked
    def __init__(
        self,
        shape: InputShape,
        num_outputs: int,
        *,
        width: PositiveInt = 128,
        token_width: PositiveInt = 16,
        num_layers: NonNegativeInt = 2,
        dropout: HalfOpenFraction = 0.2,
    ) -> None:
        super().__init__(shape, num_outputs)
        hidden = shape.hidden_size
        self.project_question = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.project_visual = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, token_width))
        sizes = [width + token_width * shape.num_visual + shape.num_statistics, *[width] * num_layers]
        hidden_layers = [
            nn.Sequential(nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout))
            for before, after in itertools.pairwise(sizes)
        ]
        self.head = nn.Sequential(nn.Dropout(dropout), *hidden_layers, nn.Linear(width, num_outputs))

    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        words = embed_words(batch.question_ids, token_embeddings, self.project_question, batch.visual)
        visual = self.project_visual(self.pad_visual(batch)).flatten(1)
        return torch.cat([average(words, batch.question_mask), visual], dim=-1)

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.head(torch.cat([codes, statistics], dim=-1))
