"""Features select what is read, standardise it, and say what it costs."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from predictor.batches import BatchMaker
from predictor.features import Features, Standard
from tests.predictor.synthetic import HIDDEN, NUM_COARSE, make_labels

LABELS = make_labels(30, seed=0)


def make_batch(features, rows=(0, 5)):
    standard = Standard.fit(features.read_statistics(LABELS.inputs))
    return BatchMaker(LABELS.inputs, features, standard).make(rows)


def test_only_what_is_named_is_read():
    nothing = make_batch(Features())
    assert nothing.visual.shape == (2, 0, HIDDEN) and nothing.statistics.shape == (2, 0)
    assert not nothing.question_mask.any()
    batch = make_batch(Features(visual=NUM_COARSE, question=True, statistics=("image", "tower")))
    row = LABELS.inputs.image_row[5]
    np.testing.assert_array_equal(batch.visual[1], LABELS.inputs.visual_at(NUM_COARSE).tokens[row])
    assert batch.question_ids[1][batch.question_mask[1]].tolist() == LABELS.inputs.question_ids[5].tolist()
    assert batch.statistics.shape == (2, 3)


def test_statistics_are_those_named_in_units_of_their_deviation():
    features = Features(statistics="tower/crowding")
    values = LABELS.inputs.statistics[:, 0]
    expected = (values - values.mean()) / values.std()
    standard = Standard.fit(features.read_statistics(LABELS.inputs))
    np.testing.assert_allclose(
        standard.apply(features.read_statistics(LABELS.inputs))[:, 0], expected, rtol=1e-4, atol=1e-5
    )
    assert standard.apply(np.array([[1e9]], np.float32)) == Standard.LIMIT


def test_a_statistic_that_never_varies_stays_finite():
    assert Standard.fit(np.full((4, 1), 7.0, np.float32)).apply(np.array([[7.5]], np.float32)) == 0.5


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"choose among tower, image"):
        Features(statistics="colour")
    with pytest.raises(ValueError, match=r"no statistics 'image/entropy' .* tower/crowding, image/width"):
        Features(statistics="image/entropy").read_statistics(LABELS.inputs)
    with pytest.raises(ValueError, match=r"scale 144 were not kept"):
        make_batch(Features(visual=144))


def test_costs():
    """Pooling 36 tokens of 24 numbers once per scale; tower statistics 10 + 1.5 * 2 operations a number."""
    assert Features(question=True).count_flops(LABELS.inputs) == 0
    assert Features(visual=9).count_flops(LABELS.inputs) == 36 * HIDDEN
    assert Features(statistics="tower").count_flops(LABELS.inputs) == 36 * HIDDEN * 13


# A value of every field, and one of a sibling: a field without one fails the test below.
SOME: dict[str, Any] = {"visual": 9, "question": True, "statistics": "tower", "sentences": "wordllama"}
OTHER: dict[str, Any] = {"visual": 1, "question": True, "statistics": "image", "sentences": "another"}
BOTH: dict[str, Any] = {
    "visual": [1, 9],
    "question": True,
    "statistics": ["tower", "image"],
    "sentences": ["wordllama", "another"],
}


@pytest.mark.parametrize("name", [field.name for field in fields(Features)])
def test_a_union_reads_all_that_any_of_its_parts_reads(name):
    some, other = Features(**{name: SOME[name]}), Features(**{name: OTHER[name]})
    assert some != Features()
    assert Features.union(some, Features()) == Features.union(Features(), some) == some
    assert Features.union(some, some) == some
    assert Features.union(some, other) == Features(**{name: BOTH[name]})
    assert Features.union(Features(**SOME), Features(**OTHER)) == Features(**BOTH)
    assert Features.union(Features(**SOME)) == Features(**SOME)


def test_one_sentence_encoder_is_recorded_by_its_name_however_it_is_given():
    assert (
        Features(sentences=["wordllama"]).sentences
        == Features(sentences="wordllama").sentences
        == "wordllama"
    )
    assert Features().sentences == Features(sentences=()).sentences == ""
