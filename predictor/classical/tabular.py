"""Features as one row of numbers per sample, and fitting of classifiers to fractional scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import scipy.sparse
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer

from m3_backbone.outcomes.labels import Inputs
from predictor.features import Features, Standard, choose_widths, fit_visual
from predictor.files import check_texts, get_array

# Images whose visual tokens are projected together.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Table:
    """Transformer from inputs to rows: words, sentence vector, components of visual tokens, statistics.

    `words` are the terms (words and word pairs) whose presence is indicated by one column each. `components`
    `[num_components, num_visual * hidden]` are the principal components of the visual tokens of the training
    images, and `mean` is their mean. `widths` are the numbers of visual tokens per scale that every image is
    brought to (`features.fit_visual`).
    """

    features: Features
    words: list[str]
    widths: list[int]
    mean: np.ndarray
    components: np.ndarray
    standard: Standard
    _vectorizer: CountVectorizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        vocabulary = {word: column for column, word in enumerate(self.words)}
        object.__setattr__(self, "_vectorizer", make_vectorizer(vocabulary=vocabulary or {"": 0}))

    @classmethod
    def fit(cls, inputs: Inputs, features: Features, *, max_words: int, num_components: int) -> Self:
        """Fit to training inputs: the `max_words` most common terms and the first principal components."""
        words: list[str] = []
        if features.question:
            vectorizer = make_vectorizer(max_features=max_words)
            if has_terms(vectorizer, inputs.question):
                words = vectorizer.fit(inputs.question).get_feature_names_out().tolist()
        mean, components = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
        widths = choose_widths(inputs, features.scales)
        images = flatten_visual(inputs, features, widths) if widths else np.zeros((0, 0), np.float32)
        if images.size and np.ptp(images, axis=0).any():
            model = PCA(min(num_components, *images.shape), svd_solver="randomized", random_state=0)
            model.fit(images)
            # A few images span fewer directions than `num_components`; the rest would be rounding errors.
            kept = model.explained_variance_ > 1e-6 * model.explained_variance_[0]
            mean, components = model.mean_.astype(np.float32), model.components_[kept].astype(np.float32)
        return cls(features, words, widths, mean, components, features.fit_standard(inputs))

    def apply(self, inputs: Inputs) -> np.ndarray:
        """Return rows float32 `[num_samples, num_columns]`: words, sentence, components, statistics.

        The statistics include the decoder state, if it is read.
        """
        columns = [self.features.read_sentences(inputs)]
        if self.words:
            columns.insert(0, self._vectorizer.transform(inputs.question).toarray().astype(np.float32))
        statistics = self.features.read_statistics(inputs)
        image_standard, state_standard = self.standard.split(statistics.shape[1])
        images = [image_standard.apply(statistics)]
        if len(self.components):
            visual = flatten_visual(inputs, self.features, self.widths) - self.mean
            images.insert(0, _project(visual, self.components))
        columns.append(np.concatenate(images, axis=1)[inputs.image_row])
        columns.append(state_standard.apply(self.features.read_states(inputs).astype(np.float32)))
        rows = np.concatenate(columns, axis=1)
        # Estimators need at least one column: without features, a constant one is added.
        return rows if rows.shape[1] else np.zeros((len(inputs), 1), dtype=np.float32)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of columns of words, sentence, components and statistics; (0, 0, 0, 1) without features."""
        sentence = self.features.num_sentence_columns
        counts = len(self.words), sentence, len(self.components), len(self.standard.mean)
        return counts if any(counts) else (0, 0, 0, 1)

    def count_own_flops(self) -> float:
        """Operations per sample without the features: two per component and value of the visual tokens."""
        return 2.0 * self.components.size

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the fitted values: arrays, and other values as JSON types."""
        arrays = {"table.mean": self.mean, "table.components": self.components}
        arrays |= {"table.center": self.standard.mean, "table.deviation": self.standard.deviation}
        state = {"words": self.words, "visual_widths": self.widths}
        return arrays, {**state, "sentences": self.features.sentence_fingerprint}

    @classmethod
    def from_state(cls, features: Features, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Self:
        """Restore a table from `get_state`. Raises ValueError for invalid values or a changed encoder."""
        features.check_sentences(state["sentences"])
        center = get_array(arrays, "table.center", None)
        standard = Standard(center, get_array(arrays, "table.deviation", len(center)))
        components = get_array(arrays, "table.components", None, None)
        mean = get_array(arrays, "table.mean", components.shape[1])
        words, widths = check_texts("words", state["words"]), state["visual_widths"]
        is_list = isinstance(widths, list) and len(widths) == len(features.scales)
        if not is_list or any(type(width) is not int or width < 0 for width in widths):
            raise ValueError("visual_widths are not one whole number for each scale that is read")
        # Images are padded to the widths, which must not exceed the size of the components.
        if components.size and (not sum(widths) or components.shape[1] % sum(widths)):
            raise ValueError(f"components of {components.shape[1]} numbers do not fit visual_widths {widths}")
        return cls(features, words, widths, mean, components, standard)


def fit_fractional(model: Any, rows: Any, score: np.ndarray) -> Any:
    """Fit a binary scikit-learn classifier to scores in [0, 1]. Returns the fitted model.

    Each sample is used as a right one with weight `score` and as a wrong one with weight `1 - score`; copies
    of weight 0 are left out. `rows` `[num_samples, num_columns]` may be sparse. At least one score must be
    above 0, and at least one below 1.
    """
    right, wrong = np.flatnonzero(score > 0), np.flatnonzero(score < 1)
    stack = scipy.sparse.vstack if scipy.sparse.issparse(rows) else np.concatenate
    return model.fit(
        stack([rows[right], rows[wrong]]),
        np.repeat([1, 0], [len(right), len(wrong)]),
        sample_weight=np.concatenate([score[right], 1 - score[wrong]]),
    )


def is_constant(score: np.ndarray) -> bool:
    """Return whether all samples are right or all are wrong, so that no classifier can be fitted."""
    return bool(score.max() == 0 or score.min() == 1)


def smooth_logit(score: np.ndarray) -> float:
    """Logit of the mean score; one sample of score 1/2 is added so that the logit is finite."""
    smoothed = (float(score.mean(dtype=np.float64)) * len(score) + 0.5) / (len(score) + 1)
    return float(np.log(smoothed / (1 - smoothed)))


def make_vectorizer(**arguments: Any) -> CountVectorizer:
    """Return a vectorizer of the presence of words (also of one character) and word pairs."""
    return CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", binary=True, **arguments)


def has_terms(vectorizer: CountVectorizer, questions: Sequence[str]) -> bool:
    """Return whether the questions contain a term. scikit-learn cannot fit a vectorizer without terms."""
    analyze = vectorizer.build_analyzer()
    return any(analyze(question) for question in questions)


def _project(values: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return `values @ components.T` in float32.

    It is computed in double precision, so that the rounding of a row does not depend on the other rows.
    """
    exact = components.T.astype(np.float64)
    projected = np.empty((len(values), len(components)), dtype=np.float32)
    for start in range(0, len(values), _CHUNK):
        projected[start : start + _CHUNK] = values[start : start + _CHUNK].astype(np.float64) @ exact
    return projected


def flatten_visual(inputs: Inputs, features: Features, widths: Sequence[int]) -> np.ndarray:
    """Visual tokens float32, one row per image. Each scale has the number of tokens in `widths`."""
    rows = []
    for visual in fit_visual(inputs, features.scales, widths):
        tokens = visual.tokens * visual.mask[..., None]
        rows.append(tokens.reshape(len(tokens), -1).astype(np.float32))
    return np.concatenate(rows, axis=1)
