"""The predictor in front of the backbone: each question answered at the scale it deserves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Answer, Backbone, EncodedImage
from m3_backbone.labels import Inputs
from predictor import adaptive_folder as folders
from predictor.adaptive_inputs import make_inputs
from predictor.base import ScalePredictor
from predictor.choices import Choice, list_choices
from predictor.hybrid import Hybrid
from predictor.policy import Floats, choose
from predictor.pricing import OperatingPoint, PriceList


@dataclass(frozen=True)
class AdaptiveAnswer:
    """An answer with the choice of its scale.

    `tried` are the scales that were answered at, the last of which stands: the chosen one alone, unless the
    hybrid went on from there.
    """

    answer: Answer
    choice: Choice
    tried: tuple[int, ...]

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def scale(self) -> int:
        """That of the answer."""
        return self.tried[-1]

    @property
    def cost(self) -> int:
        """Visual tokens of all scales tried."""
        return sum(self.choice.visual_tokens[self.choice.scales.index(scale)] for scale in self.tried)


class AdaptiveM3(ModelHubMixin):
    """A frozen backbone that answers each question at the scale which `predictor` chooses.

    `prices` hold the operating points: one by default, many by price or budget, others by name (`risk`). One
    vision pass serves predictor and decoder. With a `hybrid` (`predictor.hybrid`) it may also look at its
    answers and go on to finer scales. Raises ValueError when the predictor was trained, or the hybrid fitted,
    for another backbone.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub: weights in
    safetensors, all else in JSON, a model card; no code is loaded that is not installed, nothing unpickled,
    and the fingerprints of the backbone are compared again.
    """

    def __init__(
        self,
        backbone: Backbone,
        predictor: ScalePredictor,
        prices: PriceList,
        hybrid: Hybrid | None = None,
    ) -> None:
        predictor.check_backbone(backbone.fingerprints)
        if hybrid is not None and hybrid.num_scales != len(backbone.ladder):
            raise ValueError(
                f"the hybrid was fitted on {hybrid.num_scales} scales, and {backbone.name} has "
                f"{len(backbone.ladder)}: train the predictor again"
            )
        self.backbone, self.predictor, self.prices, self.hybrid = backbone, predictor, prices, hybrid
        self._token_embeddings: Tensor | None = None

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        climb: bool = False,
        task: str = "",
    ) -> list[AdaptiveAnswer]:
        """One answer per (image, question), each at its own scale; those of one scale are answered together.

        An image object that stands in the list several times is encoded once. `price`, `budget` and `point`
        are those of `PriceList.find`. With `climb` the hybrid answers, which goes on to the next finer scale
        while its answer leaves enough to be gained; `price` and `budget` are then those of `Hybrid.find`, and
        there are no named points. `task` matters to predictors that know tasks by name.
        """
        if len(images) != len(questions):
            raise ValueError(
                f"{len(images)} images and {len(questions)} questions: give an image to every question"
            )
        if climb:
            hybrid = self.find_hybrid(price=price, budget=budget, point=point)
            return self.climb(self.encode(images), questions, hybrid, task)
        found = self.prices.find(price=price, budget=budget, name=point)
        return self.answer_at(self.encode(images), questions, found, task)

    def find_hybrid(
        self, *, price: float | None = None, budget: float | None = None, point: str | None = None
    ) -> Hybrid:
        """That of a price or a budget, as in `Hybrid.find`. ValueError where there is none, or for a named
        point, which is the predictor's alone.
        """
        if self.hybrid is None:
            raise ValueError("no hybrid was saved with this predictor: train it again, or leave climb out")
        if point not in (None, "default"):
            raise ValueError(
                f"{point!r} is a point of the predictor alone: give a price or a budget to climb"
            )
        return self.hybrid.at(self.hybrid.find(price=price, budget=budget))

    def answer_at(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        point: OperatingPoint,
        task: str = "",
    ) -> list[AdaptiveAnswer]:
        """The same of encoded images, at any operating point of the predictor."""
        choices = self.choose(encoded, questions, point, task)
        answers = self._answer(encoded, questions, {row: each.scale for row, each in enumerate(choices)})
        return [AdaptiveAnswer(answers[row], each, (each.scale,)) for row, each in enumerate(choices)]

    def climb(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], hybrid: Hybrid, task: str = ""
    ) -> list[AdaptiveAnswer]:
        """The same by a hybrid of one price, as `find_hybrid` gives."""
        assert len(hybrid.price) == 1, "pick one: Hybrid.at"
        if not questions:
            return []
        estimates, inputs = self._estimate(encoded, questions, task)
        # Where there is no answer yet the confidence is nan, and nothing goes on from there.
        confidence = np.full(estimates.shape, np.nan)
        tried: list[list[int]] = [[] for _ in questions]
        answers: dict[int, Answer] = {}
        while True:
            (first,), (last,) = hybrid.climb(confidence, inputs.visual_tokens, estimates)
            wanted = {row: inputs.scales[column] for row, column in enumerate(last)}
            wanted = {row: scale for row, scale in wanted.items() if scale not in tried[row]}
            if not wanted:
                break
            for row, answer in self._answer(encoded, questions, wanted).items():
                confidence[row, last[row]] = answer.confidence
                tried[row].append(wanted[row])
                answers[row] = answer
        choices = list_choices(first, estimates, inputs)
        return [AdaptiveAnswer(answers[row], each, tuple(tried[row])) for row, each in enumerate(choices)]

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """As the backbone does; an image object that stands in the list several times once."""
        distinct = {id(image): image for image in images}
        encoded_of = dict(zip(distinct, self.backbone.encode(list(distinct.values())), strict=True))
        return [encoded_of[id(image)] for image in images]

    def _answer(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], scale_of: Mapping[int, int]
    ) -> dict[int, Answer]:
        """Answers of the given rows, each at its scale."""
        answers: dict[int, Answer] = {}
        for scale in self.backbone.ladder:
            rows = [row for row, wanted in scale_of.items() if wanted == scale]
            if rows:
                found = self.backbone.answer([encoded[i] for i in rows], [questions[i] for i in rows], scale)
                answers.update(zip(rows, found, strict=True))
        return answers

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
        estimates, inputs = self._estimate(encoded, questions, task)
        columns = choose(estimates, inputs.visual_tokens, point.price, unit=point.unit)
        return list_choices(columns, estimates, inputs)

    def _estimate(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], task: str
    ) -> tuple[Floats, Inputs]:
        """Estimates `[num_questions, num_scales]`, and what they were made from."""
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
        return self.predictor.predict(inputs), inputs

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What it is made of, how it is used, and what its operating points cost and score."""
        return folders.write_card(self.backbone, self.predictor, self.prices, self.hybrid)

    def _save_pretrained(self, save_directory: Path) -> None:
        folders.save(save_directory, self.backbone, self.predictor, self.prices, self.hybrid)

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
        predictor, prices, hybrid = folders.load_predictor(folder, trust)
        return cls(folders.open_backbone(folder, backbone, device), predictor, prices, hybrid)
