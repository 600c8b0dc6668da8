"""Negative controls. If one of them beats the mix, the evaluation leaks or the gain has another cause."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from m3_backbone.arguments import Seed, checked
from m3_backbone.outcomes.labels import Inputs, Labels, VisualTokens
from predictor.base import FitContext, PredictorState, ScalePredictor
from predictor.policy.front import Floats


class Control(ScalePredictor):
    """Predictor made by `predictor()` and trained on uninformative labels (motivation: arXiv 2605.07395)."""

    @checked
    def __init__(self, *, predictor: Callable[[], ScalePredictor], name: str, seed: Seed = 0) -> None:
        self.predictor, self.name, self.seed = predictor, name, seed
        self._inner = predictor()
        self.features = self._inner.features

    @property
    def reads_backbone(self) -> bool:
        return self._inner.reads_backbone

    @property
    def num_parameters(self) -> int:
        return self._inner.num_parameters

    def count_own_flops(self, inputs: Inputs) -> float:
        return self._inner.count_own_flops(inputs)

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        rng = np.random.default_rng(self.seed)
        self._inner.fit(self._corrupt(train, rng), self._corrupt(validation, rng), context)
        self.features = self._inner.features  # a blend may read fewer features after the fit

    def _predict(self, inputs: Inputs) -> Floats:
        return self._inner.predict(inputs)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        content = self._inner.state_dict()
        return content["arrays"], content["state"]

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assert self.scales is not None and self.fingerprints is not None
        self._inner.load_state_dict(
            PredictorState(
                scales=list(self.scales),
                fingerprints=dict(self.fingerprints),
                state=state,
                arrays=arrays,
            )
        )
        self.features = self._inner.features

    @abstractmethod
    def _corrupt(self, labels: Labels, rng: np.random.Generator) -> Labels: ...


class ShuffledLabels(Control):
    """Predictor trained on outcomes that are permuted over the samples, so that no feature is informative."""

    def _corrupt(self, labels: Labels, rng: np.random.Generator) -> Labels:
        order = rng.permutation(len(labels))
        outcomes = labels.outcomes
        return replace(
            labels, outcomes=replace(outcomes, score=outcomes.score[order], nll=outcomes.nll[order])
        )


class RandomFeatures(Control):
    """Predictor that reads noise instead of every feature, in training and in use."""

    def _predict(self, inputs: Inputs) -> Floats:
        return self._inner.predict(randomize(inputs, np.random.default_rng(self.seed)))

    def _corrupt(self, labels: Labels, rng: np.random.Generator) -> Labels:
        return replace(labels, inputs=randomize(labels.inputs, rng))


class RandomChoice(Control):
    """Trained predictor whose estimates are permuted over the samples: a random choice at matched price.

    At every price, each scale is chosen as often as by the original predictor, but for random samples.
    """

    def _predict(self, inputs: Inputs) -> Floats:
        return self._inner.predict(inputs)[np.random.default_rng(self.seed).permutation(len(inputs))]

    def _corrupt(self, labels: Labels, rng: np.random.Generator) -> Labels:
        return labels


def randomize(inputs: Inputs, rng: np.random.Generator) -> Inputs:
    """Return the samples with random visual tokens, statistics, decoder states, questions and token ids.

    The lengths of questions are permuted too, since the number of words depends on the question type.
    """
    vocabulary = np.unique(np.concatenate([np.zeros(1, np.int32), *inputs.question_ids]))
    noise = {
        scale: VisualTokens(rng.normal(size=visual.tokens.shape).astype(np.float16), visual.mask)
        for scale, visual in inputs.visual.items()
    }
    states, asked = inputs.decoder_state, inputs.yes_log_odds
    lengths = rng.permutation([len(question) for question in inputs.question_ids])
    ids = [rng.choice(vocabulary, length).astype(np.int32) for length in lengths]
    return replace(
        inputs,
        visual=noise,
        statistics=rng.normal(size=inputs.statistics.shape).astype(np.float32),
        question_ids=ids,
        decoder_state=None if states is None else rng.normal(size=states.shape).astype(np.float16),
        first_probability=None if states is None else rng.random(len(inputs)).astype(np.float32),
        yes_log_odds=None if asked is None else rng.normal(size=asked.shape).astype(np.float32),
        question=[" ".join(f"w{token}" for token in question) for question in ids],
    )
