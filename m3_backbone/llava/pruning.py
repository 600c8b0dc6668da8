"""Pruning of visual tokens: the tokens of an image are ranked, and a scale keeps the first of them.

The ranking is the same for all scales, so the kept tokens of a coarser scale are some of those of a finer
one. They enter the decoder in their old order. No ranking reads the question; none is trained.

With tiles, the tokens are those of the finest scale: patches of padding are not among them, and the newlines
at the ends of rows are. DivPrune ranks them all together, as its authors do. The rankings by attention take
the best patch of each tile in turn, then the second of each, as attention is a share of what its tile
receives; newlines come last. VisionZip selects in each tile too, but also from padding, and drops newlines.

    class_attention    by the attention of the class token to the patch, summed over heads, in the layer whose
        output is taken as the features: the dominant tokens of VisionZip (Yang et al., arXiv 2412.04467).
    visionzip    5 of 32 tokens, the paper's share, are contextual ones behind the dominant ones: means of the
        features of the other patches, each added to the most similar of evenly spaced ones, by the keys of
        the layer; with tiles, of those of all tiles. They differ from scale to scale. Where fewer than 4
        tokens or all patches are kept, there are none. The class token itself, which VisionZip keeps as a
        visual token, is left out.
    patch_attention    by the mean attention that the patch receives from all other patches in that layer,
        for towers whose class token is not trained.
    diversity    DivPrune (Alvar et al., arXiv 2503.02175): first the token whose nearest other token is
        farthest, then always the token whose nearest chosen one is farthest, by the cosine distance of tokens
        behind the projector.
    random    at random, from a seed that is the digest of the image: a baseline.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from m3_backbone.llava.modeling import feature_layer_of

PruningMethod = Literal["class_attention", "visionzip", "patch_attention", "diversity", "random"]


def keep(tokens: Tensor, order: Tensor, scale: int) -> Tensor:
    """Return the `scale` tokens that come first in `order`, in their old order.

    `tokens` `[num_tokens, hidden]` -> `[scale, hidden]`; `order` `[num_tokens]` holds positions of tokens.
    """
    return tokens[order[:scale].sort().values]


def rank_by_diversity(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the positions of the tokens of each image in DivPrune's order.

    `[num_tokens, hidden]` -> `[num_tokens]` for each image; images with equally many tokens are one batch.
    """
    orders: dict[int, Tensor] = {}
    for num_tokens in {len(tokens) for tokens in images}:
        rows = [row for row, tokens in enumerate(images) if len(tokens) == num_tokens]
        ranked = _rank_batch_by_diversity(torch.stack([images[row] for row in rows]))
        orders.update(zip(rows, ranked, strict=True))
    return [orders[row] for row in range(len(images))]


def _rank_batch_by_diversity(tokens: Tensor) -> Tensor:
    """`[batch, num_tokens, hidden]` -> `[batch, num_tokens]`."""
    directions = normalize(tokens.float(), dim=-1)
    distance = 1 - directions @ directions.mT
    rows = torch.arange(len(tokens), device=tokens.device)
    diagonal = distance.diagonal(dim1=1, dim2=2)
    diagonal.fill_(torch.inf)
    order = [distance.amin(dim=2).argmax(dim=1)]
    # A chosen token is never chosen again: its distance to the nearest chosen one is below all others.
    diagonal.fill_(-torch.inf)
    nearest = distance[rows, order[0]]
    for _ in range(tokens.shape[1] - 1):
        order.append(nearest.argmax(dim=1))
        nearest = nearest.minimum(distance[rows, order[-1]])
    return torch.stack(order, dim=1)


def rank_by_attention(attention: Tensor, places: Tensor) -> Tensor:
    """Return the positions of the tokens of an image, `[num_tokens]`, from most to least attention.

    `attention` `[num_tiles, num_patches]` is compared within each tile. `places` `[num_tokens]` are those of
    the tokens among the patches of all tiles, -1 for a newline. Equal tokens keep their order.
    """
    num_tiles = len(attention)
    is_patch = places >= 0
    of_tokens = torch.full_like(attention, -torch.inf).flatten()
    of_tokens[places[is_patch]] = attention.flatten()[places[is_patch]]
    best_first = of_tokens.view_as(attention).argsort(dim=1, descending=True, stable=True)
    rank_in_tile = best_first.argsort(dim=1)
    turn = rank_in_tile * num_tiles + torch.arange(num_tiles, device=attention.device)[:, None]
    turn = turn.flatten()[places].masked_fill(~is_patch, attention.numel())
    return turn.argsort(stable=True)


def rank_at_random(image: Image.Image, num_tokens: int) -> Tensor:
    """Return a random order of `num_tokens` positions, always the same for images with equal pixels."""
    content = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes())
    # Unlike that of other generators, the stream of RandomState is the same in all versions of NumPy.
    seed = int.from_bytes(content.digest()[:4], "big")
    return torch.from_numpy(np.random.RandomState(seed).permutation(num_tokens))


def count_contextual(num_kept: int, num_patches: int) -> int:
    """Number of contextual tokens of VisionZip among the kept tokens of an image."""
    return 0 if num_kept >= num_patches else round(num_kept * 5 / 32)


def merge(features: Tensor, keys: Tensor, order: Tensor, num_dominant: int, num_contextual: int) -> Tensor:
    """Return the features of VisionZip's contextual tokens, `[num_contextual, width]`.

    `features` `[num_patches, width]` and `keys` `[num_patches, size]` are those of all patches; the first
    `num_dominant` of `order` `[num_patches]` are not merged.
    """
    rest = order[num_dominant:].sort().values
    step = max(1, len(rest) // num_contextual)
    targets = torch.arange(num_contextual, device=order.device) * step
    directions = normalize(keys[rest].float(), dim=-1)
    group = (directions @ directions[targets].mT).argmax(dim=1)
    group[targets] = torch.arange(num_contextual, device=order.device)
    sums = features.new_zeros(num_contextual, features.shape[1], dtype=torch.float32)
    sums.index_add_(0, group, features[rest].float())
    return (sums / group.bincount(minlength=num_contextual)[:, None]).to(features.dtype)


def measure_attention(layer: Any, hidden: Tensor, *, of_class_token: bool) -> tuple[Tensor, Tensor]:
    """Attention that each patch receives in a layer of CLIP's tower, and the key of each patch.

    The attention `[batch, num_patches]` is that of the class token, summed over heads, or the mean over heads
    and over all other patches. The keys `[batch, num_patches, size of a head]` are means over heads.
    `hidden` `[batch, 1 + num_patches, width]` is the input of `layer`, class token first. Both are computed
    from it once more, so that the tower may use attention kernels that do not return weights.
    """
    attention, states = layer.self_attn, layer.layer_norm1(hidden)
    queries = attention.q_proj(states[:, :1] if of_class_token else states)
    query, key = (_split_heads(part, attention.num_heads) for part in (queries, attention.k_proj(states)))
    weights = (query @ key.mT * attention.scale).float().softmax(dim=-1)
    keys = key.mean(dim=1)[:, 1:]
    if of_class_token:
        return weights[:, :, 0, 1:].sum(dim=1), keys
    between = weights.mean(dim=1)[:, 1:, 1:]
    num_patches = between.shape[1]
    received = between.sum(dim=1) - between.diagonal(dim1=1, dim2=2)
    return received / max(num_patches - 1, 1), keys


def _split_heads(states: Tensor, num_heads: int) -> Tensor:
    """`[batch, length, width]` -> `[batch, num_heads, length, width / num_heads]`."""
    return states.unflatten(2, (num_heads, -1)).transpose(1, 2)


def find_layer(tower: nn.Module, config: Any) -> nn.Module:
    """Return the layer of a tower whose output is taken as the features of patches."""
    encoder: Any = tower.get_submodule("encoder")
    layer: nn.Module = encoder.layers[feature_layer_of(config) - 1]
    return layer


def pruning_flops(
    config: Any, method: PruningMethod, *, num_tiles: int, num_newlines: int, num_tokens: Sequence[int]
) -> int:
    """Operations of the ranking of an image, counted as in `m3_backbone.costs`; the same at every scale.

    `num_tokens` are those of the scales, the last one that of all tokens, newlines included. With n patches
    in a tile, m tokens, a tower of width d and a decoder of width h: for each tile
    `2 (n + 2) d^2 + 2 (n + 1) d` for the attention of the class token or `4 (n + 1) d^2 + 2 (n + 1)^2 d` for
    that of patches, and `2 m^2 h` for diversity. The contextual tokens of all scales are made at once: c of
    them from r patches take `2 r c` times the size of a head, and `2 c (d h + h^2)` in the projector.
    Comparisons, as in sorting, and means are not counted.
    """
    vision: Any = config.vision_config
    width, length = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2 + 1
    hidden = int(config.get_text_config().hidden_size)
    of_class_token = num_tiles * (2 * (length + 1) * width**2 + 2 * length * width)
    match method:
        case "class_attention":
            return of_class_token
        case "visionzip":
            num_patches, merging = num_tokens[-1] - num_newlines, 0
            for num_kept in num_tokens:
                count = count_contextual(num_kept, num_patches)
                similarity = 2 * (num_patches - num_kept + count) * count
                merging += similarity * (width // vision.num_attention_heads)
                merging += 2 * count * (width * hidden + hidden**2)
            return of_class_token + merging
        case "patch_attention":
            return num_tiles * (4 * length * width**2 + 2 * length**2 * width)
        case "diversity":
            return 2 * num_tokens[-1] ** 2 * hidden
        case "random":
            return 0
