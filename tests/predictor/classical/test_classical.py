"""Trees, neighbours, controls and calibration, on labels whose truth is known."""

import dataclasses
import functools
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from m3_backbone.outcomes.labels import VisualTokens
from predictor.calibration import Isotonic, Temperature
from predictor.classical.boosting import GradientBoosting, Trees
from predictor.classical.controls import RandomChoice, RandomFeatures, ShuffledLabels, randomize
from predictor.classical.nearest import NearestNeighbours, find_nearest
from predictor.classical.tabular import Table
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.pooled import MLP
from predictor.policy.front import policy_value
from tests.predictor.synthetic import NUM_COARSE, blind_estimates, make_labels, true_estimates

TRAIN, VALIDATION, TEST = make_labels(300, seed=0), make_labels(100, seed=1), make_labels(400, seed=2)
BOOSTING = functools.partial(GradientBoosting, max_trees=40, learning_rate=0.1, num_components=8)
MEANS = np.broadcast_to(TRAIN.outcomes.score.mean(axis=0), TEST.outcomes.score.shape)


def value(estimates, labels=TEST):
    return policy_value(estimates, labels.inputs.visual_tokens, labels.outcomes.score)


@pytest.fixture(scope="module")
def boosting():
    return BOOSTING().fit(TRAIN, VALIDATION)


def test_trees_as_arrays_say_what_scikit_learn_says():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5)).astype(np.float32)
    model = HistGradientBoostingClassifier(max_iter=20, early_stopping=False)
    model.fit(rows, rows[:, 0] * rows[:, 1] > 0)
    others = rng.normal(size=(300, 5)).astype(np.float32)
    found = model._baseline_prediction.item() + Trees.of(model).evaluate(others).sum(axis=1)
    np.testing.assert_allclose(found, model.decision_function(others), atol=1e-6)


@pytest.mark.long
def test_boosting_sees_question_and_image(boosting):
    blind, true = value(blind_estimates(TEST)), value(true_estimates(TEST))
    assert value(boosting.predict(TEST.inputs)) > (blind + true) / 2
    assert boosting._num_trees <= 40
    assert boosting.count_flops(TEST.inputs) > 2 * 8 * 9 * 24  # eight components of nine tokens


@pytest.mark.long
def test_what_is_not_read_does_not_help():
    """Statistics of noise alone recover nothing; of the crowding, what the picture alone tells."""
    noise = BOOSTING(features=Features(statistics="image")).fit(TRAIN, VALIDATION).predict(TEST.inputs)
    assert value(noise) < value(MEANS) + 0.01
    image = BOOSTING(features=Features(visual=9)).fit(TRAIN, VALIDATION).predict(TEST.inputs)
    question = BOOSTING(features=Features(question=True)).fit(TRAIN, VALIDATION).predict(TEST.inputs)
    assert value(MEANS) + 0.01 < value(image)
    assert value(question) == pytest.approx(value(blind_estimates(TEST)), abs=0.01)


def test_nearest_neighbours_are_better_than_none():
    found = NearestNeighbours(num_components=8, num_neighbours=(10, 30)).fit(TRAIN, VALIDATION)
    assert value(found.predict(TEST.inputs)) > value(blind_estimates(TEST)) - 0.01
    assert found._number in (10, 30)


def test_neighbours_do_not_depend_on_the_batch():
    """Rows on a grid: many are equally far away, and of these the first ones are taken."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (300, 12)).astype(np.float32) / 3
    queries = np.concatenate([rows[:40], rng.integers(0, 2, (30, 12)).astype(np.float32) / 3])
    found = find_nearest(rows, queries, 10)
    for query, neighbours in zip(queries, found, strict=True):
        num_different = np.abs(3 * (rows - query)).round().sum(axis=1)
        assert neighbours.tolist() == np.argsort(num_different, kind="stable")[:10].tolist()
        assert find_nearest(rows, query[None], 10)[0].tolist() == neighbours.tolist()


def test_the_nearest_neighbour_of_a_training_sample_is_itself():
    found = NearestNeighbours(num_components=8, num_neighbours=(1,)).fit(TRAIN, VALIDATION)
    _, row_of, count = np.unique(found._rows, axis=0, return_index=True, return_counts=True)
    alone = row_of[count == 1]  # the same question may be asked twice about one image
    assert len(alone) > 1000
    np.testing.assert_array_equal(found.predict(TRAIN.inputs)[alone], TRAIN.outcomes.score[alone])


def test_a_fractional_score_counts_as_much_as_it_is():
    """Without features the estimates are the mean scores, whatever they are made of."""
    score = np.tile(np.array([[0.25, 0.5, 1.0]], np.float32), (len(TRAIN), 1))
    score[::2] = [0.75, 0.5, 1.0]
    train = dataclasses.replace(TRAIN, outcomes=dataclasses.replace(TRAIN.outcomes, score=score))
    estimates = BOOSTING(features=Features(statistics="image")).fit(train, VALIDATION).predict(TRAIN.inputs)
    np.testing.assert_allclose(estimates.mean(axis=0), [0.5, 0.5, 1.0], atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize("control", [ShuffledLabels, RandomFeatures, RandomChoice])
def test_controls_recover_nothing(control, boosting):
    spoilt = control(predictor=BOOSTING, name="control").fit(TRAIN, VALIDATION)
    true = value(true_estimates(TEST))
    assert value(spoilt.predict(TEST.inputs)) < value(MEANS) + 0.2 * (true - value(MEANS))
    assert value(boosting.predict(TEST.inputs)) > value(MEANS) + 0.5 * (true - value(MEANS))


def test_random_features_keep_no_length():
    """Even how many words a question has is dealt out anew: it tells kinds apart."""
    lengths = np.arange(len(TEST)) % 7
    ids = [np.ones(length, dtype=np.int32) for length in lengths]
    drawn = randomize(replace(TEST.inputs, question_ids=ids), np.random.default_rng(0))
    found = np.array([len(each) for each in drawn.question_ids])
    assert np.array_equal(np.sort(found), np.sort(lengths))
    assert abs(np.corrcoef(found, lengths)[0, 1]) < 0.2
    assert [len(text.split()) for text in drawn.question] == found.tolist()


@pytest.mark.long
def test_random_choice_keeps_the_estimates_and_deals_them_out(boosting):
    spoilt = RandomChoice(predictor=BOOSTING, name="control").fit(TRAIN, VALIDATION).predict(TEST.inputs)
    kept = boosting.predict(TEST.inputs)
    assert (spoilt != kept).any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(np.sort(spoilt, axis=0), np.sort(kept, axis=0))


def test_temperature_finds_what_was_done_to_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(20_000, 2))
    score = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    sharpened = 1 / (1 + np.exp(-logits * [3, 0.5]))
    found = Temperature().fit(sharpened, score)
    np.testing.assert_allclose(found.temperature, [3, 0.5], rtol=0.05)
    np.testing.assert_allclose(found.apply(sharpened), 1 / (1 + np.exp(-logits)), atol=0.02)


def test_isotonic_by_hand():
    """Scores 1, 0 at 0.2 and 0.4 must rise, so both become a half; 0.8 keeps its fraction."""
    estimates = np.array([[0.2], [0.4], [0.8]])
    found = Isotonic().fit(estimates, np.array([[1.0], [0.0], [0.75]]))
    np.testing.assert_allclose(found.apply(estimates)[:, 0], [0.5, 0.5, 0.75])
    np.testing.assert_allclose(found.apply(np.array([[0.6], [0.1], [0.9]]))[:, 0], [0.625, 0.5, 0.75])


def test_table_holds_words_components_and_statistics():
    features = Features(visual=9, question=True, statistics="tower")
    table = Table.fit(TRAIN.inputs, features, max_words=5, num_components=3)
    rows = table.apply(TEST.inputs)
    assert rows.shape == (len(TEST), 5 + 3 + 1)
    words = set(TEST.inputs.question[0].split())
    assert {word for word, there in zip(table.words, rows[0], strict=False) if there} >= words & set(
        table.words
    )
    np.testing.assert_allclose(table.apply(TRAIN.inputs)[:, 5:8].mean(axis=0), 0, atol=0.1)


@pytest.mark.parametrize(
    "predictor", [BOOSTING, functools.partial(LearnedPredictor, network=MLP, max_epochs=1)]
)
def test_estimates_do_not_depend_on_which_other_images_are_at_hand(predictor):
    """Tiled images differ in visual tokens: each scale keeps its places, whatever the longest image is."""

    def vary(labels):
        coarse = labels.inputs.visual[1].tokens
        lengths = 1 + np.arange(len(coarse)) % 4
        tokens = [np.repeat(row, number, axis=0) for row, number in zip(coarse, lengths, strict=True)]
        return replace(
            labels,
            inputs=replace(labels.inputs, visual={**labels.inputs.visual, 1: VisualTokens.pad(tokens)}),
        )

    train, validation = (vary(make_labels(60, seed)) for seed in (0, 1))
    fitted = predictor(features=Features(visual=[1, NUM_COARSE])).fit(train, validation)
    together = fitted.predict(validation.inputs)

    def trim(inputs):
        each = inputs.visual[1]
        tokens = VisualTokens.pad([row[real] for row, real in zip(each.tokens, each.mask, strict=True)])
        return replace(inputs, visual={**inputs.visual, 1: tokens})

    alone = [fitted.predict(trim(validation.inputs.select([row]))) for row in range(8)]
    assert np.concatenate(alone) == pytest.approx(together[:8], abs=1e-5)


def test_few_trees_are_at_least_one():
    fitted = BOOSTING(max_trees=3).fit(make_labels(40, 0), make_labels(20, 1))
    assert np.ptp(fitted.predict(make_labels(20, 2).inputs), axis=0).max() > 0
