"""What tells which scale a question needs: its words, its image, or the facts that no predictor is told.

The facts are a sample's kind and attributes, as its data set states them (number of items, size of what
is asked about). Where they add nothing to what is seen, a predictor is not held back by not knowing them. An
attribute that gives the answer away would make this a look at the outcome.
"""

import math
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer

from experiments.evaluation.fronts import find_smallest_right
from m3_backbone.labels import Labels, VisualTokens
from m3_backbone.outcomes import OutcomeTable
from predictor.policy import policy_value

MAX_WORDS = 200
NUM_COMPONENTS = 48
FEATURE_SCALE = 9  # or the finest that was kept
MAX_VALUES = 50  # of an attribute in words: more are no classes, but names of single samples
COMMONEST, FACTS, ALL = "the commonest", "kind and attributes", "all of it"
PARTS = {
    "question": ["question"],
    "image": ["image"],
    "question and image": ["question", "image"],
    FACTS: ["facts"],
    ALL: ["question", "image", "facts"],
}
_Features = dict[str, np.ndarray]


def classify_smallest_scale(train: Labels, test: Labels, seed: int = 0) -> dict[str, float]:
    """Accuracy on the test samples that some scale answers: of the commonest answer and of a classifier each.

    Gradient boosting (scikit-learn's histograms) on the question's words, on the principal components of the
    image's coarse visual tokens, on both, on the facts, and on all of it; without the last two where samples
    state no facts. ValueError where no sample of a split is right at any scale.
    """
    wanted, right = (find_smallest_right(labels.outcomes.score) for labels in (train, test))
    seen, asked = train.select(wanted >= 0), test.select(right >= 0)
    wanted, right = wanted[wanted >= 0], right[right >= 0]
    for split, found in (("train", wanted), ("test", right)):
        if not len(found):
            raise ValueError(f"no sample of {split} is right at any scale: there is no smallest one to tell")
    features = _read_features(seen, asked, seed)
    accuracy = {COMMONEST: float((right == np.bincount(wanted).argmax()).mean())}
    for name, (learned, tested) in _join(*features).items():
        if len(np.unique(wanted)) == 1:
            accuracy[name] = accuracy[COMMONEST]
            continue
        # Stopping early on a part of the rows would see other questions about the same images.
        classifier = HistGradientBoostingClassifier(
            learning_rate=0.1, max_iter=100, max_leaf_nodes=15, l2_regularization=1.0,
            early_stopping=False, random_state=seed,
        )  # fmt: skip
        accuracy[name] = float((classifier.fit(learned, wanted).predict(tested) == right).mean())
    return accuracy


def recover_gap(train: Labels, test: Labels, seed: int = 0) -> dict[str, float]:
    """Share of the gap from mix to budgeted oracle, over log budget, that a policy recovers on test samples.

    Its estimates are boosted regressions of the score at each scale on what `classify_smallest_scale` reads.
    ValueError where there is no gap.
    """
    cost, score = test.outcomes.visual_tokens, test.outcomes.score
    mix = policy_value(np.broadcast_to(score.mean(axis=0, dtype=np.float64), score.shape), cost, score)
    gap = policy_value(score, cost, score) - mix
    if gap <= 0:
        raise ValueError("no budget has a gap between mix and oracle: there is nothing to recover")
    found = {}
    for name, (learned, tested) in _join(*_read_features(train, test, seed)).items():
        estimates = [
            HistGradientBoostingRegressor(
                learning_rate=0.05, max_iter=100, max_leaf_nodes=15, l2_regularization=1.0,
                early_stopping=False, random_state=seed,
            )
            .fit(learned, column)
            .predict(tested)
            for column in train.outcomes.score.T
        ]  # fmt: skip
        found[name] = (policy_value(np.stack(estimates, axis=1), cost, score) - mix) / gap
    return found


def _join(seen: _Features, asked: _Features) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is known -> its columns of the two splits, of all in `PARTS` that can be had."""
    return {
        name: (np.hstack([seen[part] for part in parts]), np.hstack([asked[part] for part in parts]))
        for name, parts in PARTS.items()
        if all(part in seen for part in parts)
    }


def _read_features(seen: Labels, asked: Labels, seed: int) -> tuple[_Features, _Features]:
    """Columns by part, of both splits; whatever is fitted is fitted on the first."""
    words = CountVectorizer(
        token_pattern=r"\w+", ngram_range=(1, 2), binary=True, max_features=MAX_WORDS
    ).fit(seen.inputs.question)
    scale = FEATURE_SCALE if FEATURE_SCALE in seen.inputs.visual else max(seen.inputs.visual)
    width = max(labels.inputs.visual_at(scale).tokens.shape[1] for labels in (seen, asked))
    images = _flatten(seen.inputs.visual_at(scale), width)
    components = PCA(min(NUM_COMPONENTS, *images.shape), random_state=seed).fit(images)
    stated = [_list_facts(labels.outcomes) for labels in (seen, asked)]
    values: dict[str, set[str | float]] = {}
    for row in stated[0]:
        for name, value in row.items():
            values.setdefault(name, set()).add(value)
    classes = {
        name
        for name, found in values.items()
        if len(found) <= MAX_VALUES or not any(isinstance(value, str) for value in found)
    }
    known = [[{name: row[name] for name in row.keys() & classes} for row in rows] for rows in stated]
    facts = DictVectorizer(sparse=False, dtype=np.float32).fit(known[0])
    first, second = (
        {
            "question": words.transform(labels.inputs.question).toarray().astype(np.float32),
            "image": components.transform(_flatten(labels.inputs.visual_at(scale), width))[
                labels.inputs.image_row
            ],
            "facts": facts.transform(rows),
        }
        for labels, rows in zip((seen, asked), known, strict=True)
    )
    if (first["facts"] == first["facts"][:1]).all():
        del first["facts"], second["facts"]
    return first, second


def _list_facts(table: OutcomeTable) -> list[dict[str, str | float]]:
    """Kind, and the attributes that are finite numbers or words; lists and the like are left out."""
    return [
        {name: value for name, value in {**row, "kind": str(kind)}.items() if _is_fact(value)}
        for kind, row in zip(table.kind, table.attributes, strict=True)
    ]


def _is_fact(value: Any) -> bool:
    try:
        return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(float(value)))
    except OverflowError:
        return False


def _flatten(images: VisualTokens, width: int) -> np.ndarray:
    """Coarse visual tokens of the images, `[num_images, width * hidden]`; zeros where an image has fewer."""
    visual = images.tokens * images.mask[..., None]
    padded = np.pad(visual, ((0, 0), (0, width - visual.shape[1]), (0, 0)))
    return padded.reshape(len(padded), -1).astype(np.float32)
