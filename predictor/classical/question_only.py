"""Question-only baseline: TF-IDF of words and word pairs, and one logistic regression per scale."""

from typing import Annotated, Any

import numpy as np
import scipy.sparse
from annotated_types import Len
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from m3_backbone.arguments import PositiveFloat, PositiveInt, checked
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor.base import FitContext, ScalePredictor
from predictor.classical.tabular import fit_fractional, has_terms, is_constant, smooth_logit
from predictor.files import check_texts, get_array
from predictor.policy.front import Floats, policy_value


class QuestionOnly(ScalePredictor):
    """scikit-learn's `TfidfVectorizer` and `LogisticRegression` on the question; the image is not read.

    Words of one character, such as digits, are included. Fractional scores are fitted as in
    `tabular.fit_fractional`. A scale has the same estimate for all samples if all training samples are right
    or all are wrong at it, or if no training question has a word. The inverse penalty (scikit-learn's `C`) is
    the value in `inverse_penalties` with the highest `policy_value` on validation.
    """

    @checked
    def __init__(
        self,
        *,
        max_words: PositiveInt = 2,
        inverse_penalties: Annotated[tuple[PositiveFloat, ...], Len(1)] = (0.1, 1.0, 10.0),
        name: str = "question_only",
    ) -> None:
        self.max_words, self.inverse_penalties, self.name = max_words, inverse_penalties, name
        self._vectorizer: TfidfVectorizer | None = None

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        vectorizer = self._make_vectorizer()
        has_words = has_terms(vectorizer, train.inputs.question)
        self._vectorizer = vectorizer.fit(train.inputs.question) if has_words else None
        words = self._read_words(train.inputs.question)
        best = -np.inf
        for inverse_penalty in self.inverse_penalties:
            columns = [_fit_scale(words, score, inverse_penalty) for score in train.outcomes.score.T]
            weights = np.stack([weight for weight, _ in columns])
            biases = np.array([bias for _, bias in columns])
            estimates = self._estimate(validation.inputs, weights, biases)
            value = policy_value(estimates, validation.inputs.visual_tokens, validation.outcomes.score)
            if value > best:
                best, self._weights, self._biases, self._chosen = value, weights, biases, inverse_penalty

    @property
    def num_parameters(self) -> int:
        return self._weights.size + self._biases.size

    def count_own_flops(self, inputs: Inputs) -> float:
        """Two operations per scale and term of a question, averaged over the questions."""
        num_terms = self._read_words(inputs.question).nnz / len(inputs)
        return 2.0 * num_terms * len(self._weights)

    def _predict(self, inputs: Inputs) -> Floats:
        return self._estimate(inputs, self._weights, self._biases)

    def _estimate(self, inputs: Inputs, weights: Floats, biases: Floats) -> Floats:
        return expit(self._read_words(inputs.question) @ weights.T + biases)

    def _read_words(self, questions: list[str]) -> scipy.sparse.csr_matrix:
        """TF-IDF `[num_samples, num_terms]` of the questions."""
        if self._vectorizer is None:
            return scipy.sparse.csr_matrix((len(questions), 0))
        return self._vectorizer.transform(questions)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {"weights": self._weights, "biases": self._biases, "idf": np.zeros(0)}
        terms: list[str] = []
        if self._vectorizer is not None:
            arrays["idf"] = self._vectorizer.idf_
            terms = self._vectorizer.get_feature_names_out().tolist()
        return arrays, {"inverse_penalty": self._chosen, "terms": terms}

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assert self.scales is not None
        terms = check_texts("terms", state["terms"])
        self._weights = get_array(arrays, "weights", len(self.scales), len(terms))
        self._biases = get_array(arrays, "biases", len(self.scales))
        self._chosen = state["inverse_penalty"]
        self._vectorizer = None
        if terms:
            vocabulary = {term: column for column, term in enumerate(terms)}
            self._vectorizer = self._make_vectorizer(vocabulary)
            self._vectorizer.idf_ = get_array(arrays, "idf", len(terms))

    def _make_vectorizer(self, vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
        return TfidfVectorizer(
            ngram_range=(1, self.max_words), token_pattern=r"\w+", sublinear_tf=True, vocabulary=vocabulary
        )


def _fit_scale(words: Any, score: np.ndarray, inverse_penalty: float) -> tuple[Floats, float]:
    """Weights `[num_terms]` and bias of the logistic regression of one scale."""
    if is_constant(score) or not words.shape[1]:
        return np.zeros(words.shape[1]), smooth_logit(score)
    model = fit_fractional(LogisticRegression(C=inverse_penalty, max_iter=1000), words, score)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])
