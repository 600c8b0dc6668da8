"""Baselines that read no features, or only the name of the task."""

from typing import Any

import numpy as np

from m3_backbone.arguments import PositiveInt, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, ScalePredictor
from predictor.files import check_texts, get_array


class FixedScale(ScalePredictor):
    """Estimate 1 at one scale and 0 at the others, so that this scale is chosen at every price below 1."""

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
    """Mean training score of each scale. At a budget, it amounts to a random choice between two scales."""

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
    """Mean training score of each scale within the task of a sample, or over all tasks for an unknown task.

    LLMRouterBench (arXiv 2601.07206) finds that such a rule achieves most of the gain of routers.
    """

    def __init__(self, *, name: str = "per_task") -> None:
        self.name = name

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        score, task = train.outcomes.score.astype(np.float64), train.outcomes.task
        self._tasks = sorted(set(task))
        # The last row is for unknown tasks.
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
