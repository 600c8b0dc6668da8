"""Pruning of visual tokens: the patches of an image are ranked, and a scale keeps the first of them.

The ranking is the same for all scales, so the kept tokens of a coarser scale are some of those of a finer
one. They enter the decoder in the order of the grid. No ranking reads the question; none is trained.

    class_attention    by the attention of the class token to the patch, summed over heads, in the layer whose
        output is taken as the features: the dominant tokens of VisionZip (Yang et al., arXiv 2412.04467).
    visionzip    5 of 32 tokens, the paper's share, are contextual ones behind the dominant ones: means of the
        features of the other patches, each added to the most similar of evenly spaced ones, by the keys of
        the layer. They differ from scale to scale. At scales below 4, and where all patches are kept, there
        are none. The class token itself, which VisionZip keeps as a visual token, is left out.
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


def rank_by_diversity(tokens: Tensor) -> Tensor:
    """Return the positions of tokens in DivPrune's order.

    `[batch, num_tokens, hidden]` -> `[batch, num_tokens]`.
    """
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


def rank_by_attention(attention: Tensor) -> Tensor:
    """Return the positions of patches, `[batch, num_patches]`, from most to least attention."""
    return attention.argsort(dim=1, descending=True, stable=True)


def rank_at_random(image: Image.Image, num_tokens: int) -> Tensor:
    """Return a random order of `num_tokens` positions, always the same for images with equal pixels."""
    content = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes())
    # Unlike that of other generators, the stream of RandomState is the same in all versions of NumPy.
    seed = int.from_bytes(content.digest()[:4], "big")
    return torch.from_numpy(np.random.RandomState(seed).permutation(num_tokens))


def count_contextual(scale: int, num_patches: int) -> int:
    """Number of contextual tokens of VisionZip among the `scale` tokens of an image."""
    return 0 if scale == num_patches else round(scale * 5 / 32)


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


def pruning_flops(config: Any, method: PruningMethod, scales: Sequence[int]) -> int:
    """Operations of the ranking of an image, counted as in `m3_backbone.costs`; the same at every scale.

    With n patches, a tower of width d and a decoder of width h: `2 (n + 2) d^2 + 2 (n + 1) d` for the
    attention of the class token, `4 (n + 1) d^2 + 2 (n + 1)^2 d` for that of patches, `2 n^2 h` for
    diversity. The contextual tokens of all `scales` are made at once: c of them from m patches take `2 m c`
    times the size of a head, and `2 c (d h + h^2)` in the projector. Comparisons, as in sorting, and means
    are not counted.
    """
    vision: Any = config.vision_config
    width, num_patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    length, hidden = num_patches + 1, int(config.get_text_config().hidden_size)
    match method:
        case "class_attention":
            return 2 * (length + 1) * width**2 + 2 * length * width
        case "visionzip":
            merging = 0
            for scale in scales:
                count = count_contextual(scale, num_patches)
                similarity = 2 * (num_patches - scale + count) * count * (width // vision.num_attention_heads)
                merging += similarity + 2 * count * (width * hidden + hidden**2)
            return pruning_flops(config, "class_attention", scales) + merging
        case "patch_attention":
            return 4 * length * width**2 + 2 * length**2 * width
        case "diversity":
            return 2 * num_patches**2 * hidden
        case "random":
            return 0
