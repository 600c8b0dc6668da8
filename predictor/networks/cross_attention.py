"""The question looks at the coarse image: its tokens attend to the coarse visual tokens."""

import math

import torch
from torch import Tensor, nn

from predictor.batches import Batch


class CrossAttention(nn.Module):
    """Transformer decoder over [summary token, question tokens], its memory the coarse visual tokens.

    Frozen embeddings and visual tokens, both `[.., hidden_size]`, are normalised and projected to `width`.
    Position codes are sinusoidal and then projected, so any number of tokens will do (tiled images differ
    in it). The logits are read off the summary token, the mean visual token and the statistics.
    """

    def __init__(
        self,
        hidden_size: int,
        num_statistics: int,
        num_outputs: int,
        *,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
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
            nn.Linear(2 * width + num_statistics, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, num_outputs),
        )

    def forward(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        """Outputs `[batch, num_outputs]` from a batch and the frozen embeddings `[vocab, hidden_size]`."""
        # A batch of questions repeats few words: project each of them once.
        words, word_of = torch.unique(batch.question_ids, return_inverse=True)
        question = self.project_question(token_embeddings[words].to(batch.visual))[word_of]
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
        weights = batch.visual_mask[..., None].to(visual)
        mean_visual = (visual * weights).sum(1) / weights.sum(1)
        seen = self.normalize(torch.cat([states[:, 0], mean_visual], dim=-1))
        return self.head(torch.cat([seen, batch.statistics], dim=-1))


def encode_positions(num_positions: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal codes `[num_positions, width]` (Vaswani et al. 2017), of the type and device of `like`."""
    position = torch.arange(num_positions, device=like.device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    return torch.cat([(position * frequency).sin(), (position * frequency).cos()], dim=1).to(like)
