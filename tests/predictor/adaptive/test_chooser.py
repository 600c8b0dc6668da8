"""Choices without the weights of the backbone equal those of the whole model, or are refused."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from m3_backbone.features import make_thumbnail
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.labels import TokenEmbeddings, VisualTokens
from predictor.adaptive.chooser import ScaleChooser
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveVLM
from predictor.classical.baselines import FixedScale, Mix
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.cross_attention import CrossAttention
from predictor.networks.pooled import MLP
from predictor.networks.thumbnail import ThumbnailCNN
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.predictor.synthetic import label

QUESTIONS = ["What color is it?", "How many are there?", "What is written there?"]
PIXELS = Features(visual=[], question=False, statistics=["image"])
PIXELS_AND_WORDS = Features(visual=[], question=True, statistics=["image"])
SEEING = Features(visual=[1], question=True)

BLIND = {
    "question_only": partial(QuestionOnly),
    "fixed": partial(FixedScale, scale=9),
    "mix": partial(Mix),
    "boosting on pixels": partial(GradientBoosting, features=PIXELS, max_trees=3),
    "boosting on pixels and words": partial(GradientBoosting, features=PIXELS_AND_WORDS, max_trees=3),
    "neighbours": partial(NearestNeighbours, features=PIXELS_AND_WORDS),
    "network on pixels": partial(
        LearnedPredictor, network=partial(MLP, width=8), features=PIXELS, max_epochs=1, num_members=1
    ),
    "network on thumbnails": partial(
        LearnedPredictor,
        network=partial(ThumbnailCNN, width=8, num_blocks=3),
        features=Features(visual=[], sentences="hashed_words", thumbnail=16, statistics=["image/width"]),
        max_epochs=1,
    ),
    "blend": partial(
        Blend,
        first=QuestionOnly,
        second=partial(GradientBoosting, features=PIXELS, max_trees=3),
        shares=(0.5,),
    ),
}
READING = {
    "network on words": partial(
        LearnedPredictor,
        network=partial(MLP, width=8),
        features=Features(visual=[], question=True),
        max_epochs=1,
    ),
    "network on tokens": partial(
        LearnedPredictor, network=partial(CrossAttention, width=8), features=SEEING, max_epochs=1
    ),
    "boosting on tokens": partial(GradientBoosting, features=SEEING, max_trees=3),
    "boosting on the tower": partial(
        GradientBoosting, features=Features(visual=[], statistics=["tower"]), max_trees=3
    ),
    "blend": partial(
        Blend,
        first=QuestionOnly,
        second=partial(GradientBoosting, features=SEEING, max_trees=3),
        shares=(0.5,),
    ),
}


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    sizes = [(96, 96), (60, 90), (130, 70), (96, 40)]
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone("tiny_m3", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def parts(backbone, images):
    """Labels whose scores depend on question and image."""
    encoded = backbone.encode(images)
    pairs = [(image, question) for image in range(len(images)) for question in range(len(QUESTIONS))] * 3
    inputs = make_inputs(
        backbone,
        [encoded[image] for image, _ in pairs],
        [QUESTIONS[question] for _, question in pairs],
        Features(visual=[1, 9], question=True, statistics=["tower", "image"]),
        token_embeddings=backbone.token_embeddings(),
    )
    needed = np.array([(image + question) % 4 for image, question in pairs])
    score = (np.arange(4) >= needed[:, None]).astype(np.float32)
    fingerprints = {**backbone.fingerprints, "data": "dd"}
    inputs = replace(inputs, thumbnails=np.stack([make_thumbnail(image, 16) for image in images]))
    return [label(inputs, score, image_prefix=side, fingerprints=fingerprints) for side in ("a", "b")]


def fit(make, parts):
    return make().fit(*parts)


@pytest.mark.long
@pytest.mark.parametrize("name", BLIND)
def test_a_predictor_without_features_of_the_backbone_chooses_the_same_without_it(name, parts, images):
    predictor = fit(BLIND[name], parts)
    assert not predictor.reads_backbone
    unopened = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    whole = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    points = [OperatingPoint(price, 144.0, 1.0, 1.0) for price in (0.0, 0.05, 0.3, 1.0)]
    prices = PriceList(points[0], tuple(points))
    pairs = [(image, question) for image in images for question in QUESTIONS]
    pictures, questions = [image for image, _ in pairs], [question for _, question in pairs]
    chooser, model = ScaleChooser(unopened, predictor, prices), AdaptiveVLM(whole, predictor, prices)
    encoded = model.encode(pictures)
    for point in points:
        choices = chooser.choose(pictures, questions, point)
        for choice, expected in zip(choices, model.choose(encoded, questions, point), strict=True):
            assert (choice.scale, choice.visual_tokens) == (expected.scale, expected.visual_tokens)
            np.testing.assert_allclose(choice.estimates, expected.estimates, atol=1e-6)
    assert "model" not in vars(unopened)  # the weights were not loaded
    assert chooser.choose([], []) == []


@pytest.mark.parametrize("name", READING)
def test_a_predictor_that_reads_the_backbone_is_refused(name, parts, backbone):
    predictor = fit(READING[name], parts)
    assert predictor.reads_backbone
    point = OperatingPoint(0.0, 1.0, 1.0, 1.0)
    with pytest.raises(
        ValueError, match=f"predictor {predictor.name} reads features of the backbone .* stay in"
    ):
        ScaleChooser(backbone, predictor, PriceList(point, (point,)))


@pytest.mark.parametrize("name", BLIND)
def test_what_such_a_predictor_does_not_read_has_no_effect(name, parts):
    """Estimates stay the same with other visual tokens, token embeddings and tower statistics."""
    predictor = fit(BLIND[name], parts)
    inputs = parts[0].inputs
    statistics = inputs.statistics.copy()
    statistics[:, [name.startswith("tower") for name in inputs.statistic_names]] = 7.0
    noise = np.random.default_rng(1)
    other = replace(
        inputs,
        visual={
            scale: VisualTokens(noise.normal(size=visual.tokens.shape).astype(np.float16), visual.mask)
            for scale, visual in inputs.visual.items()
        },
        token_embeddings=TokenEmbeddings.hold(torch.randn(inputs.token_embeddings.tensor.shape)),
        statistics=statistics,
    )
    np.testing.assert_allclose(predictor.predict(other), predictor.predict(inputs), atol=1e-6)
