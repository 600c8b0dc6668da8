"""Image features for predictors: visual tokens at some scales, and statistics.

Labelling stores the features that `Backbone.compute_features` returns, and the same method computes the
features of a new image, so that a predictor gets the same numbers in both cases. A statistic is named
`group/name`. The group `tower` describes the visual tokens and depends on the backbone. M3 has

    tower/variance_kept_S     share of the tokens' variance about their mean that remains at scale S
    tower/norm_mean, _std, _max    mean, standard deviation and maximum of the tokens' Euclidean norms
    tower/neighbour_cosine    mean cosine of horizontally or vertically adjacent tokens of the grid

MQT-LLaVA, whose tokens are no grid and whose scales are prefixes rather than means, has the same norms and

    tower/prefix_cosine_S     cosine of the mean of the first S tokens and the mean of all tokens
    tower/mean_cosine         mean cosine of a token and the mean of all tokens

Backbones with another resolution per scale have the norms of the tokens of the coarsest scale only.

The group `image` describes the pixels and is the same for every backbone:

    image/width, height       in pixels
    image/jpeg_bytes          bytes per pixel as a JPEG of quality 75
    image/entropy             of the histogram of grey levels, in bits
    image/edge_density        share of pixels whose grey level differs by more than 32 of 255 from the pixel
                              to the right or below
    image/colorfulness        Hasler and Süsstrunk, Measuring colourfulness in natural images (SPIE 2003)

A thumbnail is the whole image, resized to a small square, for predictors with an image encoder of their own.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = ("tower", "image")
JPEG_QUALITY = 75
EDGE = 32
# Rough count for all image statistics: colour conversion, cosine transform, histograms and differences.
OPERATIONS_PER_PIXEL = 100
# Of a thumbnail, whose first pass reads each pixel about twice: three channels, a product and a sum.
THUMBNAIL_OPERATIONS_PER_PIXEL = 12


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of one image: scale -> float16 `[num_tokens, hidden]`, and statistic -> value.

    `thumbnail` is uint8 `[side, side, 3]` (`make_thumbnail`), or None.
    """

    visual: dict[int, np.ndarray]
    statistics: dict[str, float]
    thumbnail: np.ndarray | None = None

    def is_finite(self) -> bool:
        """Return whether all features are finite."""
        arrays = [*self.visual.values(), np.array(list(self.statistics.values()))]
        return all(bool(np.isfinite(array).all()) for array in arrays)


def describe_image(image: Image.Image) -> dict[str, float]:
    """The statistics `image/...` of an image."""
    image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    gray = image.convert("L")
    levels = np.asarray(gray, dtype=np.int16)
    edges = np.zeros(levels.shape, dtype=bool)
    edges[:, :-1] |= np.abs(np.diff(levels, axis=1)) > EDGE
    edges[:-1] |= np.abs(np.diff(levels, axis=0)) > EDGE
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.float32), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    spread, shift = opponents.std(axis=1), opponents.mean(axis=1)
    statistics = {
        "width": image.width,
        "height": image.height,
        "jpeg_bytes": file.tell() / (image.width * image.height),
        "entropy": gray.entropy(),
        "edge_density": edges.mean(),
        "colorfulness": np.hypot(*spread) + 0.3 * np.hypot(*shift),
    }
    return {f"image/{name}": float(value) for name, value in statistics.items()}


def make_thumbnail(image: Image.Image, side: int) -> np.ndarray:
    """Return the RGB image resized to a square, uint8 `[side, side, 3]`; its proportions are lost."""
    square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.array(square, dtype=np.uint8)


def describe_norms(tokens: "Tensor") -> dict[str, float]:
    """The statistics `tower/norm_...` of visual tokens `[..., num_tokens, hidden]`."""
    norm = tokens.float().norm(dim=-1)
    statistics = {"mean": norm.mean(), "std": norm.std(correction=0), "max": norm.max()}
    return {f"tower/norm_{name}": float(value) for name, value in statistics.items()}


def count_tower_operations(num_tokens: float, hidden_size: int, num_scales: int) -> float:
    """Floating-point operations of the tower statistics of an image with `num_tokens` visual tokens.

    Per number: two for norms, one to normalise and four for the two neighbours. If the statistics include the
    variance kept at each of `num_scales` scales, of which the tokens are those of the finest one: three more
    for the variance, and one and a half per coarser scale (one sum, and three operations on at most a sixth
    of the numbers). `num_scales` is 0 if they do not. The
    statistics of learned queries take fewer.
    """
    per_number = 10 + 1.5 * (num_scales - 1) if num_scales else 7
    return num_tokens * hidden_size * per_number


def stack_statistics(images: Sequence[ImageFeatures]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values (float32 `[num_images, num_statistics]`) of the statistics of images.

    Raises ValueError if the images have different statistics.
    """
    names = tuple(images[0].statistics)
    if any(tuple(image.statistics) != names for image in images):
        raise ValueError("the images have different statistics: label all of them again")
    values = [list(image.statistics.values()) for image in images]
    return names, np.array(values, dtype=np.float32).reshape(len(images), len(names))
