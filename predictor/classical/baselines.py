"""Predictors that look at nothing, or only at the task: what a learned one has to beat."""

from typing import Any

import numpy as np

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, ScalePredictor
from predictor.files import check_texts, get_array


class FixedScale(ScalePredictor):
    """The same scale for every sample: estimate 1 there, 0 elsewhere, chosen at every price below 1."""

    @checked
    def __init__(self, *, scale: PositiveInt, name: str = "fixed") -> None:
        self.scale, self.name = scale, name

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        if self.scale not in train.outcomes.scales:
            raise ValueError(f"no scale {self.scale} in these labels, only {list(train.outcomes.scales)}")

    def _predict(self, inputs: Inputs) -> np.ndarray:
        return np.tile(np.asarray(inputs.scales) == self.scale, (len(inputs), 1))

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        pass


class Mix(ScalePredictor):
    """The mean training score of each scale, for every sample: at a budget, a draw between two scales."""

    def __init__(self, *, name: str = "mix") -> None:
        self.name = name

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        self._mean = train.outcomes.score.mean(axis=0, dtype=np.float64)

    def _predict(self, inputs: Inputs) -> np.ndarray:
        return np.tile(self._mean, (len(inputs), 1))

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"mean": self._mean}, {}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assert self.scales is not None
        self._mean = get_array(arrays, "mean", len(self.scales))


class BestScalePerTask(ScalePredictor):
    """The mean training score of each scale within each task; a task not trained on gets the mean over all.

    LLMRouterBench (arXiv 2601.07206) finds that a rule of this kind takes most of what routers gain.
    """

    def __init__(self, *, name: str = "per_task") -> None:
        self.name = name

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        score, task = train.outcomes.score.astype(np.float64), train.outcomes.task
        self._tasks = sorted(set(task))
        # The last row is for tasks never seen.
        self._means = np.stack(
            [*(score[task == name].mean(axis=0) for name in self._tasks), score.mean(axis=0)]
        )

    def _predict(self, inputs: Inputs) -> np.ndarray:
        row_of = {name: row for row, name in enumerate(self._tasks)}
        return self._means[[row_of.get(name, len(self._tasks)) for name in inputs.task]]

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"means": self._means}, {"tasks": self._tasks}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assert self.scales is not None
        self._tasks = check_texts("tasks", state["tasks"])
        self._means = get_array(arrays, "means", len(self._tasks) + 1, len(self.scales))
