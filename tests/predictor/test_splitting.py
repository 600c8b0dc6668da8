"""The validation part: by image, seeded, stable."""

import pytest

from predictor.splitting import carve_validation
from tests.predictor.synthetic import make_labels

LABELS = make_labels(200, seed=0)


def test_no_image_is_on_both_sides_and_none_is_lost():
    train, validation = carve_validation(LABELS, 0.2, seed=0)
    sides = set(train.outcomes.image_id), set(validation.outcomes.image_id)
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(LABELS.outcomes.image_id)
    assert 0.1 < len(sides[1]) / 200 < 0.3
    assert list(validation.inputs.question) == list(validation.outcomes.question)


def test_an_image_keeps_its_side_when_others_go():
    validation = set(carve_validation(LABELS, 0.2, seed=0)[1].outcomes.image_id)
    half = LABELS.select(slice(0, 400))
    assert set(carve_validation(half, 0.2, seed=0)[1].outcomes.image_id) == validation & set(
        half.outcomes.image_id
    )
    assert set(carve_validation(LABELS, 0.2, seed=1)[1].outcomes.image_id) != validation


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fractions_that_leave_a_side_empty_are_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        carve_validation(LABELS, fraction, seed=0)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="1 training images cannot be split"):
        carve_validation(LABELS.select([0, 1]), 0.2, seed=0)
