"""Base class of backbones that encode an image anew for every scale, when the scale is first needed."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.features import describe_norms
from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family, coinciding_scales
from m3_backbone.model_backbone import ModelBackbone


class LazyImage:
    """An image whose vision pass at a scale runs when that scale is first needed.

    `prefixes` are the results so far, by scale; scales that coincide share one under the coarsest of them.
    """

    def __init__(self, image: Image.Image, coarsest: Mapping[int, int]) -> None:
        self.image = image
        self.coarsest = coarsest
        self.prefixes: dict[int, VisualPrefix] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        return self.image.size


class LazyVision(ModelBackbone):
    """Backbone with a vision pass of its own for every scale.

    The pass of a scale runs when the scale is first needed, for all images of a call together, and serves all
    questions about the image at that scale.
    """

    family: Family = "native"

    @property
    def feature_scales(self) -> tuple[int, ...]:
        return self.scales[:1]

    @abstractmethod
    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        """Vision pass of a batch of RGB images at one scale."""

    def encode(self, images: Sequence[Image.Image]) -> list[LazyImage]:
        encoded = []
        for image in map(to_rgb, images):
            self.check_image(image.size)
            encoded.append(LazyImage(image, coinciding_scales(self, image.size)))
        return encoded

    @torch.no_grad()
    def encode_at(self, encoded: Sequence[Any], scale: int) -> None:
        check_scale(scale, self.scales)
        missing = list({id(image): image for image in encoded}.values())
        missing = [image for image in missing if image.coarsest[scale] not in image.prefixes]
        prefixes = self.encode_in_batches(lambda batch: self._encode_images(batch, scale), missing, scale)
        for image, prefix in zip(missing, prefixes, strict=True):
            expected = self.num_prefix_tokens(image.size, scale)
            if len(prefix) != expected:
                raise ValueError(
                    f"an image of {image.size[0]}x{image.size[1]} pixels has {len(prefix)} tokens at scale "
                    f"{scale}, not {expected}: was the checkpoint's image processor changed?"
                )
            image.prefixes[image.coarsest[scale]] = prefix

    def _encode_images(self, images: Sequence[LazyImage], scale: int) -> list[VisualPrefix]:
        """Tokens of images that are not encoded at the scale yet."""
        return self.run_vision([self.prepare_image(image.image, scale) for image in images], scale)

    def prepare_image(self, image: Image.Image, scale: int) -> Image.Image:
        """Return the RGB image that is preprocessed and encoded at a scale, downsampled if that is set."""
        return to_rgb(image)

    def visual_prefixes(self, encoded: Sequence[Any], scale: int) -> list[VisualPrefix]:
        self.encode_at(encoded, scale)
        return [image.prefixes[image.coarsest[scale]] for image in encoded]

    def visual_tokens(self, encoded: Sequence[Any], scale: int) -> list[Tensor]:
        return [prefix.embeds for prefix in self.visual_prefixes(encoded, scale)]

    def _describe_tower(self, image: Any) -> dict[str, float]:
        (tokens,) = self.visual_tokens([image], self.scales[0])
        return describe_norms(tokens)
