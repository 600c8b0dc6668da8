"""Gradient-boosted trees, one ensemble per scale."""

from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier

from m3_backbone.arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, ScalePredictor
from predictor.classical.tabular import Table, fit_fractional, is_constant, smooth_logit
from predictor.features import Features
from predictor.files import get_array
from predictor.policy.front import Floats, policy_value

QUESTION_IMAGE_STATISTICS = Features(position=1, question=True, statistics=("tower", "image"))


class Trees(NamedTuple):
    """Binary trees as arrays `[num_nodes]` over the nodes of all trees; `root` `[num_trees]` are their roots.

    A leaf has `left` 0 and a `value` in logits. At any other node, a row goes to `left` if its value of
    `column` is at most `threshold`, and to `right` otherwise. Evaluating these arrays takes 0.34 ms, compared
    with 1.68 ms and a second of import for scikit-learn, and nothing has to be unpickled.
    """

    root: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, model: HistGradientBoostingClassifier) -> "Trees":
        """Return the trees of a fitted scikit-learn model, which stores their nodes in structured arrays."""
        nodes = [tree.nodes for (tree,) in model._predictors]
        sizes = [len(nodes_of_tree) for nodes_of_tree in nodes]
        root = np.cumsum([0, *sizes])[:-1]
        joined = np.concatenate(nodes)
        # scikit-learn numbers children from the root of their tree.
        offset = np.repeat(root, sizes)
        inner = joined["is_leaf"] == 0
        return cls(
            root=root.astype(np.int32),
            column=joined["feature_idx"].astype(np.int32),
            threshold=joined["num_threshold"].astype(np.float64),
            left=np.where(inner, joined["left"] + offset, 0).astype(np.int32),
            right=np.where(inner, joined["right"] + offset, 0).astype(np.int32),
            value=joined["value"].astype(np.float64),
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], number: int, num_columns: int) -> "Trees":
        """Load saved trees. Raises ValueError if `evaluate` could leave the arrays or not terminate."""
        root = get_array(arrays, f"trees.{number}.root", None, kinds="i")
        column = get_array(arrays, f"trees.{number}.column", None, kinds="i")
        num_nodes = len(column)
        threshold, value = (
            get_array(arrays, f"trees.{number}.{name}", num_nodes) for name in ("threshold", "value")
        )
        left, right = (
            get_array(arrays, f"trees.{number}.{name}", num_nodes, kinds="i") for name in ("left", "right")
        )
        inner, node = left != 0, np.arange(num_nodes)
        has_later_children = (left > node) & (right > node) & (left < num_nodes) & (right < num_nodes)
        if not root.size or root.min() < 0 or root.max() >= num_nodes:
            raise ValueError(f"the root of a tree of scale {number} is not one of its nodes")
        if not has_later_children[inner].all():
            raise ValueError(f"the children of a node of scale {number} do not follow it")
        if (column < 0).any() or (column >= num_columns).any():
            raise ValueError(f"a node of scale {number} does not read one of the {num_columns} columns")
        if not np.isfinite(value).all():
            raise ValueError(f"a node of scale {number} has a value that is not finite")
        return cls(root, column, threshold, left, right, value)

    def evaluate(self, rows: np.ndarray) -> Floats:
        """Values in logits, `[num_rows, num_trees]`, of the trees for `rows` `[num_rows, num_columns]`."""
        node = np.tile(self.root, (len(rows), 1))
        row = np.arange(len(rows))[:, None]
        while (inner := self.left[node] > 0).any():
            goes_left = rows[row, self.column[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return self.value[node]


class GradientBoosting(ScalePredictor):
    """scikit-learn's `HistGradientBoostingClassifier` for each scale, on the rows of `tabular.Table`.

    Fractional scores are fitted as in `tabular.fit_fractional`. If all training samples are right or all are
    wrong at a scale, it has the same estimate for all samples. The number of trees is the multiple of a tenth
    of `max_trees` with the highest `policy_value` on validation. The trees are saved as arrays and evaluated
    with NumPy, so that they need no pickle and no particular version of scikit-learn.
    """

    @checked
    def __init__(
        self,
        *,
        features: Features = QUESTION_IMAGE_STATISTICS,
        max_words: NonNegativeInt = 200,
        num_components: NonNegativeInt = 48,
        max_trees: PositiveInt = 200,
        learning_rate: PositiveFloat = 0.05,
        max_leaves: Annotated[int, Ge(2)] = 15,
        penalty: NonNegativeFloat = 1.0,
        name: str = "gradient_boosting",
        seed: Seed = 0,
    ) -> None:
        self.features, self.max_words, self.num_components = features, max_words, num_components
        self.max_trees, self.learning_rate, self.max_leaves = max_trees, learning_rate, max_leaves
        self.penalty, self.name, self.seed = penalty, name, seed

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        self._table = Table.fit(
            train.inputs, self.features, max_words=self.max_words, num_components=self.num_components
        )
        rows = self._table.apply(train.inputs)
        grown = [self._grow(rows, score) for score in train.outcomes.score.T]
        validation_rows = self._table.apply(validation.inputs)
        sums = [base + np.cumsum(trees.evaluate(validation_rows), axis=1) for base, trees in grown]
        cost, score = self.features.count_paid_tokens(validation.inputs), validation.outcomes.score
        numbers = np.unique(np.ceil(np.linspace(self.max_trees / 10, self.max_trees, 10)).astype(int))
        values = [
            policy_value(expit(np.stack([_at(logits, number) for logits in sums], axis=1)), cost, score)
            for number in numbers
        ]
        self._num_trees = int(numbers[int(np.argmax(values))])
        self._base = np.array([base for base, _ in grown])
        self._trees = [_prune(trees, self._num_trees) for _, trees in grown]

    def _grow(self, rows: np.ndarray, score: np.ndarray) -> tuple[float, Trees]:
        """Fit the trees of one scale. Returns the logit before the first tree, and the trees."""
        if is_constant(score):
            return smooth_logit(score), _leaf()
        model = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate,
            max_iter=self.max_trees,
            max_leaf_nodes=self.max_leaves,
            l2_regularization=self.penalty,
            # Early stopping would hold out rows of images that have other questions in training.
            early_stopping=False,
            random_state=self.seed,
        )
        fit_fractional(model, rows, score)
        return float(model._baseline_prediction.item()), Trees.of(model)

    @property
    def reads_backbone(self) -> bool:
        return self.features.reads_vision  # words of the question are read as text

    @property
    def num_parameters(self) -> int:
        """Number of values in components and nodes. A node has two: a column and a threshold, or a value."""
        return self._table.components.size + 2 * sum(len(trees.value) for trees in self._trees)

    def count_own_flops(self, inputs: Inputs) -> float:
        """Operations of the components, plus at most one comparison per level of every tree."""
        levels = np.log2(self.max_leaves) + 1
        comparisons = sum(len(trees.root) for trees in self._trees) * levels
        return self._table.count_own_flops() + float(comparisons)

    def _predict(self, inputs: Inputs) -> Floats:
        rows = self._table.apply(inputs)
        sums = [trees.evaluate(rows).sum(axis=1) for trees in self._trees]
        return expit(self._base + np.stack(sums, axis=1))

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, state = self._table.get_state()
        arrays["base"] = self._base
        for number, trees in enumerate(self._trees):
            arrays |= {f"trees.{number}.{name}": array for name, array in trees._asdict().items()}
        return arrays, {**state, "num_trees": self._num_trees}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        self._table = Table.from_state(self.features, arrays, state)
        assert self.scales is not None
        self._base, self._num_trees = get_array(arrays, "base", len(self.scales)), state["num_trees"]
        num_columns = sum(self._table.sizes)
        self._trees = [Trees.from_arrays(arrays, number, num_columns) for number in range(len(self._base))]


def _at(sums: Floats, number: int) -> Floats:
    """Return sums `[num_rows]` over the first `number` trees, or over all if there are fewer."""
    return sums[:, min(number, sums.shape[1]) - 1]


def _prune(trees: Trees, number: int) -> Trees:
    """Return the first `number` trees, or all if there are fewer."""
    if number >= len(trees.root):
        return trees
    end = trees.root[number]
    return Trees(trees.root[:number], *(array[:end] for array in trees[1:]))


def _leaf() -> Trees:
    """Return one tree whose value is 0 for every row."""
    zero_int, zero_float = np.zeros(1, np.int32), np.zeros(1)
    return Trees(zero_int, zero_int, zero_float, zero_int, zero_int, zero_float)
