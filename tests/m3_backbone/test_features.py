"""Statistics of pictures against values worked out by hand."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3_backbone.features import ImageFeatures, describe_image, stack_statistics
from m3_backbone.outcomes.shards import (
    FEATURE_SCHEMA,
    FEATURE_VERSION,
    dump_header,
    read_features,
    read_header,
    to_feature_table,
    write_shard,
)


def test_image_statistics_of_black_beside_white():
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (4, 0, 8, 4))
    found = describe_image(image)
    assert (found["image/width"], found["image/height"]) == (8, 4)
    assert found["image/entropy"] == pytest.approx(1)  # two levels, half of the pixels each
    assert found["image/edge_density"] == pytest.approx(4 / 32)  # one column of eight
    assert found["image/colorfulness"] == 0
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain = describe_image(Image.new("RGB", (64, 64)))
    assert describe_image(noisy)["image/jpeg_bytes"] > 3 * plain["image/jpeg_bytes"]


def test_colorfulness_of_red_beside_blue():
    """rg is 255 and 0, yb 127.5 and -255; spreads 127.5, 191.25, means 127.5, -63.75."""
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, -63.75)
    assert describe_image(image)["image/colorfulness"] == pytest.approx(expected)


def make_features(value: float) -> ImageFeatures:
    visual = {1: np.full((1, 4), value, np.float16), 9: np.arange(36, dtype=np.float16).reshape(9, 4)}
    return ImageFeatures(visual, {"tower/norm_mean": value, "image/width": 2 * value})


def test_a_shard_gives_back_what_was_stored(tmp_path):
    write_shard(tmp_path / "a.parquet", to_feature_table({"x": make_features(1), "y": make_features(2)}), {})
    found = read_features(tmp_path / "a.parquet")
    assert list(found) == ["x", "y"]
    for image_id, value in (("x", 1), ("y", 2)):
        expected = make_features(value)
        assert found[image_id].statistics == expected.statistics
        assert found[image_id].visual.keys() == expected.visual.keys()
        for scale, tokens in expected.visual.items():
            np.testing.assert_array_equal(found[image_id].visual[scale], tokens)
    assert read_header(tmp_path / "a.parquet")["schema"] == FEATURE_VERSION


def test_features_of_an_older_version_are_refused_with_a_way_out(tmp_path):
    path = tmp_path / "a.parquet"
    table = to_feature_table({"x": make_features(1)}).replace_schema_metadata(dump_header({}, 2))
    assert table.schema.equals(FEATURE_SCHEMA)
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=r"schema version 2, .* reads 3: label again with overwrite=true"):
        read_features(path)


def test_numbers_that_are_not_finite_are_seen():
    assert make_features(1).is_finite()
    assert not make_features(float("nan")).is_finite()
    assert not make_features(1e6).is_finite()  # overflows as float16


def test_images_with_other_statistics_are_not_stacked():
    with pytest.raises(ValueError, match="different statistics"):
        stack_statistics([make_features(1), ImageFeatures({}, {"image/width": 3})])
