"""Value of facts about a sample to a predictor: classifiers, policies and equivalence tests.

The facts are the question type and the attributes of a sample, as its data set states them (for example the
number of items or the size of the object in question). An attribute that reveals the answer would leak the
outcome.

All models are fitted on training labels only, before other splits are read. Each has a digest of what it was
fitted on, so that its comparison on a test split can be recorded (`labels.held_out`).

Two policies are equivalent within a margin at level alpha if the interval of their difference with
confidence 1 - 2 alpha lies between minus and plus the margin (Schuirmann 1987). A difference that is not
significant is no evidence of equivalence. Intervals cover test images; the models are held fixed.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.comparison import Comparison
from experiments.evaluation.fronts import Floats, find_smallest_right
from experiments.evaluation.metric_table import Key, Metric
from experiments.evaluation.metrics import mean_gap_share, mean_to_mix
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap, Bootstrapped, Estimate, adjust_p_values
from experiments.tasks.sizes import allows_interval
from m3_backbone.outcomes.labels import Labels, VisualTokens
from m3_backbone.outcomes.table import CLUSTER, OutcomeTable
from predictor.classical.tabular import has_terms

MAX_WORDS = 200
NUM_COMPONENTS = 48
FEATURE_SCALE = 9  # scale of the image features; the finest one recorded if this one is missing
MAX_VALUES = 50  # of a string attribute: an attribute with more values identifies samples rather than classes
COMMONEST, SEEN, FACTS, ALL = "the commonest", "question and image", "kind and attributes", "all of it"
PARTS = {
    "question": ["question"],
    "image": ["image"],
    SEEN: ["question", "image"],
    FACTS: ["facts"],
    ALL: ["question", "image", "facts"],
}
# No early stopping: it would hold out samples whose images are in the training samples too.
_BOOSTING = {"max_iter": 100, "max_leaf_nodes": 15, "l2_regularization": 1.0, "early_stopping": False}
CLASSIFIER = {"learning_rate": 0.1, **_BOOSTING}
REGRESSOR = {"learning_rate": 0.05, **_BOOSTING}


class UnusableSamples(ValueError):
    """Raised if models cannot be fitted or compared on these samples; the message gives the reason."""


class KnownColumns:
    """Feature columns of samples, `[num_samples, num_columns]`, by the names in `PARTS`.

    Features are words and pairs of words of the question, principal components of the image's coarse visual
    tokens, and the facts. The encoders are fitted on `train`. Sets with facts are left out if the facts do
    not vary.
    """

    def __init__(self, train: Labels, seed: int) -> None:
        inputs = train.inputs
        self._words = CountVectorizer(
            token_pattern=r"\w+", ngram_range=(1, 2), binary=True, max_features=MAX_WORDS
        )
        # If no question has a word, there is one column of zeros.
        questions = inputs.question if has_terms(self._words, inputs.question) else ["word"]
        self._words.fit(questions)
        self._scale = FEATURE_SCALE if FEATURE_SCALE in inputs.visual else max(inputs.visual)
        self._num_tokens = inputs.visual_at(self._scale).tokens.shape[1]
        images = self._flatten(inputs.visual_at(self._scale))
        self._components = PCA(min(NUM_COMPONENTS, *images.shape), random_state=seed).fit(images)
        stated = _list_facts(train.outcomes)
        values: dict[str, set[str | float]] = {}
        for facts_of_sample in stated:
            for name, value in facts_of_sample.items():
                values.setdefault(name, set()).add(value)
        self._facts = {
            name
            for name, distinct in values.items()
            if len(distinct) <= MAX_VALUES or not any(isinstance(value, str) for value in distinct)
        }
        self._vectorizer = DictVectorizer(sparse=False, dtype=np.float32).fit(self._select_facts(stated))
        facts = self._vectorizer.transform(self._select_facts(stated))
        varies = not (facts == facts[:1]).all()
        self.names = tuple(name for name, parts in PARTS.items() if varies or "facts" not in parts)

    def encode(self, labels: Labels) -> dict[str, np.ndarray]:
        """Return the columns of samples, by the names in `PARTS`."""
        inputs = labels.inputs
        images = self._components.transform(self._flatten(inputs.visual_at(self._scale)))
        columns = {
            "question": self._words.transform(inputs.question).toarray().astype(np.float32),
            "image": images[inputs.image_row],
            "facts": self._vectorizer.transform(self._select_facts(_list_facts(labels.outcomes))),
        }
        return {name: np.hstack([columns[part] for part in PARTS[name]]) for name in self.names}

    def _select_facts(self, stated: Sequence[Mapping[str, str | float]]) -> list[dict[str, str | float]]:
        return [{name: facts[name] for name in facts.keys() & self._facts} for facts in stated]

    def _flatten(self, images: VisualTokens) -> np.ndarray:
        """Return coarse visual tokens `[num_images, num_tokens * hidden]`, `num_tokens` as in training.

        Images with fewer tokens are padded with zeros; further tokens are cut off.
        """
        visual = (images.tokens * images.mask[..., None])[:, : self._num_tokens]
        padded = np.pad(visual, ((0, 0), (0, self._num_tokens - visual.shape[1]), (0, 0)))
        return padded.reshape(len(padded), -1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ScaleClassifiers:
    """Boosted classifiers of the smallest sufficient scale, by the features they use.

    A model is None if all training samples have the same smallest sufficient scale. `commonest` is the column
    of the most frequent one. `digests` are by the name of a model.
    """

    columns: KnownColumns
    commonest: int
    models: Mapping[str, HistGradientBoostingClassifier | None]
    digests: Mapping[str, str]

    @classmethod
    def fit(cls, train: Labels, seed: int = 0, on_fit: Callable[[], object] | None = None) -> Self:
        """Fit on the training samples that some scale answers; raise UnusableSamples if there are none.

        `on_fit` is called after each model.
        """
        answered = _select_answered(train, "train")
        smallest = find_smallest_right(answered.outcomes.score)
        columns = KnownColumns(answered, seed)
        varies = len(np.unique(smallest)) > 1
        models = {}
        for name, values in columns.encode(answered).items():
            model = HistGradientBoostingClassifier(**CLASSIFIER, random_state=seed)
            models[name] = model.fit(values, smallest) if varies else None
            if on_fit is not None:
                on_fit()
        digests = {
            f"classifier, {name}": digest_model(train, "classifier", name, CLASSIFIER, seed)
            for name in (COMMONEST, *columns.names)
        }
        return cls(columns, int(np.bincount(smallest).argmax()), models, digests)

    def measure(self, test: Labels) -> dict[str, float]:
        """Return accuracies on the test samples that some scale answers, by the name of a model.

        Raises UnusableSamples if there are no such samples.
        """
        answered = _select_answered(test, "test")
        smallest = find_smallest_right(answered.outcomes.score)
        accuracy = {COMMONEST: float((smallest == self.commonest).mean())}
        for name, values in self.columns.encode(answered).items():
            model = self.models[name]
            predicted = self.commonest if model is None else model.predict(values)
            accuracy[name] = float((smallest == predicted).mean())
        return accuracy


@dataclass(frozen=True, eq=False)
class ScoreRegressions:
    """Boosted regressions of the score at each scale, by the features they use: estimates of a policy."""

    columns: KnownColumns
    models: Mapping[str, Sequence[HistGradientBoostingRegressor]]
    digests: Mapping[str, str]

    @classmethod
    def fit(cls, train: Labels, seed: int = 0, on_fit: Callable[[], object] | None = None) -> Self:
        """Fit one regression per set of features and scale; `on_fit` is called after each model."""
        columns = KnownColumns(train, seed)
        models: dict[str, list[HistGradientBoostingRegressor]] = {}
        for name, values in columns.encode(train).items():
            models[name] = []
            for score in train.outcomes.score.T:
                model = HistGradientBoostingRegressor(**REGRESSOR, random_state=seed)
                models[name].append(model.fit(values, score))
                if on_fit is not None:
                    on_fit()
        digests = {
            f"policy, {name}": digest_model(train, "policy", name, REGRESSOR, seed) for name in columns.names
        }
        return cls(columns, models, digests)

    def predict(self, labels: Labels) -> dict[str, Floats]:
        """Return estimated scores `[num_samples, num_scales]` in [0, 1], by the names in `PARTS`."""
        return {
            name: np.stack([model.predict(values) for model in self.models[name]], axis=1).clip(0.0, 1.0)
            for name, values in self.columns.encode(labels).items()
        }


def digest_model(train: Labels, model: str, features: str, settings: Mapping[str, Any], seed: int) -> str:
    """Return a digest of what determines a model: type, features, settings, seed and training labels."""
    outcomes, limits = train.outcomes, [MAX_WORDS, NUM_COMPONENTS, FEATURE_SCALE, MAX_VALUES]
    recipe = [model, features, dict(settings), limits, seed]
    content = json.dumps([*recipe, dict(outcomes.fingerprints), list(outcomes.sample_id)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _select_answered(labels: Labels, split: str) -> Labels:
    """Return the samples that some scale answers; raise UnusableSamples if there are none."""
    smallest = find_smallest_right(labels.outcomes.score)
    if not (smallest >= 0).any():
        raise UnusableSamples(f"no scale answers any sample of {split}: no sufficient scale can be predicted")
    return labels.select(smallest >= 0)


def _list_facts(table: OutcomeTable) -> list[dict[str, str | float]]:
    """Return question type and attributes of each sample; only finite numbers and strings are kept."""
    return [
        {
            name: value
            for name, value in {**attributes, "kind": str(kind)}.items()
            if name != CLUSTER and _is_fact(value)
        }
        for kind, attributes in zip(table.kind, table.attributes, strict=True)
    ]


def _is_fact(value: Any) -> bool:
    try:
        return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(float(value)))
    except OverflowError:
        return False


LEVEL = 0.05
# With fewer images an interval over images is meaningless.
LEAST_IMAGES = 30
# Policies that use facts; each is compared with the policy that has the inputs of a predictor.
WITH_FACTS = (ALL, FACTS)


@dataclass(frozen=True, eq=False)
class Equivalence:
    """Policy `first` minus `second`: `difference` of scores to the mix and of `share` of the gap.

    Both are averaged over log-spaced budgets, with intervals of confidence `1 - 2 * LEVEL`. `p_value` is that
    of equal scores, with Holm's correction for all differences tested together. `share` is None if one of the
    policies has no share of the gap.
    """

    first: str
    second: str
    difference: Estimate
    share: Estimate | None
    p_value: float
    margin: float
    num_images: int

    @property
    def verdict(self) -> str:
        """Conclusion from the interval and the p-value, in words."""
        if self.num_images < LEAST_IMAGES:
            return "too few images to tell"
        if -self.margin <= self.difference.low and self.difference.high <= self.margin:
            return "equivalent"
        return "differs" if self.p_value < LEVEL else "not shown to be equivalent"


def check_margin(margin: float) -> None:
    """Raise ValueError unless the margin of equivalence lies in (0, 1)."""
    if not 0 < margin < 1:
        raise ValueError(
            f"equivalence_margin={margin:g} is not a share of the score in (0, 1): 0.005 is half a point"
        )


def compare_known(
    regressions: ScoreRegressions,
    calibration: Labels,
    test: Labels,
    bootstrap: Bootstrap,
) -> Comparison:
    """Compare policies that use different features: prices from calibration, metrics from test samples.

    The first policy has the inputs of a predictor. Raises UnusableSamples if mix and oracle have no gap.
    """
    on_calibration, on_test = (regressions.predict(labels) for labels in (calibration, test))
    names = sorted(regressions.columns.names, key=lambda name: name != SEEN)
    comparison = compare_policies(
        calibration.outcomes,
        test.outcomes,
        [PredictorPolicy(name, on_calibration[name], on_test[name]) for name in names],
        reference=None,
        bootstrap=bootstrap,
    )
    if not comparison.oracle_gap.value > 0:
        raise UnusableSamples(
            "there is no gap between mix and oracle at any budget: nothing can be recovered"
        )
    return comparison


def find_equivalences(comparison: Comparison, margin: float) -> list[Equivalence]:
    """Return policies that use facts minus the policy with question and image, on the same resamples."""
    check_margin(margin)
    names = {result.name for result in comparison.policies}
    pairs = [(name, SEEN) for name in WITH_FACTS if name in names]
    differences = [_subtract(comparison, *pair, mean_to_mix) for pair in pairs]
    scores = [difference for difference in differences if difference is not None]
    p_values = adjust_p_values([float(score.p_value()) for score in scores])
    return [
        Equivalence(
            *pair,
            score.estimate(1 - 2 * LEVEL),
            _subtract_shares(comparison, *pair),
            float(p_value),
            margin,
            comparison.num_images,
        )
        for pair, score, p_value in zip(pairs, scores, p_values, strict=True)
    ]


def _subtract(comparison: Comparison, first: str, second: str, metric: Metric) -> Bootstrapped | None:
    """Return the difference of two policies in a metric; None if it does not exist for one of them."""
    results = [comparison.find(name) for name in (first, second)]
    keys = [Key(result.key, metric) for result in results]
    if any(key not in comparison.metrics.resamples for key in keys):
        return None
    value, other_value = (comparison.metrics[key].value for key in keys)
    resamples, other_resamples = (comparison.metrics.resamples[key] for key in keys)
    has_interval = allows_interval(comparison.num_images)
    return Bootstrapped(value - other_value, resamples - other_resamples, has_interval)


def _subtract_shares(comparison: Comparison, first: str, second: str) -> Estimate | None:
    difference = _subtract(comparison, first, second, mean_gap_share)
    return None if difference is None else difference.estimate(1 - 2 * LEVEL)
