"""Splits by image hash: stable, in the asked proportions, nested when limited."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.tasks.base import (
    SPLITS,
    assign_split,
    carve_calibration,
    check_fractions,
    draw_uniform,
    order_images,
)

IMAGE_IDS = [f"train/{number:05d}.jpg" for number in range(10_000)]


def test_proportions_are_kept():
    fractions = check_fractions({"train": 0.6, "calibration": 0.1, "test": 0.3})
    counts = Counter(assign_split(image_id, fractions) for image_id in IMAGE_IDS)
    for split in SPLITS:
        assert counts[split] / len(IMAGE_IDS) == pytest.approx(fractions[split], abs=0.015)


def test_calibration_is_carved_from_train():
    counts = Counter(carve_calibration(IMAGE_IDS, 0.2).values())
    assert set(counts) == {"train", "calibration"}
    assert counts["calibration"] / len(IMAGE_IDS) == pytest.approx(0.2, abs=0.015)


def test_the_draw_is_a_fixed_hash():
    """Python's own hash of a string changes from process to process; this is what sha256sum gives."""
    assert draw_uniform("a.jpg") == pytest.approx(0.8915075238161024, abs=1e-15)


def test_the_seed_divides_anew():
    assert [draw_uniform(i, 0) for i in IMAGE_IDS[:5]] != [draw_uniform(i, 1) for i in IMAGE_IDS[:5]]


@given(st.text(), st.integers())
def test_any_id_has_a_split(image_id, seed):
    assert 0 <= draw_uniform(image_id, seed) < 1
    assert assign_split(image_id, check_fractions({"train": 1.0}), seed) == "train"
    assert assign_split(image_id, check_fractions({"test": 1.0}), seed) == "test"


@pytest.mark.parametrize(
    ("fractions", "complaint"),
    [
        ({"train": 0.5}, "sum to 1"),
        ({"train": 1.5, "test": -0.5}, "negative"),
        ({"train": 0.5, "dev": 0.5}, "unknown split 'dev'"),
        ({"train": float("nan")}, "sum to 1"),
    ],
)
def test_fractions_that_divide_nothing_are_refused(fractions, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_fractions(fractions)


def test_the_first_images_are_an_even_choice():
    ordered = order_images(IMAGE_IDS)
    assert ordered == order_images(reversed(IMAGE_IDS * 2))
    assert sorted(ordered) == IMAGE_IDS
    front = sum(image_id < IMAGE_IDS[5000] for image_id in ordered[:1000])
    assert 400 < front < 600
