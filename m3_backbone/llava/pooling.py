"""Nested reduction of a square of visual tokens: M3's average pooling, and the two samplings of its ablation.

Source: Cai et al., Matryoshka Multimodal Models (arXiv 2405.17430), section 3 and Figure 5.
"""

from math import isqrt
from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import avg_pool2d

from m3_backbone.ladder import pooled_side

PoolingMethod = Literal["average", "spatial", "sequential"]


def pool(tokens: Tensor, scale: int, method: PoolingMethod = "average") -> Tensor:
    """`[..., grid * grid, hidden]` -> `[..., scale, hidden]`, rows first.

    `average` takes the mean of each block of the grid, `spatial` its upper left token, `sequential` the first
    `scale` tokens. With each of them, pooling what was pooled gives what pooling at once gives. ValueError,
    naming the possible scales, where the grid cannot give the scale exactly.
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
        # PyTorch's kernel is far faster than `mean` over two dimensions that do not lie side by side.
        pooled = avg_pool2d(square.permute(0, 3, 1, 2), block).permute(0, 2, 3, 1)
        return pooled.reshape(*batch, scale, hidden)
    if method == "spatial":
        return square[:, ::block, ::block].reshape(*batch, scale, hidden)
    raise ValueError(f"unknown pooling {method!r}: choose one of {', '.join(get_args(PoolingMethod))}")
