"""Network whose question tokens attend to the coarse visual tokens."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from m3_backbone.arguments import HalfOpenFraction, PositiveInt, checked
from predictor.batches import Batch
from predictor.networks.base import InputShape, Network, average, draw_normal, embed_words


class CrossAttention(Network):
    """Transformer decoder over [summary token, question tokens], with the coarse visual tokens as memory.

    Frozen embeddings and visual tokens, both `[.., hidden_size]`, are normalised and projected to `width`.
    Position codes are projected sinusoids, which work for any number of tokens, as tiled images require. The
    outputs are computed from the summary token, the mean visual token and the statistics.
    """

    @checked
    def __init__(
        self,
        shape: InputShape,
        num_outputs: int,
        *,
        width: PositiveInt = 64,
        num_layers: PositiveInt = 1,
        num_heads: PositiveInt = 4,
        dropout: HalfOpenFraction = 0.1,
    ) -> None:
        super().__init__(shape, num_outputs)
        if not shape.num_visual:
            raise ValueError(
                "cross-attention reads visual tokens: set predictor.features.visual, or use an MLP"
            )
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads}: give a divisor of width={width}")
        hidden_size = shape.hidden_size
        self.width = width
        self.project_question = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width))
        self.project_visual = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width))
        self.place_question = nn.Linear(width, width, bias=False)
        self.place_visual = nn.Linear(width, width, bias=False)
        self.summary = nn.Parameter(draw_normal(width, divisor=math.sqrt(width)))
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
        question_mask = nn.functional.pad(batch.question_mask, (1, 0), value=True)

        visual = self.project_visual(batch.visual)
        visual = visual + self.place_visual(encode_positions(visual.shape[1], self.width, visual))
        states, memory = self.dropout(question), self.dropout(visual)
        *first_layers, last_layer = self.decoder.layers
        for layer in first_layers:
            states = run_layer(layer, states, question_mask, memory, batch.visual_mask)
        states = run_layer(last_layer, states, question_mask, memory, batch.visual_mask, num_outputs=1)
        mean_visual = average(visual, batch.visual_mask)
        return self.normalize(torch.cat([states[:, 0], mean_visual], dim=-1))

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.head(torch.cat([codes, statistics], dim=-1))


def run_layer(
    layer: nn.TransformerDecoderLayer,
    states: Tensor,
    mask: Tensor,
    memory: Tensor,
    memory_mask: Tensor,
    num_outputs: int | None = None,
) -> Tensor:
    """Outputs of the layer for the first `num_outputs` of `states` `[batch, length, width]`; None for all.

    Masks are False at padding. `layer.forward` would compute all tokens, but only the summary token of the
    last layer is used: computing only this token reduces the time of a training step to a third.
    """
    normalized = layer.norm1(states)
    queries = normalized[:, :num_outputs]
    states = states[:, :num_outputs] + layer.dropout1(_attend(layer.self_attn, queries, normalized, mask))
    attended = _attend(layer.multihead_attn, layer.norm2(states), memory, memory_mask)
    states = states + layer.dropout2(attended)
    inner = layer.dropout(layer.activation(layer.linear1(layer.norm3(states))))
    return states + layer.dropout3(layer.linear2(inner))


def _attend(attention: nn.MultiheadAttention, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Attention of `queries` `[batch, num_queries, width]` to `tokens` `[batch, num_tokens, width]`."""
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = linear(queries, weight[:width], bias[:width])
    key, value = linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    dropout = attention.dropout if attention.training else 0.0
    heads = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None], dropout_p=dropout)
    return attention.out_proj(heads.transpose(1, 2).flatten(2))


def encode_positions(num_positions: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal codes `[num_positions, width]` (Vaswani et al. 2017) with the dtype and device of `like`."""
    return _tabulate_positions(num_positions, width).to(like)


@lru_cache(256)
def _tabulate_positions(num_positions: int, width: int) -> Tensor:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        position = torch.arange(num_positions, dtype=torch.float32)[:, None]
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        return torch.cat([(position * frequency).sin(), (position * frequency).cos()], dim=1)
