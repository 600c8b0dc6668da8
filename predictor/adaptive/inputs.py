"""Inputs of a predictor from encoded images and questions, and the choices of scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3_backbone.asking import ask_whether, count_asking_flops
from m3_backbone.backbone import NOT_FINITE, Backbone, EncodedImage, PrefilledQuestions
from m3_backbone.features import stack_statistics
from m3_backbone.images import Picture, open_picture
from m3_backbone.ladder import find_coarsest
from m3_backbone.outcomes.labels import Inputs, TokenEmbeddings, stack_visual
from predictor.features import Features
from predictor.policy.front import Floats, choose
from predictor.policy.pricing import OperatingPoint


@dataclass(frozen=True)
class Choice:
    """A scale chosen before answering, with estimates and visual tokens of all scales.

    `prefilled_tokens` are the visual tokens of the coarsest scale that the predictor needed: for the
    decoder's state if that scale was not chosen, and for self-asking in any case; 0 otherwise.
    """

    scale: int
    scales: tuple[int, ...]
    estimates: tuple[float, ...]
    visual_tokens: tuple[int, ...]
    prefilled_tokens: int = 0

    @property
    def cost(self) -> int:
        """Visual tokens of the answer and of the predictor."""
        return self.visual_tokens[self.scales.index(self.scale)] + self.prefilled_tokens


def list_choices(columns: NDArray[np.integer], estimates: Floats, inputs: Inputs) -> list[Choice]:
    """Return one choice per question from the chosen columns `[num_questions]` of the ladder.

    A column is that of the coarsest scale among those that coincide.
    """
    is_prefilled, is_asked = inputs.decoder_state is not None, inputs.yes_log_odds is not None
    return [
        Choice(
            inputs.scales[column],
            inputs.scales,
            tuple(row.tolist()),
            tuple(cost.tolist()),
            int(cost[0]) * (int(is_prefilled and column > 0) + is_asked),
        )
        for column, row, cost in zip(columns, estimates, inputs.visual_tokens, strict=True)
    ]


def choose_scales(
    estimates: Floats, inputs: Inputs, point: OperatingPoint, features: Features
) -> list[Choice]:
    """Return the choice of each question at an operating point; of scales that coincide, the coarsest.

    `features` are those that the predictor reads, which may cost visual tokens too.
    """
    columns = choose(estimates, features.count_paid_tokens(inputs), point.price, unit=point.unit)
    columns = find_coarsest(inputs.visual_tokens)[np.arange(len(columns)), columns]
    return list_choices(columns, estimates, inputs)


def pair_up(
    pictures: Picture | Sequence[Picture], questions: str | Sequence[str]
) -> tuple[list[Image.Image], list[str]]:
    """Return lists of one image and one question per answer. A single image is used for all questions.

    Raises ValueError for different numbers of images and questions, and for a question that is not a text;
    UnreadableImage as in `open_picture`.
    """
    texts = [questions] if isinstance(questions, str) else list(questions)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ValueError(f"question {number} of {len(texts)} is {text!r}: give a text")
    if isinstance(pictures, Picture):
        return [open_picture(pictures)] * len(texts), texts
    if len(pictures) != len(texts):
        raise ValueError(
            f"{len(pictures)} images and {len(texts)} questions: give one image per question, or a single "
            "image that is not in a list"
        )
    opened = {id(picture): open_picture(picture) for picture in pictures}
    return [opened[id(picture)] for picture in pictures], texts


def make_inputs(
    backbone: Backbone,
    encoded: Sequence[EncodedImage],
    questions: Sequence[str],
    features: Features,
    *,
    task: str = "",
    token_embeddings: Tensor,
    prefilled: PrefilledQuestions | None = None,
) -> Inputs:
    """Return the inputs of a predictor for each (encoded image, question), equal to those of labelling.

    If the features read the state of the decoder, it is that of `prefilled`, the questions after the prefill
    of the coarsest scale, or of a prefill that runs here.

    Only the selected `features` of an image are computed; positions are those among the backbone's feature
    scales. Raises ValueError if the features are not finite.
    """
    features = features.resolve(backbone.feature_scales)
    distinct = list({id(image): image for image in encoded}.values())
    row_of = {id(image): row for row, image in enumerate(distinct)}
    image_row = np.array([row_of[id(image)] for image in encoded], dtype=np.int64)
    images = backbone.compute_features(distinct, features.scales, features.groups)
    if not all(image.is_finite() for image in images):
        raise ValueError(NOT_FINITE)
    names, statistics = stack_statistics(images)
    scales = backbone.scales
    cost = [[backbone.num_visual_tokens(image.size, scale) for scale in scales] for image in distinct]
    thumbnails = None
    if features.thumbnail is not None:
        thumbnails = np.stack(backbone.make_thumbnails(distinct, features.thumbnail))
    decoder_state = first_probability = None
    if features.decoder_state:
        states = (prefilled or backbone.prefill(encoded, questions, scales[0])).states
        if not all(state.is_finite() for state in states):
            raise ValueError(NOT_FINITE)
        decoder_state = np.stack([state.hidden.half().numpy() for state in states])
        first_probability = np.array([state.probability for state in states], dtype=np.float32)
    yes_log_odds = asking_flops = None
    if isinstance(prompt := features.self_asking, str):
        yes_log_odds = ask_whether(backbone, encoded, questions, prompt)
        sizes = [image.size for image in encoded]
        asking_flops = np.array(
            [count_asking_flops(backbone, *asked, prompt) for asked in zip(sizes, questions, strict=True)],
            dtype=np.int64,
        )
    return Inputs(
        scales=scales,
        question=list(questions),
        task=np.full(len(questions), task, dtype=object),
        question_ids=[np.array(backbone.question_ids(question), dtype=np.int32) for question in questions],
        image_row=image_row,
        visual=stack_visual(images),
        statistics=statistics,
        statistic_names=names,
        token_embeddings=TokenEmbeddings.hold(token_embeddings),
        visual_tokens=np.array(cost, dtype=np.int32)[image_row],
        family=backbone.family,
        decoder_state=decoder_state,
        first_probability=first_probability,
        yes_log_odds=yes_log_odds,
        asking_flops=asking_flops,
        asking_prompt=prompt if isinstance(prompt, str) else None,
        thumbnails=thumbnails,
    )
