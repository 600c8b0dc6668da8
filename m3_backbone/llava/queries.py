"""Learned queries of MQT-LLaVA: one cross-attention layer turns patch features into 256 nested visual tokens.

The visual tokens of scale m are the first m of them, so one vision pass serves every scale.

Source: Hu et al., Matryoshka Query Transformer for Large Vision-Language Models (arXiv 2405.19315), and the
authors' code (github.com/gordonhu608/MQT-LLaVA), of which this was read:

    llava/model/llava_arch.py    `model.query_abstractor` takes the place of `model.mm_projector`, and no
        projector follows it. config.json has `query_abstractor_type: matry_query`, and `num_visual_tokens`
        as a setting of training; it does not state the shape of the query transformer.
    llava/model/multimodal_projector/builder.py    the shape: 256 queries, 16 heads, keys and values of the
        tower's width. Keys are position embeddings without features, so the attention pattern is the same
        for all images. Positions are those of 16 x 16 queries, bicubically interpolated to the patches.
        Any number of tokens from 1 to 256 is allowed. Training drew even numbers from 2 to 256.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from m3_backbone.images import to_rgb
from m3_backbone.llava.preprocessing import ImagePreprocessor
from m3_backbone.views import Panel

NUM_QUERIES = 256
NUM_HEADS = 16
# Scales of the paper's tables.
_SCALES = (2, 4, 8, 16, 36, 64, 144, 256)


def num_queries_of(config: Any) -> int | None:
    """Number of queries of a model's configuration; None for a model without queries."""
    return getattr(config, "num_queries", None)


def num_heads_of(config: Any) -> int:
    """Number of attention heads of a configuration's query transformer."""
    return getattr(config, "num_query_heads", NUM_HEADS)


def query_scales(num_queries: int, scales: Sequence[int] | None = None) -> tuple[int, ...]:
    """Distinct `scales` in ascending order, or those of the paper up to `num_queries` if None.

    Raises ValueError for an empty list and for a scale that is not in 1 ... `num_queries`.
    """
    if scales is None:
        scales = [scale for scale in _SCALES if scale < num_queries] + [num_queries]
    if not scales:
        raise ValueError("a scale ladder needs at least one scale")
    for scale in scales:
        check_prefix(scale, num_queries)
    return tuple(sorted(set(scales)))


def check_prefix(scale: int, num_queries: int) -> int:
    """Return `scale`. Raises ValueError if it is not in 1 ... `num_queries`."""
    if not 1 <= scale <= num_queries:
        raise ValueError(
            f"scale {scale} is not possible with {num_queries} queries: choose from 1 to {num_queries}"
        )
    return scale


def check_shape(width: int, num_queries: int, num_heads: int) -> None:
    """Raise ValueError for a query transformer of `width` that cannot be built."""
    if width % num_heads:
        raise ValueError(f"a query transformer of width {width} cannot have {num_heads} heads")
    if isqrt(num_queries) ** 2 != num_queries:
        raise ValueError(f"the positions of {num_queries} queries are not a square")


class QueryTransformer(nn.Module):
    """Cross-attention of learned queries to patch features. Parameters are named as in the checkpoints.

    Args:
        width: width of patch features, keys and values.
        hidden: width of the visual tokens.
        num_queries: number of visual tokens, a square number.
        num_heads: number of attention heads.

    Raises ValueError as in `check_shape`.
    """

    def __init__(
        self, width: int, hidden: int, num_queries: int = NUM_QUERIES, num_heads: int = NUM_HEADS
    ) -> None:
        super().__init__()
        check_shape(width, num_queries, num_heads)
        self.query = nn.Parameter(0.02 * torch.randn(num_queries, width))
        # Frozen sines and cosines in the checkpoints, which contain them.
        self.pos_embed = nn.Parameter(torch.randn(num_queries, width), requires_grad=False)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(hidden**-0.5 * torch.randn(width, hidden))

    def forward(self, features: Tensor) -> Tensor:
        """All visual tokens, `[batch, grid * grid, width]` -> `[batch, num_queries, hidden]`."""
        batch, num_patches, _ = features.shape
        query = self.ln_q(self.query + self.pos_embed).expand(batch, -1, -1)
        key = self.ln_k(self._positions(num_patches)).expand(batch, -1, -1)
        tokens, _ = self.attn(query, key, self.ln_v(features))
        return tokens @ self.proj

    def _positions(self, num_patches: int) -> Tensor:
        """Position embeddings of the patches, `[num_patches, width]`."""
        grid, side = isqrt(num_patches), isqrt(len(self.pos_embed))
        if grid**2 != num_patches:
            raise ValueError(f"{num_patches} patch features are not a square grid")
        square = self.pos_embed.float().T.reshape(1, -1, side, side)
        resized = interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T.to(self.pos_embed.dtype)


def query_transformer_flops(num_patches: int, width: int, hidden: int, num_queries: int = NUM_QUERIES) -> int:
    """Operations of the query transformer on one image.

    All queries are counted, at every scale, because they are computed once for all scales. With q queries and
    n patches of width d: `4 (q + n) d^2 + 4 q n d + 2 q d hidden`.
    """
    projections = 4 * (num_queries + num_patches) * width**2
    attention = 4 * num_queries * num_patches * width
    return projections + attention + 2 * num_queries * width * hidden


@dataclass(frozen=True)
class QueryPreprocessor(ImagePreprocessor):
    """Image preprocessing of a checkpoint whose visual tokens are `num_queries` learned queries."""

    num_queries: int = NUM_QUERIES

    def num_visual_tokens(self, image_size: tuple[int, int], token_scale: int) -> int:
        return check_prefix(token_scale, self.num_queries)

    def view(self, image: Image.Image, token_scale: int) -> tuple[Panel, ...]:
        """Return the pixels of `__call__` as a picture; every query reads all of it."""
        check_prefix(token_scale, self.num_queries)
        return tuple(map(Panel, self._cut_tiles(to_rgb(image))))


@torch.no_grad()
def describe_queries(tokens: Tensor, scales: Sequence[int]) -> dict[str, float]:
    """Statistics `tower/...` of the tokens `[1, num_queries, hidden]` (see `m3_backbone.features`).

    `scales` are in ascending order; the last one is the finest scale.
    """
    tokens = tokens[0, : scales[-1]].float()
    mean = tokens.mean(dim=0)
    statistics = {
        f"prefix_cosine_{scale}": cosine_similarity(tokens[:scale].mean(dim=0), mean, dim=0)
        for scale in scales[:-1]
    }
    norm = tokens.norm(dim=-1)
    statistics |= {"norm_mean": norm.mean(), "norm_std": norm.std(correction=0), "norm_max": norm.max()}
    statistics["mean_cosine"] = cosine_similarity(tokens, mean[None]).mean()
    return {f"tower/{name}": float(value) for name, value in statistics.items()}
