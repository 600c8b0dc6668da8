"""Choice of scales without the weights of the backbone, for a backbone that runs in another process."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from m3_backbone.features import ImageFeatures, describe_image, make_thumbnail, stack_statistics
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.outcomes.labels import Inputs, TokenEmbeddings, stack_thumbnails
from predictor.adaptive.inputs import Choice, choose_scales
from predictor.base import ScalePredictor
from predictor.policy.pricing import OperatingPoint, PriceList


class SizedImage(Protocol):
    """An image of which only the size is known."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        ...


class ScaleChooser:
    """Chooses scales from question and pixels; it runs no model and loads no weights of the backbone.

    `backbone` only says which scales there are and how many visual tokens an image has at each. The choices
    equal those of `AdaptiveVLM.choose`. Raises ValueError for a predictor that was trained on another
    backbone or that needs weights of the backbone (`ScalePredictor.reads_backbone`).
    """

    def __init__(self, backbone: ModelBackbone, predictor: ScalePredictor, prices: PriceList) -> None:
        predictor.check_backbone(backbone.fingerprints)
        if predictor.reads_backbone:
            raise ValueError(
                f"predictor {predictor.name} reads features of the backbone (visual tokens, tower statistics "
                "or token embeddings), which stay in the engine: train one that reads the text of the "
                "question and the pixels only, such as predictor=thumbnail or predictor=question_only"
            )
        self.backbone, self.predictor, self.prices = backbone, predictor, prices

    def choose(
        self,
        images: Sequence[Image.Image | SizedImage],
        questions: Sequence[str],
        point: OperatingPoint | None = None,
        task: str = "",
    ) -> list[Choice]:
        """Choose a scale for questions[i] about the RGB image images[i]; default point: `prices.default`.

        For a predictor that reads no pixels (`ScalePredictor.reads_pixels`), the sizes of images are enough.
        Raises ValueError for an image that the backbone cannot encode.
        """
        if not questions:
            return []
        for image in images:
            self.backbone.check_image(image.size)
        inputs = self._make_inputs(images, questions, task)
        estimates = self.predictor.predict(inputs)
        return choose_scales(estimates, inputs, point or self.prices.default, self.predictor.features)

    def _make_inputs(
        self, images: Sequence[Image.Image | SizedImage], questions: Sequence[str], task: str
    ) -> Inputs:
        """Return the inputs of each (image, question), without visual tokens and token embeddings."""
        features = [self._describe(image) for image in images]
        names, statistics = stack_statistics(features)
        scales = self.backbone.scales
        cost = [[self.backbone.num_visual_tokens(image.size, scale) for scale in scales] for image in images]
        return Inputs(
            scales=scales,
            question=list(questions),
            task=np.full(len(questions), task, dtype=object),
            question_ids=[np.zeros(0, dtype=np.int32)] * len(questions),
            image_row=np.arange(len(images), dtype=np.int64),
            visual={},
            statistics=statistics,
            statistic_names=names,
            # Networks take a row for words that they do not read.
            token_embeddings=TokenEmbeddings.hold(torch.zeros(1, self.backbone.hidden_size)),
            visual_tokens=np.array(cost, dtype=np.int32),
            family=self.backbone.family,
            thumbnails=stack_thumbnails(features),
        )

    def _describe(self, image: Any) -> ImageFeatures:
        """Return the features of an image that the predictor reads."""
        features = self.predictor.features
        thumbnail = None if features.thumbnail is None else make_thumbnail(image, features.thumbnail)
        if "image" not in features.groups:
            return ImageFeatures({}, {}, thumbnail)
        if features.reads_statistics:
            return ImageFeatures({}, describe_image(image), thumbnail)
        width, height = image.size
        return ImageFeatures({}, {"image/width": width, "image/height": height}, thumbnail)
