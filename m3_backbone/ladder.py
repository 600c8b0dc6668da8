"""Families of backbones, and coinciding scales, which give one image the same visual tokens.

A scale is a cap on the number of visual tokens. An image that is smaller than two caps gets the same tokens
at both, so both have the same answer. Such scales are answered once and count as one scale for oracles and
mixes: otherwise an oracle could choose the luckier of two equal answers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from m3_backbone.backbone import Backbone

# What one vision pass serves: all scales, the coarsest scale within every finer one, or one scale.
Family = Literal["pooled", "thumbnail", "native"]


def find_coarsest(visual_tokens: ArrayLike) -> NDArray[np.int64]:
    """Column of the coarsest scale that coincides with each scale, in the shape of `visual_tokens`.

    `visual_tokens` is `[..., num_scales]`, coarsest scale first, and does not decrease along the ladder.
    Scales coincide if their numbers of visual tokens are equal.
    """
    tokens = np.asarray(visual_tokens)
    starts = np.ones(tokens.shape, dtype=bool)
    starts[..., 1:] = tokens[..., 1:] != tokens[..., :-1]
    columns = np.where(starts, np.arange(tokens.shape[-1]), 0)
    return np.maximum.accumulate(columns, axis=-1)


def find_repeats(visual_tokens: ArrayLike) -> NDArray[np.bool_]:
    """Whether each scale coincides with the next coarser one, in the shape of `visual_tokens`."""
    tokens = np.asarray(visual_tokens)
    return find_coarsest(tokens) != np.arange(tokens.shape[-1])


def coinciding_scales(backbone: "Backbone", image_size: tuple[int, int]) -> dict[int, int]:
    """Return, for each scale of a backbone, the coarsest scale that coincides with it on an image.

    `image_size` is (width, height) in pixels. For a scale that coincides with no coarser one, the value is
    the scale itself.
    """
    scales: Sequence[int] = backbone.scales
    columns = find_coarsest([backbone.num_visual_tokens(image_size, scale) for scale in scales])
    return {scale: scales[column] for scale, column in zip(scales, columns.tolist(), strict=True)}


def distinct_scales(backbone: "Backbone", image_size: tuple[int, int]) -> list[int]:
    """Return the scales at which an image is answered, ascending: those that coincide with no coarser one."""
    return sorted(set(coinciding_scales(backbone, image_size).values()))
