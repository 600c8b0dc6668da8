"""A predictor with an image encoder of its own: what it learns and costs, and labels without its input."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from m3_backbone.features import ImageFeatures, make_thumbnail
from m3_backbone.outcomes.labels import stack_thumbnails
from m3_backbone.outcomes.shards import read_features, to_feature_table, write_shard
from predictor.encoders import HashedWords
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.thumbnail import ThumbnailCNN
from tests.predictor.synthetic import FINGERPRINTS, make_labels, with_thumbnails

FEATURES = Features(visual=[], sentences="hashed_words", thumbnail=16)


def make_predictor(**arguments):
    options = {"network": partial(ThumbnailCNN, width=16, num_blocks=3, dropout=0.0), "features": FEATURES}
    return LearnedPredictor(**{**options, "max_epochs": 15, "learning_rate": 3e-3, **arguments})


@pytest.mark.long
def test_it_learns_from_the_thumbnail_alone():
    """Brightness says whether the coarsest scale is right; the question says nothing about it."""
    train, validation, test = (with_thumbnails(make_labels(120, seed, 1), 16) for seed in range(3))
    estimates = make_predictor(batch_size=16).fit(train, validation).predict(test.inputs)[:, 0]
    right = test.outcomes.score[:, 0] > 0.5
    assert estimates[right].mean() > estimates[~right].mean() + 0.5


def test_operations_are_those_of_the_layers():
    """Convolutions 3x3 of 3-8, 8-8 and 8-16 channels on 8x8, 4x4 and 2x2 positions, and linear layers."""
    labels = with_thumbnails(make_labels(20, 0), 16)
    predictor = make_predictor(max_epochs=1).fit(labels, with_thumbnails(make_labels(20, 1), 16))
    convolutions = 9 * (3 * 8 * 64 + 8 * 8 * 16 + 8 * 16 * 4)
    num_scales = len(labels.outcomes.scales)
    linear = 512 * 16 + 16 * (16 + 32) + (2 * 16 + 16 + 512) * 32 + 32 * num_scales
    assert predictor.count_own_flops(labels.inputs) == 2 * (convolutions + linear)


def test_labels_without_thumbnails_are_refused():
    plain, small = make_labels(20, 0), with_thumbnails(make_labels(20, 0), 8)
    validation = with_thumbnails(make_labels(20, 1), 16)
    for labels, held in ((plain, "none"), (small, "those of 8 pixels a side")):
        with pytest.raises(ValueError, match=f"hold {held}: run `tokenscale label thumbnail_size=16"):
            make_predictor().fit(labels, validation)
    with pytest.raises(ValueError, match=r"set predictor.features.thumbnail, such as 64"):
        make_predictor(features=Features(visual=[], sentences="hashed_words")).fit(validation, plain)
    with pytest.raises(ValueError, match=r"thumbnails of \[16, 64\] pixels a side"):
        Features.union(FEATURES, Features(thumbnail=64))


def test_thumbnails_survive_the_shards(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    pixels = make_thumbnail(picture, 2)
    red, blue = pixels[0].tolist()
    assert red == blue[::-1] and red[0] > 200 and (pixels[0] == pixels[1]).all()
    assert (make_thumbnail(Image.new("RGB", (7, 5), (10, 20, 30)), 4) == [10, 20, 30]).all()
    images = {name: ImageFeatures({}, {"image/width": 40.0}, pixels) for name in "ab"}
    write_shard(tmp_path / "a.parquet", to_feature_table(images), {"fingerprints": FINGERPRINTS})
    found = read_features(tmp_path / "a.parquet")
    np.testing.assert_array_equal(stack_thumbnails(list(found.values())), np.stack([pixels] * 2))
    assert stack_thumbnails([images["a"], ImageFeatures({}, {})]) is None
    other = ImageFeatures({}, {}, make_thumbnail(picture, 3))
    with pytest.raises(ValueError, match="thumbnails of different sizes"):
        stack_thumbnails([images["a"], other])


def test_hashed_words_tell_questions_apart_and_ignore_the_order_of_none():
    encoder = HashedWords()
    vectors = encoder.encode(["How many dogs?", "how many DOGS", "many how dogs", "", "?"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[0] != vectors[2]).any()  # word pairs differ
    assert not vectors[3].any() and not vectors[4].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, rtol=1e-6)
    assert encoder.count_flops(["How many dogs?", "dogs"]) == 3  # 3 words and 2 pairs; 1 word
