"""Features select what is read, standardise it, and say what it costs."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from m3_backbone.outcomes.labels import VisualTokens
from predictor.batches import BatchMaker
from predictor.classical.blend import Blend
from predictor.classical.boosting import GradientBoosting
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features, Standard, choose_widths, fit_visual, resample, resolve_positions
from predictor.folder import build, describe
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


def test_costs_without_pooling():
    """A native backbone encodes the scale itself; tower statistics take 7 operations a coarsest number."""
    inputs = replace(LABELS.inputs, family="native")
    assert Features(visual=1).count_flops(inputs) == 0
    assert Features(statistics="tower").count_flops(inputs) == 1 * HIDDEN * 7


def test_positions_become_scales():
    features = Features(position=[2, 0], statistics="tower")
    assert features.resolve([36, 1, 9]) == Features(visual=[1, 36], statistics="tower")
    assert features.resolve([70]) == Features(visual=70, statistics="tower")
    assert Features(visual=9, position=1) == Features(visual=9) == Features(visual=9).resolve([])
    assert Features(visual=[], position=1) == Features() != Features(position=0)
    with pytest.raises(ValueError, match="fit the predictor first"):
        _ = features.scales
    with pytest.raises(ValueError, match="at position 0, 2 are read, but none were kept in labelling"):
        features.resolve([])
    with pytest.raises(ValueError, match="position=-1: give a whole number from 0 up"):
        Features(position=-1)


def test_positions_become_scales_in_the_arguments_of_inner_predictors():
    one = partial(GradientBoosting, features=Features(position=0), max_trees=3)
    resolved = resolve_positions(one, (70, 140))
    assert resolved.keywords == {"features": Features(visual=70), "max_trees": 3}
    default = resolve_positions(partial(Blend, first=GradientBoosting, second=one), (70, 140)).keywords
    assert default["first"].keywords["features"].scales == (140,)
    assert default["second"].keywords == resolved.keywords
    for argument in (QuestionOnly, partial(GradientBoosting, features=Features(visual=9)), "text", 7):
        assert resolve_positions(argument, (70,)) is argument


def test_a_description_without_positions_is_that_of_earlier_versions():
    arguments = describe(Features, {"features": Features(visual=9)})["arguments"]["features"]["object"]
    assert set(arguments["arguments"]) == {"visual", "question", "statistics", "sentences"}
    assert build(describe(Blend, {"first": Features(position=[1])})["arguments"]["first"]["object"], "") == (
        Features(position=1)
    )


def test_resampled_tokens_are_averages_over_equal_segments():
    counts = (2, 6, 3, 0)
    images = [np.arange(count, dtype=np.float16)[:, None] for count in counts]
    visual = VisualTokens.pad(images)
    resampled = resample(visual, 3)
    assert resampled.tokens[..., 0].tolist() == [[0, 0.5, 1], [0.5, 2.5, 4.5], [0, 1, 2], [0, 0, 0]]
    assert resampled.mask.all(axis=1).tolist() == [True, True, True, False]
    whole = VisualTokens.pad(images[1:2])
    assert resample(whole, 6) is whole


def test_images_of_a_pooled_backbone_are_padded_or_cut_and_others_resampled():
    inputs = replace(LABELS.inputs, visual={9: VisualTokens.pad([np.ones((2, 1)), np.full((4, 1), 3.0)])})
    (pooled,) = fit_visual(inputs, (9,), (3,))
    assert pooled.tokens[..., 0].tolist() == [[1, 1, 0], [3, 3, 3]]
    (native,) = fit_visual(replace(inputs, family="native"), (9,), (3,))
    assert native.tokens[..., 0].tolist() == [[1, 1, 1], [3, 3, 3]]
    many = {70: VisualTokens.pad([np.ones((63, 1))])}
    assert choose_widths(replace(inputs, visual=many, family="native"), [70]) == [16]
    assert choose_widths(replace(inputs, visual=many), [70]) == [63]


# A value of every field, and one of a sibling: a field without one fails the test below.
SOME: dict[str, Any] = {
    "visual": 9,
    "question": True,
    "statistics": "tower",
    "sentences": "wordllama",
    "position": 1,
    "decoder_state": True,
    "self_asking": True,
    "thumbnail": 64,
}
OTHER: dict[str, Any] = {
    "visual": 1,
    "question": True,
    "statistics": "image",
    "sentences": "another",
    "position": 0,
    "decoder_state": True,
    "self_asking": True,
    "thumbnail": 64,
}
BOTH: dict[str, Any] = {
    "visual": [1, 9],
    "question": True,
    "statistics": ["tower", "image"],
    "sentences": ["wordllama", "another"],
    "position": [0, 1],
    "decoder_state": True,
    "self_asking": True,
    "thumbnail": 64,
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
