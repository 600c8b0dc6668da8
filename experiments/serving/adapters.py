"""Forms in which inference engines take the scale of an image.

The forms are those of the documentation ("Multimodal inputs" of both) and the source of vLLM 0.33
(`ChatCompletionRequest.mm_processor_kwargs`, `ImageEmbeddingMediaIO`) and of LMDeploy 0.16 to 0.18
(`get_override_size`).
"""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from PIL import Image

from experiments.serving.limits import encode_data_url
from m3_backbone.arguments import checked
from m3_backbone.backbone import EncodedImage
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.native.base import NativeBackbone

# Size with which backbones are checked when the server starts.
_EXAMPLE = (640, 480)


@dataclass(frozen=True)
class Adapted:
    """What a request with an image at a scale has in place of the image, and beside it.

    `part` replaces the image part of the message; None: the part stays as it is. `arguments` go into
    `mm_processor_kwargs` of the request.
    """

    part: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """Writes the scale of an image into a request, in the form of one engine.

    `encodes` says whether the vision tower runs in this process; predictors may then read its features.
    `reads_pixels` says whether an image has to be decoded; otherwise only its size is read.
    """

    encodes: ClassVar[bool] = False
    reads_pixels: ClassVar[bool] = True

    def check_backbone(self, backbone: ModelBackbone) -> None:
        """Raise ValueError if scales of the backbone cannot be written in this form."""
        self.adapt(backbone, Image.new("RGB", _EXAMPLE), backbone.scales[0])

    @abstractmethod
    def adapt(self, backbone: ModelBackbone, image: Any, scale: int) -> Adapted:
        """Return the request's parts for an RGB image, or with `encodes` for an encoded one, at a scale."""


class ImageArguments(Adapter):
    """Arguments of the image processor, flat in `mm_processor_kwargs`, as vLLM takes them."""

    reads_pixels: ClassVar[bool] = False

    def adapt(self, backbone: ModelBackbone, image: Image.Image, scale: int) -> Adapted:
        native = _as_native(backbone, "arguments of an image processor")
        return Adapted(arguments=native.processor_arguments(image.size, scale))


class ImageArgumentsByModality(ImageArguments):
    """`min_pixels` and `max_pixels` below `image` in `mm_processor_kwargs`, as LMDeploy takes them."""

    def adapt(self, backbone: ModelBackbone, image: Image.Image, scale: int) -> Adapted:
        arguments = super().adapt(backbone, image, scale).arguments
        if arguments.keys() != {"min_pixels", "max_pixels"}:
            raise ValueError(
                f"LMDeploy takes min_pixels and max_pixels only, and {backbone.name} needs "
                f"{', '.join(arguments)}: give adapter=vllm"
            )
        return Adapted(arguments={"image": arguments})


class ResizedImage(Adapter):
    """A smaller image for any engine: as PNG, or as JPEG of a quality from 1 to 100.

    The engine's own limits must leave the image as it is: the smallest area that it allows is at most that of
    the coarsest scale, the largest at least that of the finest. A PNG has exactly the pixels from which the
    labels were made; a JPEG is written in a tenth of the time.
    """

    @checked
    def __init__(self, jpeg_quality: Annotated[int, Ge(1), Le(100)] | None = None) -> None:
        self.jpeg_quality = jpeg_quality

    def adapt(self, backbone: ModelBackbone, image: Image.Image, scale: int) -> Adapted:
        size = _as_native(backbone, "sizes of images").resized_size(image.size, scale)
        resized = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        if self.jpeg_quality is None:
            resized.save(file, "PNG", compress_level=1)
        else:
            resized.save(file, "JPEG", quality=self.jpeg_quality, subsampling=0)
        url = encode_data_url(file.getvalue())
        return Adapted({"type": "image_url", "image_url": {"url": url}})


class ImageEmbeddings(Adapter):
    """Visual tokens of M3 as `image_embeds` of vLLM: the rows of the tensor are the scale.

    The tensor `[1, num_tokens, hidden]` is written by `torch.save`, in the dtype of the backbone.
    """

    encodes: ClassVar[bool] = True

    def check_backbone(self, backbone: ModelBackbone) -> None:
        if not isinstance(backbone, LlavaBackbone):
            raise ValueError(
                f"{backbone.name} is no M3 checkpoint, whose visual tokens vLLM takes as embeddings: give "
                "adapter=vllm"
            )
        if backbone.processor.images.tiling is not None:
            raise ValueError(
                f"{backbone.name} has tiles, whose embeddings vLLM takes in another form: use a checkpoint "
                "with one grid of patches per image"
            )

    def adapt(self, backbone: ModelBackbone, image: EncodedImage, scale: int) -> Adapted:
        (tokens,) = backbone.visual_tokens([image], scale)
        file = io.BytesIO()
        # A copy: the storage of a view would be saved whole.
        torch.save(tokens.detach().cpu()[None].contiguous().clone(), file)
        encoded = base64.b64encode(file.getvalue()).decode()
        return Adapted({"type": "image_embeds", "image_embeds": encoded})


def _as_native(backbone: ModelBackbone, form: str) -> NativeBackbone:
    if not isinstance(backbone, NativeBackbone):
        raise ValueError(
            f"the scales of {backbone.name} are not set by {form}: give adapter=image_embeds, for M3 on vLLM"
        )
    if backbone.downsampling is not None:
        raise ValueError(
            f"{backbone.name} shrinks images itself, an engine does not: leave out backbone.downsampling"
        )
    return backbone
