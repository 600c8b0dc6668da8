"""Base class of backbones that encode an image at another resolution for every scale."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.features import GROUPS, ImageFeatures, describe_image, describe_norms
from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family, coinciding_scales
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.native.checkpoint import ModelFamily, NativeCheckpoint


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


class NativeBackbone(ModelBackbone):
    """Backbone of a published vision-language model that encodes an image at the resolution of a scale.

    A scale is a cap on the number of visual tokens. The vision pass of a scale runs when the scale is first
    needed, for all images of a call together, and serves all questions about the image at that scale.

    A subclass names the classes of transformers in `families`, and implements the abstract methods.

    Args:
        checkpoint: folder or hub id.
        scales: ladder of caps, ascending; by default that of the family.
        quantization: settings of a quantisation method, as `quantization_config` of transformers takes them.
        name, dtype, device, device_map, attn_implementation, max_new_tokens, batch_size, image_batch_size,
            batch_tokens: as in `ModelBackbone`.
    """

    family: Family = "native"
    families: ClassVar[Mapping[str, ModelFamily]]

    @checked
    def __init__(
        self,
        checkpoint: str | Path | NativeCheckpoint,
        *,
        scales: Sequence[PositiveInt] | None = None,
        quantization: Mapping[str, Any] | None = None,
        name: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        max_new_tokens: PositiveInt = 64,
        batch_size: PositiveInt = 16,
        image_batch_size: PositiveInt = 4,
        batch_tokens: PositiveInt | None = None,
    ) -> None:
        if not isinstance(checkpoint, NativeCheckpoint):
            checkpoint = NativeCheckpoint.open(checkpoint, self.families)
        super().__init__(
            checkpoint,
            name=name,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            image_batch_size=image_batch_size,
            batch_tokens=batch_tokens,
        )
        self.checkpoint: NativeCheckpoint
        self.quantization = None if quantization is None else dict(quantization)
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

    @property
    def feature_scales(self) -> tuple[int, ...]:
        return self._scales[:1]

    def saved_arguments(self) -> dict[str, Any]:
        arguments = {**super().saved_arguments(), "scales": list(self._scales)}
        return arguments if self.quantization is None else {**arguments, "quantization": self.quantization}

    def _describe_decoding(self) -> dict[str, Any]:
        quantization = {} if self.quantization is None else {"quantization": self.quantization}
        return {**super()._describe_decoding(), "images": self._describe_images(), **quantization}

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

    def placeholder_ids(self, image_size: tuple[int, int], scale: int) -> list[int]:
        """Token ids of an image in the prompt, with a placeholder for each visual token."""
        return [self.checkpoint.config.image_token_id] * self.num_visual_tokens(image_size, scale)

    def generate_inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], scale: int
    ) -> dict[str, Any]:
        images = [to_rgb(image) for image in images]
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

    @abstractmethod
    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        """Vision pass of a batch of RGB images at one scale."""

    def encode(self, images: Sequence[Image.Image]) -> list[LazyImage]:
        encoded = []
        for image in map(to_rgb, images):
            self.check_image(image.size)
            encoded.append(LazyImage(image, coinciding_scales(self, image.size)))
        return encoded

    def visual_prefixes(self, encoded: Sequence[LazyImage], scale: int) -> list[VisualPrefix]:
        check_scale(scale, self.scales)
        self.encode_at(encoded, scale)
        return [image.prefixes[image.coarsest[scale]] for image in encoded]

    @torch.no_grad()
    def encode_at(self, encoded: Sequence[LazyImage], scale: int) -> None:
        missing = list({id(image): image for image in encoded}.values())
        missing = [image for image in missing if image.coarsest[scale] not in image.prefixes]
        prefixes = self.encode_in_batches(
            lambda batch: self.run_vision([image.image for image in batch], scale), missing, scale
        )
        for image, prefix in zip(missing, prefixes, strict=True):
            expected = self.num_prefix_tokens(image.size, scale)
            if len(prefix) != expected:
                raise ValueError(
                    f"an image of {image.size[0]}x{image.size[1]} pixels has {len(prefix)} tokens at scale "
                    f"{scale}, not {expected}: was the checkpoint's image processor changed?"
                )
            image.prefixes[image.coarsest[scale]] = prefix

    def visual_tokens(self, encoded: Sequence[LazyImage], scale: int) -> list[Tensor]:
        """Visual tokens of each image that enter the decoder at a scale, `[num_tokens, hidden]`."""
        return [prefix.embeds for prefix in self.visual_prefixes(encoded, scale)]

    def compute_features(  # type: ignore[override]
        self, encoded: Sequence[LazyImage], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        """Features of each image; the statistics `tower/...` describe the tokens of the coarsest scale."""
        tokens_at = {scale: self.visual_tokens(encoded, scale) for scale in scales}
        coarsest = self.visual_tokens(encoded, self.scales[0]) if "tower" in groups else []
        features = []
        for number, image in enumerate(encoded):
            visual = {scale: tokens[number].half().cpu().numpy() for scale, tokens in tokens_at.items()}
            statistics = describe_norms(coarsest[number]) if coarsest else {}
            if "image" in groups:
                statistics |= describe_image(image.image)
            features.append(ImageFeatures(visual, statistics))
        return features
