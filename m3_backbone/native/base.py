"""Base class of published vision-language models that take another resolution for every scale."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.images import shrink_and_enlarge
from m3_backbone.lazy_vision import LazyVision
from m3_backbone.native.checkpoint import ModelFamily, NativeCheckpoint
from m3_backbone.views import Panel


class NativeBackbone(LazyVision):
    """Backbone of a published vision-language model that encodes an image at the resolution of a scale.

    A scale is a cap on the number of visual tokens.

    A subclass names the classes of transformers in `families`, and implements the abstract methods.

    Args:
        checkpoint: folder or hub id.
        scales: ladder of caps, ascending; by default that of the family.
        quantization: settings of a quantisation method, as `quantization_config` of transformers takes them.
        downsampling: `enlarged`: an image is first shrunk to as many patches of pixels as it has visual
            tokens at the scale, and enlarged to its former size again. Costs stay the same, and only the
            pixels have lost information. None: it is encoded as it is.
        arguments: those of `ModelBackbone`.
    """

    families: ClassVar[Mapping[str, ModelFamily]]

    @checked
    def __init__(
        self,
        checkpoint: str | Path | NativeCheckpoint,
        *,
        scales: Sequence[PositiveInt] | None = None,
        quantization: Mapping[str, Any] | None = None,
        downsampling: Literal["enlarged"] | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(checkpoint, NativeCheckpoint):
            checkpoint = NativeCheckpoint.open(checkpoint, self.families)
        super().__init__(checkpoint, **arguments)
        self.checkpoint: NativeCheckpoint
        self.quantization = None if quantization is None else dict(quantization)
        self.downsampling = downsampling
        if downsampling is not None:
            self.family = "native"  # the thumbnail differs between scales
        ladder = self._default_scales() if scales is None else scales
        if not ladder:
            raise ValueError("scales=[]: give positive numbers of visual tokens")
        self._check_scales(ladder)
        self._scales = tuple(sorted(set(ladder)))

    @abstractmethod
    def _default_scales(self) -> Sequence[int]:
        """Ladder of the family."""

    def _check_scales(self, scales: Sequence[int]) -> None:
        """Raise ValueError for scales that the model does not have; by default, it has any."""

    @property
    def scales(self) -> tuple[int, ...]:
        return self._scales

    def saved_arguments(self) -> dict[str, Any]:
        arguments = {**super().saved_arguments(), "scales": list(self._scales), **self._downsampling_setting}
        return arguments if self.quantization is None else {**arguments, "quantization": self.quantization}

    def _describe_decoding(self) -> dict[str, Any]:
        quantization = {} if self.quantization is None else {"quantization": self.quantization}
        settings = {"images": self._describe_images(), **quantization, **self._downsampling_setting}
        return {**super()._describe_decoding(), **settings}

    @property
    def _downsampling_setting(self) -> dict[str, str]:
        return {} if self.downsampling is None else {"downsampling": self.downsampling}

    def prepare_image(self, image: Image.Image, scale: int) -> Image.Image:
        image = super().prepare_image(image, scale)
        if self.downsampling is None:
            return image
        return shrink_and_enlarge(image, self.num_visual_tokens(image.size, scale) * self._patch_size**2)

    @property
    def _patch_size(self) -> int:
        """Side of a patch of the vision transformer in pixels."""
        return int(self.checkpoint.config.vision_config.patch_size)

    def _describe_images(self) -> dict[str, Any]:
        """Settings of the image processor, which determine the pixels that the model sees."""
        return self.checkpoint.image_processor.to_dict()

    def _load_model(self) -> Any:
        return self.checkpoint.load_model(
            dtype=self.dtype,
            device_map=self.device_map,
            attn_implementation=self.attn_implementation,
            quantization=self.quantization,
        )

    @abstractmethod
    def preprocess(self, images: Sequence[Image.Image], scale: int) -> dict[str, Tensor]:
        """Pixels and further inputs of the vision pass for a batch of RGB images at one scale."""

    def processor_arguments(self, image_size: tuple[int, int], scale: int) -> dict[str, Any]:
        """Arguments of the image processor that give an image of (width, height) pixels a scale's tokens.

        They have the names by which inference engines take them, and are JSON types. Raises ValueError for a
        class that does not name them, which is the default.
        """
        raise ValueError(f"a {type(self).__name__} does not name the arguments of its image processor")

    def resized_size(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(width, height) that the image processor gives an image at a scale.

        A processor that neither enlarges nor shrinks the resized image gives it the tokens of the scale.
        Raises ValueError for a model that resizes all images to sizes of its own, which is the default.
        """
        raise ValueError(
            f"{self.name} has as many visual tokens for a small image as for a large one: set the scale with "
            "arguments of the image processor"
        )

    def view_resized(self, image: Image.Image, grid: tuple[int, int], token_side: int) -> tuple[Panel, ...]:
        """Return an RGB image resized to `grid` (rows, columns) of squares of `token_side` pixels.

        The pixels are those of the image processor.
        """
        rows, columns = grid
        size = (columns * token_side, rows * token_side)
        return (Panel(image.resize(size, self.checkpoint.image_processor.resample), grid),)

    def placeholder_ids(self, image_size: tuple[int, int], scale: int) -> list[int]:
        """Token ids of an image in the prompt, with a placeholder for each visual token."""
        return [self.checkpoint.config.image_token_id] * self.num_visual_tokens(image_size, scale)

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        images = [self.prepare_image(image, scale) for image in images]
        rows = [
            [*self.system_ids, *self.placeholder_ids(image.size, scale), *self._suffix_ids(question)]
            for image, question in zip(images, questions, strict=True)
        ]
        longest = max(map(len, rows))
        pad = self.processor.end_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        prompt = {"input_ids": ids, "attention_mask": mask, **self._mark_visual(ids)}
        return {**prompt, **self.preprocess(images, scale)}

    def _mark_visual(self, ids: Tensor) -> dict[str, Tensor]:
        """Argument of the model that marks the placeholders among token ids, if it takes one."""
        return {"mm_token_type_ids": (ids == self.checkpoint.config.image_token_id).long()}
