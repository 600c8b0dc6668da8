"""Nested pooling of a square grid of visual tokens: M3's average pooling and two samplings.

Source: Cai et al., Matryoshka Multimodal Models (arXiv 2405.17430), section 3 and Figure 5 (samplings).
"""

from collections.abc import Sequence
from math import isqrt
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from m3_backbone.features import describe_norms

PoolingMethod = Literal["average", "spatial", "sequential"]


def exact_scales(grid: int) -> tuple[int, ...]:
    """Scales to which a `grid` x `grid` square of tokens can be pooled without remainder, ascending."""
    return tuple(side**2 for side in range(1, grid + 1) if grid % side == 0)


def pooled_side(scale: int, grid: int) -> int:
    """Side of the pooled square, in tokens. Raises ValueError that lists the possible scales if inexact."""
    if scale not in exact_scales(grid):
        possible = ", ".join(map(str, exact_scales(grid)))
        raise ValueError(f"scale {scale} is not possible on a {grid}x{grid} grid: choose one of {possible}")
    return isqrt(scale)


def grid_scales(grid: int, scales: Sequence[int] | None = None) -> tuple[int, ...]:
    """Distinct `scales` in ascending order, or the scales of M3 if None.

    In M3, the side of the grid is divided by its smallest prime factor until one token is left: a grid of 24
    has the sides 24, 12, 6, 3, 1. Each side divides the previous one, so the tokens of every coarser scale
    can be computed from those of the finer one.

    Raises ValueError for an empty list and for a scale to which the grid cannot be pooled without remainder.
    """
    if scales is None:
        sides = [grid]
        while (side := sides[-1]) > 1:
            sides.append(side // next(factor for factor in range(2, side + 1) if side % factor == 0))
        return tuple(side**2 for side in reversed(sides))
    if not scales:
        raise ValueError("a scale ladder needs at least one scale")
    for scale in scales:
        pooled_side(scale, grid)
    return tuple(sorted(set(scales)))


def pool(tokens: Tensor, scale: int, method: PoolingMethod = "average") -> Tensor:
    """Pool tokens in row-major order: `[..., grid * grid, hidden]` -> `[..., scale, hidden]`.

    `average` takes the mean of each block of the grid, `spatial` its upper left token, `sequential` the first
    `scale` tokens. With every method, pooling in two steps equals pooling at once. Raises ValueError that
    lists the possible scales if the grid cannot be pooled to `scale` without remainder.
    """
    *batch, num_tokens, hidden = tokens.shape
    grid = isqrt(num_tokens)
    if grid**2 != num_tokens:
        raise ValueError(f"{num_tokens} visual tokens are not a square grid, so they cannot be pooled")
    side = pooled_side(scale, grid)
    if method == "sequential":
        return tokens[..., :scale, :]
    block = grid // side
    square = tokens.reshape(-1, grid, grid, hidden)
    if method == "average":
        # PyTorch's kernel is far faster than `mean` over two dimensions that are not adjacent.
        pooled = avg_pool2d(square.permute(0, 3, 1, 2), block).permute(0, 2, 3, 1)
        return pooled.reshape(*batch, scale, hidden)
    if method == "spatial":
        return square[:, ::block, ::block].reshape(*batch, scale, hidden)
    raise ValueError(f"unknown pooling {method!r}: choose one of {', '.join(get_args(PoolingMethod))}")


@torch.no_grad()
def describe_tokens(tokens: Tensor, scales: Sequence[int]) -> dict[str, float]:
    """Statistics `tower/...` of the tokens `[num_tiles, grid * grid, hidden]` (see `m3_backbone.features`).

    `scales` are in ascending order; the last one is the scale of `tokens`.
    """
    tokens = tokens.float()
    num_tiles, num_tokens, hidden = tokens.shape
    mean = tokens.mean(dim=(0, 1))
    variance = (tokens - mean).square().sum(-1).mean()
    statistics: dict[str, Tensor] = {}
    for scale in scales[:-1]:
        kept = (pool(tokens, scale) - mean).square().sum(-1).mean()
        # Equal tokens have no variance to lose.
        statistics[f"variance_kept_{scale}"] = kept / variance if variance > 0 else torch.ones(())
    side = isqrt(num_tokens)
    grid = normalize(tokens, dim=-1).reshape(num_tiles, side, side, hidden)
    across, down = (grid[:, :, 1:] * grid[:, :, :-1]).sum(-1), (grid[:, 1:] * grid[:, :-1]).sum(-1)
    cosines = torch.cat([across.flatten(), down.flatten()])
    cosine = float(cosines.mean()) if len(cosines) else 1.0
    return {
        **{f"tower/{name}": float(value) for name, value in statistics.items()},
        **describe_norms(tokens),
        "tower/neighbour_cosine": cosine,
    }
