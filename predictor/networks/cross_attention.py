"""The question looks at the coarse image: its tokens attend to the coarse visual tokens."""

import math

import torch
from torch import Tensor, nn

from predictor.batches import Batch
from predictor.networks.base import InputShape, Network, average, embed_words


class CrossAttention(Network):
    """Transformer decoder over [summary token, question tokens], its memory the coarse visual tokens.

    Frozen embeddings and visual tokens, both `[.., hidden_size]`, are normalised and projected to `width`.
    Position codes are sinusoidal and then projected, so any number of tokens will do (tiled images differ
    in it). The logits are read off the summary token, the mean visual token and the statistics.
    """

    def __init__(
        self,
        shape: InputShape,
        num_outputs: int,
        *,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(shape, num_outputs)
        if not shape.num_visual:
            raise ValueError(
                "cross-attention reads visual tokens: set predictor.features.visual, or take an MLP"
            )
        hidden_size = shape.hidden_size
        self.width = width
        self.project_question = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width))
        self.project_visual = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width))
        self.place_question = nn.Linear(width, width, bias=False)
        self.place_visual = nn.Linear(width, width, bias=False)
        self.summary = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(
            width, num_heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.normalize = nn.LayerNorm(2 * width)
        self.head = nn.Sequential(
            nn.Linear(2 * width + shape.num_statistics, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, num_outputs),
        )

    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        question = embed_words(batch.question_ids, token_embeddings, self.project_question, batch.visual)
        question = question + self.place_question(encode_positions(question.shape[1], self.width, question))
        question = torch.cat([self.summary.expand(len(question), 1, -1), question], dim=1)
        padding = nn.functional.pad(~batch.question_mask, (1, 0), value=False)

        visual = self.project_visual(batch.visual)
        visual = visual + self.place_visual(encode_positions(visual.shape[1], self.width, visual))
        states = self.decoder(
            self.dropout(question),
            self.dropout(visual),
            tgt_key_padding_mask=padding,
            memory_key_padding_mask=~batch.visual_mask,
        )
        mean_visual = average(visual, batch.visual_mask)
        return self.normalize(torch.cat([states[:, 0], mean_visual], dim=-1))

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.head(torch.cat([codes, statistics], dim=-1))


def encode_positions(num_positions: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal codes `[num_positions, width]` (Vaswani et al. 2017), of the type and device of `like`."""
    position = torch.arange(num_positions, device=like.device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    return torch.cat([(position * frequency).sin(), (position * frequency).cos()], dim=1).to(like)
