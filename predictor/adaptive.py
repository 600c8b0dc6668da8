"""The predictor in front of the backbone: each question answered at the scale it deserves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Answer, Backbone, EncodedImage
from m3_backbone.features import compute_features, stack_statistics
from m3_backbone.labels import Inputs, stack_visual
from predictor import adaptive_folder as folders
from predictor.base import ScalePredictor
from predictor.features import Features
from predictor.policy import choose
from predictor.pricing import OperatingPoint, PriceList


@dataclass(frozen=True)
class Choice:
    """A scale chosen before answering, and what the choice rests on: estimates and costs, one per scale."""

    scale: int
    scales: tuple[int, ...]
    estimates: tuple[float, ...]
    visual_tokens: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Visual tokens of the answer."""
        return self.visual_tokens[self.scales.index(self.scale)]


@dataclass(frozen=True)
class AdaptiveAnswer:
    """An answer with the choice of its scale."""

    answer: Answer
    choice: Choice

    @property
    def text(self) -> str:
        return self.answer.text


class AdaptiveM3(ModelHubMixin):
    """A frozen backbone that answers each question at the scale which `predictor` chooses.

    `prices` hold the operating points: one by default, many by price or budget, others by name (`risk`). One
    vision pass serves predictor and decoder. Raises ValueError when the predictor was trained for another
    backbone.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub: weights in
    safetensors, all else in JSON, a model card; no code is loaded that is not installed, nothing unpickled,
    and the fingerprints of the backbone are compared again.
    """

    def __init__(self, backbone: Backbone, predictor: ScalePredictor, prices: PriceList) -> None:
        predictor.check_backbone(backbone.fingerprints)
        self.backbone, self.predictor, self.prices = backbone, predictor, prices
        self._token_embeddings: Tensor | None = None

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        task: str = "",
    ) -> list[AdaptiveAnswer]:
        """One answer per (image, question), each at its own scale; those of one scale are answered together.

        An image object that stands in the list several times is encoded once. `price`, `budget` and `point`
        are those of `PriceList.find`; `task` matters to predictors that know tasks by name.
        """
        if len(images) != len(questions):
            raise ValueError(
                f"{len(images)} images and {len(questions)} questions: give an image to every question"
            )
        return self.answer_at(
            images, questions, self.prices.find(price=price, budget=budget, name=point), task
        )

    def answer_at(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        point: OperatingPoint,
        task: str = "",
    ) -> list[AdaptiveAnswer]:
        """The same at any operating point."""
        distinct = {id(image): image for image in images}
        encoded_of = dict(zip(distinct, self.backbone.encode(list(distinct.values())), strict=True))
        encoded = [encoded_of[id(image)] for image in images]
        choices = self.choose(encoded, questions, point, task)
        answers: dict[int, Answer] = {}
        for scale in self.backbone.ladder:
            rows = [row for row, choice in enumerate(choices) if choice.scale == scale]
            if rows:
                found = self.backbone.answer([encoded[i] for i in rows], [questions[i] for i in rows], scale)
                answers.update(zip(rows, found, strict=True))
        return [AdaptiveAnswer(answers[row], choice) for row, choice in enumerate(choices)]

    def choose(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        point: OperatingPoint | None = None,
        task: str = "",
    ) -> list[Choice]:
        """The choice for each (encoded image, question), without answering; at the default point if none."""
        if not questions:
            return []
        point = point or self.prices.default
        if self._token_embeddings is None:
            self._token_embeddings = self.backbone.token_embeddings().detach().cpu()
        inputs = make_inputs(
            self.backbone,
            encoded,
            questions,
            self.predictor.features,
            task=task,
            token_embeddings=self._token_embeddings,
        )
        estimates = self.predictor.predict(inputs)
        columns = choose(estimates, inputs.visual_tokens, point.price, unit=point.unit)
        return [
            Choice(inputs.scales[column], inputs.scales, tuple(row.tolist()), tuple(cost.tolist()))
            for column, row, cost in zip(columns, estimates, inputs.visual_tokens, strict=True)
        ]

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What it is made of, how it is used, and what its operating points cost and score."""
        return folders.write_card(self.backbone, self.predictor, self.prices)

    def _save_pretrained(self, save_directory: Path) -> None:
        folders.save(save_directory, self.backbone, self.predictor, self.prices)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        backbone: Backbone | None = None,
        device: str | None = None,
        trust: Sequence[str] = (),
        **download: Any,
    ) -> "AdaptiveM3":
        """From a folder or a hub id.

        `backbone` is one that is open already; `device` is where one that is opened goes. `trust` names
        packages beside `predictor` and `m3_backbone` whose classes a saved predictor may be built from.
        """
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, **download))
        predictor, prices = folders.load_predictor(folder, trust)
        return cls(folders.open_backbone(folder, backbone, device), predictor, prices)


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
