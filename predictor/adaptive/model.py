"""Adaptive model: a predictor chooses the scale at which the backbone answers each question."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Answer, Backbone, EncodedImage, PrefilledQuestions
from m3_backbone.decoding.decoding import Watch, renumber
from m3_backbone.ladder import find_coarsest
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.outcomes.labels import Inputs
from predictor.adaptive import folder as folders
from predictor.adaptive.inputs import Choice, Picture, choose_scales, list_choices, make_inputs, pair_up
from predictor.base import ScalePredictor
from predictor.cascades.hybrid import Hybrid
from predictor.policy.front import Floats
from predictor.policy.pricing import OperatingPoint, PriceList

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptiveAnswer:
    """An answer with the choice of its scale.

    `tried` are the scales at which the question was answered: the chosen scale and, with a hybrid, the scales
    of escalation. `answer` is the answer at the last one.
    """

    answer: Answer
    choice: Choice
    tried: tuple[int, ...]

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def scale(self) -> int:
        """Scale of the answer."""
        return self.tried[-1]

    @property
    def cost(self) -> int:
        """Visual tokens of all scales tried, and of the predictor."""
        tried = sum(self.choice.visual_tokens[self.choice.scales.index(scale)] for scale in self.tried)
        return tried + self.choice.prefilled_tokens


class AdaptiveVLM(ModelHubMixin):
    """A frozen backbone that answers each question at the scale that `predictor` chooses.

    `prices` are the operating points: the default one, others by price or budget, and named ones such as
    `guarantee`. The scale is chosen before the backbone encodes the image at a scale that the predictor does
    not read. With a `hybrid` (`predictor.cascades.hybrid`) it can also escalate to finer scales after an
    answer. Of scales that coincide on an image (`m3_backbone.ladder`), only the coarsest is used. Raises
    ValueError if predictor or hybrid belong to another backbone.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub. Weights are saved in
    safetensors, all other values in JSON and a model card. Loading runs only installed code, unpickles
    nothing, and checks the fingerprints of the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        predictor: ScalePredictor,
        prices: PriceList,
        hybrid: Hybrid | None = None,
    ) -> None:
        predictor.check_backbone(backbone.fingerprints)
        if hybrid is not None and hybrid.num_scales != len(backbone.scales):
            raise ValueError(
                f"the hybrid was fitted on {hybrid.num_scales} scales, but {backbone.name} has "
                f"{len(backbone.scales)}: train the predictor again"
            )
        self.backbone, self.predictor, self.prices, self.hybrid = backbone, predictor, prices, hybrid
        self._token_embeddings: Tensor | None = None

    @overload
    def answer(  # type: ignore[overload-overlap]
        self,
        images: Picture | Sequence[Picture],
        questions: str,
        *,
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        escalate: bool = False,
        task: str = "",
        climb: bool = False,
    ) -> AdaptiveAnswer: ...

    @overload
    def answer(
        self,
        images: Picture | Sequence[Picture],
        questions: Sequence[str],
        *,
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        escalate: bool = False,
        task: str = "",
        climb: bool = False,
    ) -> list[AdaptiveAnswer]: ...

    def answer(
        self,
        images: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        *,
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        escalate: bool = False,
        task: str = "",
        climb: bool = False,
    ) -> AdaptiveAnswer | list[AdaptiveAnswer]:
        """Answer each question at the scale chosen for it.

        Args:
            images: one image for all questions, or a list with one per question: PIL images, paths, bytes of
                files or uint8 pixels `[height, width(, 3 or 4)]`. An object that occurs several times is
                encoded once.
            questions: a list, or a single question, which gives a single answer.
            price, budget, point: operating point, as in `PriceList.find`; with `escalate`, price or budget as
                in `Hybrid.find`.
            escalate: whether the hybrid answers, which retries at the next finer scale while the expected
                gain is worth it.
            task: name of the task, for predictors that read it.
            climb: former name of `escalate`.

        Raises ValueError for a question that is empty or too long, and for an unknown operating point;
        UnreadableImage for an image that cannot be read.
        """
        pictures, texts = pair_up(images, questions)
        for number, text in enumerate(texts, 1):
            try:
                self.backbone.check_question(text)
            except ValueError as error:
                prefix = f"question {number} of {len(texts)}: " if len(texts) > 1 else ""
                raise ValueError(f"{prefix}{error}") from error
        if escalate or climb:
            hybrid = self.find_hybrid(price=price, budget=budget, point=point)
            results = self.escalate(self.encode(pictures), texts, hybrid, task)
        else:
            operating_point = self.prices.find(price=price, budget=budget, name=point)
            results = self.answer_at(self.encode(pictures), texts, operating_point, task)
        return results[0] if isinstance(questions, str) else results

    def find_hybrid(
        self, *, price: float | None = None, budget: float | None = None, point: str | None = None
    ) -> Hybrid:
        """Return the hybrid of a price or a budget, as in `Hybrid.find`.

        Raises ValueError if no hybrid was saved, and for a named point, which only the predictor has.
        """
        if self.hybrid is None:
            raise ValueError("no hybrid was saved with this predictor: train it again, or leave out escalate")
        if point not in (None, "default"):
            raise ValueError(
                f"{point!r} is a point of the predictor only: give a price or a budget to escalate"
            )
        return self.hybrid.at(self.hybrid.find(price=price, budget=budget))

    def answer_at(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        point: OperatingPoint,
        task: str = "",
    ) -> list[AdaptiveAnswer]:
        """Answer questions[i] about encoded[i] at an operating point of the predictor."""
        prefilled = self._prefill(encoded, questions)
        choices = self.choose(encoded, questions, point, task, prefilled=prefilled)
        return self.answer_chosen(encoded, questions, choices, prefilled)

    def answer_chosen(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        choices: Sequence[Choice],
        prefilled: PrefilledQuestions | None = None,
        watch: Watch | None = None,
    ) -> list[AdaptiveAnswer]:
        """Answer questions[i] about encoded[i] at the scale of choices[i]; one batch per scale.

        Answers at the coarsest scale are decoded from `prefilled`, if the predictor needed it. `watch` is
        that of `ModelBackbone.answer`; it needs a `ModelBackbone`.
        """
        scale_of = {i: choice.scale for i, choice in enumerate(choices)}
        answers = self._answer(encoded, questions, scale_of, prefilled, watch)
        return [AdaptiveAnswer(answers[i], choice, (choice.scale,)) for i, choice in enumerate(choices)]

    def escalate(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], hybrid: Hybrid, task: str = ""
    ) -> list[AdaptiveAnswer]:
        """Answer questions[i] about encoded[i] with the hybrid of one price, as `find_hybrid` returns it."""
        assert len(hybrid.price) == 1, "select one row: Hybrid.at"
        if not questions:
            return []
        prefilled = self._prefill(encoded, questions)
        estimates, inputs = self.estimate(encoded, questions, task, prefilled)
        coarsest, tokens = find_coarsest(inputs.visual_tokens), inputs.visual_tokens
        paid_tokens = self.predictor.features.count_paid_tokens(inputs)
        # The confidence is nan at scales without an answer; no question escalates from these.
        confidence = np.full(estimates.shape, np.nan)
        tried: list[list[int]] = [[] for _ in questions]
        answers: dict[int, Answer] = {}
        while True:
            (first,), (last,) = hybrid.escalate(confidence, tokens, estimates, first_cost=paid_tokens)
            scale_of = {i: inputs.scales[coarsest[i, column]] for i, column in enumerate(last)}
            scale_of = {i: scale for i, scale in scale_of.items() if scale not in tried[i]}
            if not scale_of:
                break
            for i, answer in self._answer(encoded, questions, scale_of, prefilled).items():
                confidence[i, coarsest[i] == coarsest[i, last[i]]] = answer.confidence
                tried[i].append(scale_of[i])
                answers[i] = answer
        choices = list_choices(coarsest[np.arange(len(first)), first], estimates, inputs)
        return [AdaptiveAnswer(answers[i], choice, tuple(tried[i])) for i, choice in enumerate(choices)]

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """Encode images with the backbone. An object that occurs several times is encoded once."""
        distinct = {id(image): image for image in images}
        encoded_of = dict(zip(distinct, self.backbone.encode(list(distinct.values())), strict=True))
        return [encoded_of[id(image)] for image in images]

    def _answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale_of: Mapping[int, int],
        prefilled: PrefilledQuestions | None = None,
        watch: Watch | None = None,
    ) -> dict[int, Answer]:
        """Answer the questions in `scale_of` (index of a question -> scale); one batch per scale.

        Answers at the coarsest scale are decoded from `prefilled`, if the predictor needed it.
        """
        answers: dict[int, Answer] = {}
        for scale in self.backbone.scales:
            indices = [i for i, chosen_scale in scale_of.items() if chosen_scale == scale]
            if indices and prefilled is not None and scale == self.backbone.scales[0]:
                answers.update(zip(indices, prefilled.answer(indices, watch=watch), strict=True))
            elif indices:
                images, texts = [encoded[i] for i in indices], [questions[i] for i in indices]
                options: dict[str, Any] = {} if watch is None else {"watch": renumber(watch, indices)}
                answered = self.backbone.answer(images, texts, scale, **options)
                answers.update(zip(indices, answered, strict=True))
        for answer in answers.values():
            answer.check_finite()
        return answers

    def choose(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        point: OperatingPoint | None = None,
        task: str = "",
        *,
        prefilled: PrefilledQuestions | None = None,
    ) -> list[Choice]:
        """Choose a scale for questions[i] about encoded[i] without answering; default: `prices.default`.

        `prefilled` are the questions after the prefill of the coarsest scale, for a predictor that reads the
        state of the decoder; without it, the prefill runs here.
        """
        if not questions:
            return []
        point = point or self.prices.default
        estimates, inputs = self.estimate(encoded, questions, task, prefilled)
        return choose_scales(estimates, inputs, point, self.predictor.features)

    def _prefill(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str]
    ) -> PrefilledQuestions | None:
        """Run the prefill of the coarsest scale if the predictor reads the state of the decoder."""
        if not (questions and self.predictor.features.decoder_state):
            return None
        return self.backbone.prefill(encoded, questions, self.backbone.scales[0])

    def estimate(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        task: str,
        prefilled: PrefilledQuestions | None = None,
    ) -> tuple[Floats, Inputs]:
        """Return estimates `[num_questions, num_scales]` and the inputs of the predictor."""
        if self._token_embeddings is None:
            self._token_embeddings = self.backbone.token_embeddings().detach().cpu()
        inputs = make_inputs(
            self.backbone,
            encoded,
            questions,
            self.predictor.features,
            task=task,
            token_embeddings=self._token_embeddings,
            prefilled=prefilled,
        )
        return self.predictor.predict(inputs), inputs

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card: parts, usage, and cost and score of the operating points."""
        return folders.write_card(self.backbone, self.predictor, self.prices, self.hybrid)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder that `from_pretrained` loads; `options` are those of `ModelHubMixin`.

        Raises ValueError, before any file is written, for a model that could not be loaded.
        """
        folders.check_savable(self.backbone, self.predictor)
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        folders.save(save_directory, self.backbone, self.predictor, self.prices, self.hybrid)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: Backbone | None = None,
        device: str | None = None,
        device_map: Any = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        trust: Sequence[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **unknown: Any,
    ) -> Self:
        """Load a model from a folder or a hub id.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or a hub id.
            backbone: an open backbone; by default the saved one is opened.
            device: device of the backbone; by default a GPU if there is one. Excludes `device_map`.
            device_map: distribution of the backbone over devices, such as `auto` (needs accelerate).
            dtype: dtype of the backbone's weights; by default, and with `auto`, that of training. Another
                dtype changes answers slightly and logs a warning.
            torch_dtype: former name of `dtype`.
            trust: dotted names of packages, modules or classes that a saved predictor may be built from,
                besides tokenscale's own.
            revision: branch, tag or commit on the hub.
            token: access token of the hub; True: the stored one.
            cache_dir: folder of downloaded files.
            force_download: whether files are downloaded again.
            local_files_only: whether only downloaded files are used.

        Raises FolderError, which names the file, for files that are damaged or name classes that are not
        trusted.
        """
        if unknown:
            raise TypeError(
                f"from_pretrained has no argument {', '.join(sorted(unknown))}: give arguments of "
                "huggingface_hub, or backbone, device, device_map, dtype or trust"
            )
        if None not in (dtype, torch_dtype) and parse_dtype(dtype) != parse_dtype(torch_dtype):
            raise ValueError(f"dtype is {dtype} and torch_dtype {torch_dtype}: give one of them")
        new_dtype = parse_dtype(torch_dtype if dtype is None else dtype)
        if backbone is not None and new_dtype is not None:
            raise ValueError("the given backbone is already open: leave out dtype")
        folder = folders.find_folder(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        predictor, prices, hybrid = folders.load_predictor(folder, trust)
        opened = folders.open_backbone(folder, backbone, device, device_map)
        model = cls(opened, predictor, prices, hybrid)
        return model if new_dtype is None else model.to(dtype=new_dtype)

    @property
    def device(self) -> torch.device:
        """Device of the backbone, to which its weights are loaded on first use."""
        return self._get_model_backbone("device").torch_device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the backbone's weights."""
        return self._get_model_backbone("dtype").torch_dtype

    def to(
        self,
        *target: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Move the backbone to a device or convert it to a dtype, as `torch.nn.Module.to`. Returns itself.

        The predictor stays on the CPU. Estimates and prices hold only approximately in a dtype other than
        that of training, and a warning is logged.
        """
        for argument in target:
            if isinstance(argument, torch.dtype):
                dtype = argument
            else:
                device = argument
        backbone, new_dtype = self._get_model_backbone("to"), parse_dtype(dtype)
        if new_dtype not in (None, backbone.torch_dtype):
            log.warning(
                "%s now answers in %s, but its predictor was trained on answers in %s: estimates and prices "
                "hold only approximately",
                backbone.name,
                str(new_dtype).removeprefix("torch."),
                str(backbone.torch_dtype).removeprefix("torch."),
            )
            self._token_embeddings = None
        name = None if new_dtype is None else str(new_dtype).removeprefix("torch.")
        backbone.move(None if device is None else str(device), name)
        return self

    def eval(self) -> Self:
        """Return itself, since backbone and predictor are never in training mode."""
        return self

    def _get_model_backbone(self, purpose: str) -> ModelBackbone:
        if not isinstance(self.backbone, ModelBackbone):
            raise ValueError(
                f"a {type(self.backbone).__name__} has no `{purpose}`: only a backbone from a checkpoint has"
            )
        return self.backbone

    def __repr__(self) -> str:
        default, costs = self.prices.default, [point.cost for point in self.prices.points]
        parts = [
            f"backbone={self.backbone.name!r}",
            f"scales={list(self.backbone.scales)}",
            f"predictor={self.predictor.name!r}",
            f"default price {default.price:.4g} per {default.unit:.4g} visual tokens "
            f"({default.cost:.1f} visual tokens, score {default.score:.4f} on calibration)",
            f"budgets from {min(costs):.1f} to {max(costs):.1f} visual tokens",
            *([f"points {', '.join(self.prices.named)}"] if self.prices.named else []),
            *(["escalate"] if self.hybrid is not None else []),
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


# Former name.
AdaptiveM3 = AdaptiveVLM


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating-point type by name; None for None and `auto`. Raises ValueError for anything else."""
    if dtype is None or dtype == "auto":
        return None
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if parsed not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype!r}: give float32, bfloat16, float16 or auto")
    return parsed
