"""Nearest neighbours: mean scores of the most similar training samples."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray

from m3_backbone.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, ScalePredictor
from predictor.classical.boosting import QUESTION_IMAGE_STATISTICS
from predictor.classical.tabular import Table
from predictor.features import Features
from predictor.files import get_array
from predictor.policy.front import Floats, policy_value

# Queries per matrix product; bound on its rounding error, relative to the squared norms of rows and queries.
_CHUNK, _ROUNDING = 256, 1e-10


class NearestNeighbours(ScalePredictor):
    """Mean score of the nearest training samples in the space of the rows of `tabular.Table`.

    Words, sentence vectors, components and statistics are scaled to the same variance; the first two are then
    multiplied by a weight. The number of neighbours and the weight are the values in `num_neighbours` and
    `word_weights` with the highest `policy_value` on validation. LLMRouterBench (arXiv 2601.07206) finds that
    such a rule is as good as most learned routers.
    """

    @checked
    def __init__(
        self,
        *,
        features: Features = QUESTION_IMAGE_STATISTICS,
        max_words: NonNegativeInt = 200,
        num_components: NonNegativeInt = 48,
        num_neighbours: Annotated[tuple[PositiveInt, ...], Len(1)] = (10, 30, 100),
        word_weights: Annotated[tuple[NonNegativeFloat, ...], Len(1)] = (1.0, 3.0),
        name: str = "nearest_neighbours",
    ) -> None:
        self.features, self.max_words, self.num_components = features, max_words, num_components
        self.num_neighbours, self.word_weights, self.name = num_neighbours, word_weights, name

    @property
    def reads_backbone(self) -> bool:
        return self.features.reads_vision  # words of the question are read as text

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        self._table = Table.fit(
            train.inputs, self.features, max_words=self.max_words, num_components=self.num_components
        )
        rows, validation_rows = self._table.apply(train.inputs), self._table.apply(validation.inputs)
        self._score = train.outcomes.score.astype(np.float32)
        max_number = min(max(self.num_neighbours), len(rows))
        best = -np.inf
        for word_weight in self.word_weights:
            scale = self._weigh(rows, word_weight)
            neighbours = find_nearest(rows * scale, validation_rows * scale, max_number)
            for number in self.num_neighbours:
                estimates = self._score[neighbours[:, :number]].mean(axis=1)
                cost, score = self.features.count_paid_tokens(validation.inputs), validation.outcomes.score
                value = policy_value(estimates, cost, score)
                if value > best:
                    best, self._number, self._scale = value, min(number, max_number), scale
        self._rows = (rows * self._scale).astype(np.float32)

    def _weigh(self, rows: np.ndarray, word_weight: float) -> np.ndarray:
        """Factors `[num_columns]` that give each part variance 1, times the weight for words and sentence."""
        ends = np.cumsum(self._table.sizes)
        scale = np.ones(rows.shape[1], dtype=np.float32)
        for part, weight in zip(
            np.split(np.arange(rows.shape[1]), ends[:-1]), (word_weight, word_weight, 1, 1), strict=True
        ):
            if len(part):
                scale[part] = weight / max(np.sqrt(rows[:, part].var(axis=0).sum()), 1e-6)
        return scale

    def count_own_flops(self, inputs: Inputs) -> float:
        """Operations of the table, plus three per value of the training rows."""
        return self._table.count_own_flops() + 3.0 * self._rows.size

    def _predict(self, inputs: Inputs) -> Floats:
        rows = self._table.apply(inputs) * self._scale
        return self._score[find_nearest(self._rows, rows, self._number)].mean(axis=1, dtype=np.float64)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, state = self._table.get_state()
        arrays |= {"rows": self._rows, "score": self._score, "scale": self._scale}
        return arrays, {**state, "number": self._number}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        self._table = Table.from_state(self.features, arrays, state)
        assert self.scales is not None
        self._scale = get_array(arrays, "scale", sum(self._table.sizes))
        self._rows = get_array(arrays, "rows", None, len(self._scale))
        self._score = get_array(arrays, "score", len(self._rows), len(self.scales))
        self._number = state["number"]
        if type(self._number) is not int or not 1 <= self._number <= len(self._rows):
            raise ValueError(f"invalid number of neighbours {self._number!r} of {len(self._rows)} samples")


def find_nearest(rows: np.ndarray, queries: np.ndarray, number: int) -> NDArray[np.int64]:
    """Indices `[num_queries, number]` of the rows nearest to each query, nearest first, ties by index.

    `rows` are `[num_rows, num_columns]`, `queries` `[num_queries, num_columns]`. The rounding of a matrix
    product depends on its batch, so the product only excludes rows that are farther away than any rounding
    error; the distances of the remaining rows are computed query by query. The neighbours of a query
    therefore do not depend on the other queries.
    """
    exact_rows, exact_queries = rows.astype(np.float64), queries.astype(np.float64)
    squares = (exact_rows**2).sum(axis=1)
    nearest = np.empty((len(queries), number), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        part = exact_queries[start : start + _CHUNK]
        rough = squares - 2 * part @ exact_rows.T
        limit = np.partition(rough, number - 1, axis=1)[:, number - 1]
        limit += _ROUNDING * (squares.max() + (part**2).sum(axis=1))
        for place, query in enumerate(part):
            near = np.flatnonzero(rough[place] <= limit[place])
            distance = ((exact_rows[near] - query) ** 2).sum(axis=1)
            nearest[start + place] = near[np.argsort(distance, kind="stable")[:number]]
    return nearest
