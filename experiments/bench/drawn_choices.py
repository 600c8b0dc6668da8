"""Predictor with random choices, for timing an untrained one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from m3_backbone.backbone import Backbone
from m3_backbone.outcomes.labels import Inputs, Labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveM3
from predictor.base import FitContext, ScalePredictor
from predictor.policy.pricing import OperatingPoint, PriceList


class DrawnChoices(ScalePredictor):
    """Predictor that runs `predictor` and then chooses the scale of each sample at random, by `shares`."""

    def __init__(self, *, predictor: ScalePredictor, shares: Mapping[int, float], seed: int = 0) -> None:
        self.predictor, self.shares, self.seed = predictor, shares, seed
        self.name, self.features = f"{predictor.name}, choices drawn", predictor.features
        self._random = np.random.default_rng(seed)

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        self.predictor.fit(train, validation, context)

    def _predict(self, inputs: Inputs) -> np.ndarray:
        self.predictor.predict(inputs)
        shares = [self.shares.get(scale, 0.0) for scale in inputs.scales]
        return np.eye(len(shares))[self._random.choice(len(shares), len(inputs), p=shares)]

    def count_own_flops(self, inputs: Inputs) -> float:
        return self.predictor.count_own_flops(inputs)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        state = self.predictor.state_dict()
        return state["arrays"], state["state"]

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        raise NotImplementedError("random choices cannot be loaded")


def draw_choices(
    backbone: Backbone,
    predictor: ScalePredictor,
    questions: Sequence[tuple[Image.Image, str]],
    shares: Mapping[int, float],
    *,
    seed: int,
) -> AdaptiveM3:
    """Return the backbone with a predictor that is fitted on random scores and chooses scales by `shares`.

    Raises ValueError for scales that the backbone does not have, and shares that do not sum to 1.
    """
    if unknown := sorted(set(shares) - set(backbone.scales)):
        raise ValueError(f"drawn has scale {unknown[0]}: give some of {list(backbone.scales)}")
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"drawn={dict(shares)}: give shares that are not negative and sum to 1")
    first_questions = list(questions)[:16]
    encoded = backbone.encode([image for image, _ in first_questions])
    inputs = make_inputs(
        backbone,
        encoded,
        [question for _, question in first_questions],
        predictor.features,
        token_embeddings=backbone.token_embeddings(),
    )
    rng = np.random.default_rng(seed)
    train, validation = (
        Labels(inputs, _make_outcomes(inputs, rng, side, backbone.fingerprints))
        for side in ("train", "validation")
    )
    drawn = DrawnChoices(predictor=predictor, shares=shares, seed=seed).fit(train, validation)
    finest = float(inputs.visual_tokens[:, -1].mean())
    free = OperatingPoint(price=0.0, unit=finest, cost=finest, score=1.0)
    return AdaptiveM3(backbone, drawn, PriceList(free, (free,)))


def _make_outcomes(
    inputs: Inputs, rng: np.random.Generator, side: str, fingerprints: Mapping[str, str]
) -> OutcomeTable:
    """Return outcomes with random scores; the image ids begin with `side`, so that no two parts share one."""
    shape = inputs.visual_tokens.shape
    number, texts = len(inputs), np.array([side] * len(inputs), dtype=object)
    names = np.array([f"{side}/{row}" for row in range(number)], dtype=object)
    score = rng.integers(0, 2, shape).astype(np.float32)
    return OutcomeTable(
        scales=inputs.scales,
        fingerprints={**fingerprints, "data": "drawn"},
        sample_id=names,
        image_id=names,
        task=texts,
        kind=texts,
        question=np.array(inputs.question, dtype=object),
        metric=texts,
        references=[["yes"]] * number,
        attributes=[{}] * number,
        question_ids=inputs.question_ids,
        answer=[["yes"] * shape[1]] * number,
        score=score,
        nll=1 - score,
        reference_tokens=np.ones(shape, dtype=np.int32),
        confidence=np.full(shape, 0.5, dtype=np.float32),
        margin=np.ones(shape, dtype=np.float32),
        visual_tokens=inputs.visual_tokens,
        prefill_flops=np.ones(shape, dtype=np.int64),
    )
