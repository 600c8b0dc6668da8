"""The predictor in front of the backbone: each question answered at the scale it deserves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Answer, Backbone, EncodedImage
from m3_backbone.features import compute_features, stack_statistics
from m3_backbone.labels import Inputs, stack_visual
from predictor.base import ScalePredictor
from predictor.features import Features
from predictor.policy import choose
from predictor.pricing import OperatingPoint


@dataclass(frozen=True)
class Choice:
    """A scale chosen before answering, and what the choice rests on: estimates and costs, one per scale."""

    scale: int
    scales: tuple[int, ...]
    estimates: tuple[float, ...]
    visual_tokens: tuple[int, ...]


class AdaptiveBackbone:
    """A frozen backbone that answers each question at the scale which `predictor` chooses.

    `point` says at what price. One vision pass serves predictor and decoder. Raises ValueError when the
    predictor was trained for another backbone.
    """

    def __init__(self, backbone: Backbone, predictor: ScalePredictor, point: OperatingPoint) -> None:
        predictor.check_backbone(backbone.fingerprints)
        self.backbone, self.predictor, self.point = backbone, predictor, point
        self._token_embeddings = backbone.token_embeddings().detach().cpu()

    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], task: str = ""
    ) -> tuple[list[Answer], list[Choice]]:
        """Answers and choices, one each per (image, question).

        An image object that stands in the list several times is encoded once. `task` matters to predictors
        that know tasks by name.
        """
        distinct = {id(image): image for image in images}
        encoded_of = dict(zip(distinct, self.backbone.encode(list(distinct.values())), strict=True))
        encoded = [encoded_of[id(image)] for image in images]
        choices = self.choose(encoded, questions, task)
        answers: dict[int, Answer] = {}
        for scale in self.backbone.ladder:
            rows = [row for row, choice in enumerate(choices) if choice.scale == scale]
            if rows:
                found = self.backbone.answer([encoded[i] for i in rows], [questions[i] for i in rows], scale)
                answers.update(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(choices))], choices

    def choose(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], task: str = ""
    ) -> list[Choice]:
        """The choice for each (encoded image, question), without answering."""
        inputs = make_inputs(
            self.backbone,
            encoded,
            questions,
            self.predictor.features,
            task=task,
            token_embeddings=self._token_embeddings,
        )
        estimates = self.predictor.predict(inputs)
        columns = choose(estimates, inputs.visual_tokens, self.point.price, unit=self.point.unit)
        return [
            Choice(inputs.scales[column], inputs.scales, tuple(row.tolist()), tuple(cost.tolist()))
            for column, row, cost in zip(columns, estimates, inputs.visual_tokens, strict=True)
        ]


def make_inputs(
    backbone: Backbone,
    encoded: Sequence[EncodedImage],
    questions: Sequence[str],
    features: Features,
    *,
    task: str = "",
    token_embeddings: Tensor,
) -> Inputs:
    """What a predictor sees of each (encoded image, question), just as labelling stores it.

    Of an image only what `features` name is computed.
    """
    distinct = list({id(image): image for image in encoded}.values())
    row_of = {id(image): row for row, image in enumerate(distinct)}
    image_row = np.array([row_of[id(image)] for image in encoded], dtype=np.int64)
    images = [compute_features(backbone, image, features.scales, features.groups) for image in distinct]
    names, statistics = stack_statistics(images)
    scales = tuple(backbone.ladder)
    cost = [[backbone.num_visual_tokens(image.size, scale) for scale in scales] for image in distinct]
    return Inputs(
        scales=scales,
        question=list(questions),
        task=np.full(len(questions), task, dtype=object),
        question_ids=[np.array(backbone.question_ids(question), dtype=np.int32) for question in questions],
        image_row=image_row,
        visual=stack_visual(images),
        statistics=statistics,
        statistic_names=names,
        token_embeddings=token_embeddings,
        visual_tokens=np.array(cost, dtype=np.int32)[image_row],
    )
