"""The validation part and the half for calibrators: by image, seeded, stable; counts of few images."""

from itertools import pairwise

import numpy as np
import pytest

from predictor.splitting import FEW_IMAGES, apportion, calibrator_half, split_validation
from tests.predictor.synthetic import make_labels

LABELS = make_labels(400, seed=0)


def test_no_image_is_on_both_sides_and_none_is_lost():
    train, validation = split_validation(LABELS, 0.2, seed=0)
    sides = set(train.outcomes.image_id), set(validation.outcomes.image_id)
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(LABELS.outcomes.image_id)
    assert 0.1 < len(sides[1]) / 400 < 0.3
    assert list(validation.inputs.question) == list(validation.outcomes.question)


def test_an_image_keeps_its_side_when_others_go():
    """From `FEW_IMAGES` images on: 400 here, and half of them."""
    validation = set(split_validation(LABELS, 0.2, seed=0)[1].outcomes.image_id)
    half = LABELS.select(slice(0, 800))
    assert set(split_validation(half, 0.2, seed=0)[1].outcomes.image_id) == validation & set(
        half.outcomes.image_id
    )
    assert set(split_validation(LABELS, 0.2, seed=1)[1].outcomes.image_id) != validation


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fractions_that_leave_a_side_empty_are_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_validation(LABELS, fraction, seed=0)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="1 training images cannot be split"):
        split_validation(LABELS.select([0, 1]), 0.2, seed=0)


@pytest.mark.parametrize(
    ("num_images", "fraction", "num_validation"),
    [(2, 0.15, 1), (3, 0.15, 1), (7, 0.15, 1), (60, 0.15, 9), (2, 0.99, 1), (199, 0.15, 30)],
)
def test_validation_of_few_images_is_a_rounded_count(num_images, fraction, num_validation):
    """15% of 60 are 9, of 199 are 29.85; each side has an image at least."""
    for seed in range(3):
        parts = split_validation(make_labels(num_images, seed=0), fraction, seed=seed)
        counts = [len(set(part.outcomes.image_id)) for part in parts]
        assert counts == [num_images - num_validation, num_validation]


@pytest.mark.parametrize("num_images", [1, 2, 7, 30, FEW_IMAGES - 1])
def test_half_of_few_images_is_exactly_half(num_images):
    image_id = np.repeat([f"image {number}" for number in range(num_images)], 3).astype(object)
    mask = calibrator_half(image_id)
    assert mask.sum() == 3 * ((num_images + 1) // 2)
    assert len(set(image_id[mask]) & set(image_id[~mask])) == 0
    order = np.random.default_rng(0).permutation(len(image_id))
    np.testing.assert_array_equal(calibrator_half(image_id[order]), mask[order])


def test_half_of_many_images_stays_when_others_come():
    image_id = np.array([f"image {number}" for number in range(1000)], dtype=object)
    np.testing.assert_array_equal(calibrator_half(image_id)[:500], calibrator_half(image_id[:500]))
    assert 400 < calibrator_half(image_id).sum() < 600


@pytest.mark.parametrize(
    ("number", "shares", "counts"),
    [
        (12, [0.6, 0.1, 0.3], [7, 1, 4]),  # 7.2, 1.2, 3.6
        (10, [1 - 0.9, 0.9], [1, 9]),
        (3, [0.98, 0.01, 0.01], [1, 1, 1]),
        (2, [0.2, 0.3, 0.5], [0, 1, 1]),
        (5, [0.5, 0.5, 0.0], [3, 2, 0]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_largest_remainders(number, shares, counts):
    assert apportion(number, shares) == counts


def test_apportioned_counts_grow_with_the_number_of_images():
    totals = [apportion(number, [0.6, 0.1, 0.3]) for number in range(3, 60)]
    assert [sum(counts) for counts in totals] == list(range(3, 60))
    assert all(min(counts) >= 1 for counts in totals)
    assert all(abs(first[0] - second[0]) <= 1 for first, second in pairwise(totals))
