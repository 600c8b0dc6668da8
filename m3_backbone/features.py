"""What a predictor may see of an image: visual tokens of some scales, and statistics of tower and picture.

Labelling stores what `compute_features` gives and use computes it anew, so that both see the same numbers.
A statistic is named `group/name`:

    tower/variance_kept_S     share of the tokens' variance about their mean that is left at scale S
    tower/norm_mean, _std, _max    of the Euclidean norms of the tokens
    tower/neighbour_cosine    mean cosine between tokens side by side, or one above the other, in the grid
    image/width, height       in pixels
    image/jpeg_bytes          bytes per pixel as a JPEG of quality 75
    image/entropy             of the histogram of grey levels, in bits
    image/edge_density        share of pixels whose grey level differs by more than 32 of 255 from the pixel
                              to the right or below
    image/colorfulness        Hasler and Süsstrunk, Measuring colourfulness in natural images (SPIE 2003)
"""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Backbone, EncodedImage
from m3_backbone.ladder import ScaleLadder
from m3_backbone.llava.pooling import pool

GROUPS = ("tower", "image")
JPEG_QUALITY = 75
EDGE = 32
# Colour conversion, cosine transform, histograms and differences: all image statistics together, roughly.
OPERATIONS_PER_PIXEL = 100


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Of one image: scale -> float16 `[num_tokens, hidden]`, and statistic -> value."""

    visual: dict[int, np.ndarray]
    statistics: dict[str, float]

    def is_finite(self) -> bool:
        """False where an activation overflowed."""
        arrays = [*self.visual.values(), np.array(list(self.statistics.values()))]
        return all(bool(np.isfinite(array).all()) for array in arrays)


def compute_features(
    backbone: Backbone, encoded: EncodedImage, scales: Iterable[int], groups: Collection[str] = GROUPS
) -> ImageFeatures:
    """The features of an encoded image: visual tokens at `scales`, and these groups of statistics."""
    visual = {scale: backbone.visual_tokens(encoded, scale).half().cpu().numpy() for scale in scales}
    statistics: dict[str, float] = {}
    if "tower" in groups:
        statistics |= describe_tokens(encoded.tokens, backbone.ladder)
    if "image" in groups:
        statistics |= describe_image(encoded.image)
    return ImageFeatures(visual, statistics)


@torch.no_grad()
def describe_tokens(tokens: Tensor, ladder: ScaleLadder) -> dict[str, float]:
    """The statistics `tower/...` of `[num_tiles, grid * grid, hidden]`."""
    tokens = tokens.float()
    tiles, num_tokens, hidden = tokens.shape
    mean = tokens.mean(dim=(0, 1))
    variance = (tokens - mean).square().sum(-1).mean()
    found: dict[str, Tensor] = {}
    for scale in ladder.scales[:-1]:
        kept = (pool(tokens, scale) - mean).square().sum(-1).mean()
        # Tokens that are all alike lose nothing.
        found[f"variance_kept_{scale}"] = kept / variance if variance > 0 else torch.ones(())
    norm = tokens.norm(dim=-1)
    found |= {"norm_mean": norm.mean(), "norm_std": norm.std(correction=0), "norm_max": norm.max()}
    side = isqrt(num_tokens)
    grid = torch.nn.functional.normalize(tokens, dim=-1).reshape(tiles, side, side, hidden)
    across, down = (grid[:, :, 1:] * grid[:, :, :-1]).sum(-1), (grid[:, 1:] * grid[:, :-1]).sum(-1)
    cosines = torch.cat([across.flatten(), down.flatten()])
    found["neighbour_cosine"] = cosines.mean() if len(cosines) else torch.ones(())
    return {f"tower/{name}": float(value) for name, value in found.items()}


def describe_image(image: Image.Image) -> dict[str, float]:
    """The statistics `image/...` of a picture."""
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
    found = {
        "width": image.width,
        "height": image.height,
        "jpeg_bytes": file.tell() / (image.width * image.height),
        "entropy": gray.entropy(),
        "edge_density": edges.mean(),
        "colorfulness": np.hypot(*spread) + 0.3 * np.hypot(*shift),
    }
    return {f"image/{name}": float(value) for name, value in found.items()}


def count_tower_operations(num_tokens: float, hidden_size: int, num_scales: int) -> float:
    """Floating-point operations of the tower statistics of an image with this many finest tokens.

    Per number: three for the variance, one and a half per coarser scale (a sum, and three for each of at most
    a sixth of the numbers), two for norms, one to normalise and four for the two neighbours.
    """
    return num_tokens * hidden_size * (10 + 1.5 * (num_scales - 1))


def stack_statistics(images: Sequence[ImageFeatures]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, and values float32 `[num_images, num_statistics]`; ValueError where images have other names."""
    names = tuple(images[0].statistics)
    if any(tuple(image.statistics) != names for image in images):
        raise ValueError("the images have different statistics: label all of them again")
    values = [list(image.statistics.values()) for image in images]
    return names, np.array(values, dtype=np.float32).reshape(len(images), len(names))
