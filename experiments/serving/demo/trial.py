"""A question about an image, answered at every scale, and the choice of a scale at any price."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from PIL import Image

from m3_backbone.backbone import Answer, Backbone
from m3_backbone.ladder import coinciding_scales, distinct_scales, find_coarsest
from m3_backbone.outcomes.labels import Inputs
from predictor.adaptive.inputs import choose_scales, list_choices
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveVLM
from predictor.cascades.hybrid import Hybrid
from predictor.features import Features
from predictor.policy.front import Floats
from predictor.policy.pricing import OperatingPoint


@dataclass(frozen=True)
class ScaleAnswer:
    """The answer at one scale and what it costs by itself.

    `flops` are those of the vision pass and of the decoder until the first token of the answer.
    `milliseconds` are those of the vision pass and of the whole answer, measured once. `estimate` is the
    score that the predictor expects, in [0, 1].
    """

    scale: int
    visual_tokens: int
    flops: int
    milliseconds: float
    estimate: float
    answer: Answer


@dataclass(frozen=True, eq=False)
class Trial:
    """Answers to one question about one image at all scales, coarsest first, and the inputs of a choice.

    `inputs` and `estimates` `[1, num_scales]` are those of the predictor, `features` what it reads, and
    `predictor_milliseconds` the time that both took, the vision pass that the features need included.
    """

    question: str
    answers: Sequence[ScaleAnswer]
    inputs: Inputs
    estimates: Floats
    features: Features
    predictor_milliseconds: float

    def choose(self, point: OperatingPoint) -> AdaptiveAnswer:
        """Return the answer at the scale that the predictor chooses, as `AdaptiveVLM.answer` does."""
        (choice,) = choose_scales(self.estimates, self.inputs, point, self.features)
        return AdaptiveAnswer(self.find(choice.scale), choice, (choice.scale,))

    def escalate(self, hybrid: Hybrid) -> AdaptiveAnswer:
        """Return the answer of a hybrid of one price, with the scales that it tries (`Hybrid.at`)."""
        confidence = np.array([[item.answer.confidence for item in self.answers]])
        paid_tokens = self.features.count_paid_tokens(self.inputs)
        ((first,),), ((last,),) = hybrid.escalate(
            confidence, self.inputs.visual_tokens, self.estimates, first_cost=paid_tokens
        )
        coarsest = find_coarsest(self.inputs.visual_tokens)[0]
        tried = tuple(dict.fromkeys(self.inputs.scales[column] for column in coarsest[first : last + 1]))
        (choice,) = list_choices(coarsest[[first]], self.estimates, self.inputs)
        return AdaptiveAnswer(self.find(tried[-1]), choice, tried)

    def find(self, scale: int) -> Answer:
        """Return the answer at a scale."""
        return self.answers[self.inputs.scales.index(scale)].answer


def try_scales(model: AdaptiveVLM, image: Image.Image, question: str) -> Trial:
    """Answer a question about an RGB image at every scale. Scales that coincide are answered once.

    Every scale encodes the image anew, so that its time is that of an answer by itself. Raises ValueError for
    a question or an image that the backbone refuses, and for answers with numbers that are not finite.
    """
    backbone = model.backbone
    backbone.check_question(question)
    backbone.check_image(image.size)
    start = perf_counter()
    estimates, inputs = model.estimate(backbone.encode([image]), [question], "")
    predictor_milliseconds = (perf_counter() - start) * 1000
    timed = {
        scale: _time_answer(backbone, image, question, scale)
        for scale in distinct_scales(backbone, image.size)
    }
    answers = [
        ScaleAnswer(
            scale,
            backbone.num_visual_tokens(image.size, scale),
            backbone.vision_flops(image.size, scale) + backbone.prefill_flops(image.size, question, scale),
            timed[coarsest][1],
            float(estimate),
            timed[coarsest][0],
        )
        for (scale, coarsest), estimate in zip(
            coinciding_scales(backbone, image.size).items(), estimates[0], strict=True
        )
    ]
    return Trial(question, answers, inputs, estimates, model.predictor.features, predictor_milliseconds)


def _time_answer(backbone: Backbone, image: Image.Image, question: str, scale: int) -> tuple[Answer, float]:
    """Return the answer at a scale, and its milliseconds from pixels to text."""
    start = perf_counter()
    (answer,) = backbone.answer(backbone.encode([image]), [question], scale)
    milliseconds = (perf_counter() - start) * 1000
    answer.check_finite()
    return answer, milliseconds
