"""Router of AVG-LLaVA (Lan et al., arXiv 2410.02745): a transformer layer, an MLP and a vote."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from m3_backbone.arguments import HalfOpenFraction, PositiveInt, checked
from predictor.batches import Batch
from predictor.networks.base import InputShape, Network, draw_normal, embed_words

Attention = Literal["crops", "tokens"]
NUM_WORDS = 32


class AVGRouter(Network):
    """Router of AVG-LLaVA over the visual tokens of all stored scales and the most similar question words.

    The input tokens are the visual tokens, followed by the `num_words` words with the highest mean cosine to
    them. The outputs of each token are weighted by a learned vote for its position, summed and normalised.
    `attention` is the dimension along which the transformer layer attends: `tokens`, as in the paper, or
    `crops`, as in the released code (whose layer gets [crops, tokens, width] and uses the first dimension as
    the sequence). Labels contain the visual tokens of an image after its crops are merged, so that an image
    is one crop; with `crops`, every token then attends only to itself.

    Module names are those of the released code, so that its state dict can be loaded.
    """

    reads_positions = True

    @checked
    def __init__(
        self,
        shape: InputShape,
        num_outputs: int,
        *,
        attention: Attention = "tokens",
        num_words: PositiveInt = NUM_WORDS,
        num_heads: PositiveInt = 8,
        dropout: HalfOpenFraction = 0.1,
    ) -> None:
        super().__init__(shape, num_outputs)
        if attention not in get_args(Attention):
            raise ValueError(
                f"unknown attention {attention!r}: choose one of {', '.join(get_args(Attention))}"
            )
        if shape.num_statistics:
            raise ValueError(
                "AVG-LLaVA's router reads neither statistics nor a price: set "
                "predictor.features.statistics=[] and another objective than expected utility"
            )
        hidden = shape.hidden_size
        if hidden % num_heads:
            raise ValueError(f"num_heads={num_heads}: give a divisor of the hidden size {hidden}")
        self.attention, self.num_words = attention, num_words
        self.merger = nn.TransformerEncoderLayer(hidden, num_heads, hidden, dropout)
        self.router = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, num_outputs))
        self.voter = nn.Parameter(draw_normal(shape.num_visual + num_words, 1))
        self.norm = nn.LayerNorm(num_outputs)
        for layer in (self.router[0], self.router[2]):
            assert isinstance(layer, nn.Linear)
            if not layer.weight.is_meta:  # as in `draw_normal`
                nn.init.kaiming_normal_(layer.weight)

    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        embedded = embed_words(batch.question_ids, token_embeddings, nn.Identity(), batch.visual)
        visual = self.pad_visual(batch)
        words = select_words(visual, embedded, batch.question_mask, self.num_words)
        # One crop per sample: [crops = 1, batch, tokens, width].
        return self.vote(torch.cat([visual, words], dim=1)[None])

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.norm(codes)

    def vote(self, tokens: Tensor) -> Tensor:
        """Votes `[batch, num_outputs]` before the last normalisation, for `[crops, batch, tokens, width]`."""
        crops, batch, num_tokens, width = tokens.shape
        if self.attention == "crops":
            sequences = tokens.reshape(crops, batch * num_tokens, width)
        else:
            sequences = tokens.reshape(crops * batch, num_tokens, width).transpose(0, 1)
        merged = self.merger(sequences)
        if self.attention == "tokens":
            merged = merged.transpose(0, 1)
        outputs = self.router(merged.reshape(tokens.shape))
        return (outputs * self.voter).sum(dim=2).mean(dim=0)

    def route(self, scales: list[Tensor], words: Tensor, mask: Tensor) -> Tensor:
        """Outputs `[num_outputs]` for one image of several crops, as in the released code.

        `scales` are the visual tokens `[crops, scale, width]` of each scale, coarsest first; `words` are
        `[num_words, width]` with `mask` `[num_words]`. The words are selected by the first crop only.
        """
        chosen = select_words(scales[-1][:1], words[None], mask[None], self.num_words)
        tokens = torch.cat([*scales, chosen.expand(len(scales[0]), -1, -1)], dim=1)
        return self.norm(self.vote(tokens[:, None]))[0]


def select_words(visual: Tensor, words: Tensor, mask: Tensor, num_words: int) -> Tensor:
    """The `num_words` embeddings most similar to an image, `[batch, num_words, width]`, most similar first.

    Similarity is the mean cosine to the visual tokens. As in the released code, padding comes last but is not
    removed; zeros follow if there are fewer positions than `num_words`.
    """
    directions = nn.functional.normalize(visual, dim=-1).mean(dim=1)
    similarity = (nn.functional.normalize(words, dim=-1) * directions[:, None]).sum(-1)
    order = similarity.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    order = order[:, :num_words, None].expand(-1, -1, words.shape[-1])
    selected = words.gather(1, order)
    return nn.functional.pad(selected, (0, 0, 0, num_words - selected.shape[1]))
