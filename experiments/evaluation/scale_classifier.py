"""How far question and image, each alone and both together, tell the smallest sufficient scale."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer

from experiments.evaluation.fronts import find_smallest_right
from m3_backbone.labels import Labels, VisualTokens

MAX_WORDS = 200
NUM_COMPONENTS = 48
FEATURE_SCALE = 9  # or the finest that was kept
PARTS = {"question": ["question"], "image": ["image"], "question and image": ["question", "image"]}


def classify_smallest_scale(train: Labels, test: Labels, seed: int = 0) -> dict[str, float]:
    """Accuracy on the test samples that some scale answers: of the commonest answer and of three classifiers.

    Gradient boosting (scikit-learn's histograms) on the question's words, on the principal components of the
    image's coarse visual tokens, and on both. ValueError where no sample of a split is right at any scale.
    """
    wanted, right = (find_smallest_right(labels.outcomes.score) for labels in (train, test))
    seen, asked = train.select(wanted >= 0), test.select(right >= 0)
    wanted, right = wanted[wanted >= 0], right[right >= 0]
    for split, found in (("train", wanted), ("test", right)):
        if not len(found):
            raise ValueError(f"no sample of {split} is right at any scale: there is no smallest one to tell")
    commonest = float((right == np.bincount(wanted).argmax()).mean())
    if len(np.unique(wanted)) == 1:
        return dict.fromkeys(("the commonest", *PARTS), commonest)
    words = CountVectorizer(
        token_pattern=r"\w+", ngram_range=(1, 2), binary=True, max_features=MAX_WORDS
    ).fit(seen.inputs.question)
    scale = FEATURE_SCALE if FEATURE_SCALE in seen.inputs.visual else max(seen.inputs.visual)
    width = max(labels.inputs.visual_at(scale).tokens.shape[1] for labels in (seen, asked))
    images = _flatten(seen.inputs.visual_at(scale), width)
    components = PCA(min(NUM_COMPONENTS, *images.shape), random_state=seed).fit(images)
    features = [
        {
            "question": words.transform(inputs.question).toarray().astype(np.float32),
            "image": components.transform(_flatten(inputs.visual_at(scale), width))[inputs.image_row],
        }
        for inputs in (seen.inputs, asked.inputs)
    ]
    accuracy = {"the commonest": commonest}
    for name, parts in PARTS.items():
        learned, tested = (np.hstack([each[part] for part in parts]) for each in features)
        # Stopping early on a part of the rows would see other questions about the same images.
        classifier = HistGradientBoostingClassifier(
            learning_rate=0.1, max_iter=100, max_leaf_nodes=15, l2_regularization=1.0,
            early_stopping=False, random_state=seed,
        )  # fmt: skip
        accuracy[name] = float((classifier.fit(learned, wanted).predict(tested) == right).mean())
    return accuracy


def _flatten(images: VisualTokens, width: int) -> np.ndarray:
    """Coarse visual tokens of the images, `[num_images, width * hidden]`; zeros where an image has fewer."""
    visual = images.tokens * images.mask[..., None]
    padded = np.pad(visual, ((0, 0), (0, width - visual.shape[1]), (0, 0)))
    return padded.reshape(len(padded), -1).astype(np.float32)
