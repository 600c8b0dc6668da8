"""Every predictor of conf/predictor on hardly any training data: it fits, predicts, is saved and loaded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3_backbone.outcomes.labels import Labels, VisualTokens
from predictor.base import ScalePredictor
from predictor.calibration import Isotonic, Temperature
from predictor.cascades.hybrid import Hybrid
from predictor.classical.boosting import GradientBoosting
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.training import make_schedule
from tests.experiments.training.test_predictor_configs import NAMES, make_predictor
from tests.predictor.synthetic import label, make_labels, with_asking, with_states, with_thumbnails


def rewrite(labels, question, question_ids):
    """The same samples with one question for all."""
    questions, ids = [question] * len(labels), [np.array(question_ids, dtype=np.int32)] * len(labels)
    return Labels(
        inputs=replace(labels.inputs, question=questions, question_ids=ids),
        outcomes=replace(labels.outcomes, question=np.array(questions, dtype=object), question_ids=ids),
    )


def with_scores(labels, score):
    return replace(
        labels, outcomes=replace(labels.outcomes, score=np.full_like(labels.outcomes.score, score))
    )


def with_costs(labels, cost):
    return Labels(
        inputs=replace(labels.inputs, visual_tokens=cost),
        outcomes=replace(labels.outcomes, visual_tokens=cost),
    )


def flatten(labels):
    """Constant features: every image is the same."""
    inputs = labels.inputs
    visual = {
        scale: VisualTokens(np.ones_like(each.tokens), each.mask) for scale, each in inputs.visual.items()
    }
    return replace(
        labels, inputs=replace(inputs, visual=visual, statistics=np.full_like(inputs.statistics, 40))
    )


def keep_one_scale(labels):
    inputs = replace(labels.inputs, scales=(9,), visual_tokens=labels.inputs.visual_tokens[:, 1:2])
    prefix = str(labels.outcomes.image_id[0]).rsplit("-", 1)[0]
    return label(inputs, labels.outcomes.score[:, 1:2], image_prefix=prefix)


# (images, questions an image, what is done to the labels)
CASES = {
    "one question without a word": (1, 1, lambda labels: rewrite(labels, "?!", [0])),
    "empty questions, equal costs": (
        2,
        1,
        lambda labels: with_costs(rewrite(labels, "", []), np.full_like(labels.inputs.visual_tokens, 9)),
    ),
    "identical questions on identical images, all right": (
        3,
        2,
        lambda labels: flatten(with_scores(rewrite(labels, "count it", [1, 2]), 1)),
    ),
    "one scale, all wrong": (2, 2, lambda labels: with_scores(keep_one_scale(labels), 0)),
    "finer is cheaper": (
        3,
        2,
        lambda labels: with_costs(labels, labels.inputs.visual_tokens[:, ::-1].copy()),
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.long
def test_hardly_any_training_data(name, tmp_path):
    overrides = ["predictor.scale=9"] if name == "fixed" else []
    for number, (num_images, num_questions, change) in enumerate(CASES.values()):
        train, validation, calibration = (
            with_asking(with_thumbnails(with_states(change(make_labels(num_images, seed, num_questions)))))
            for seed in range(3)
        )
        predictor = make_predictor(name, *overrides).fit(train, validation)
        calibrator = Temperature() if number % 2 else Isotonic()
        predictor.calibrate(calibration, calibrator).save(tmp_path / str(number))
        estimates = predictor.predict(calibration.inputs)
        assert np.isfinite(estimates).all() and estimates.min() >= 0 and estimates.max() <= 1
        loaded = ScalePredictor.load(tmp_path / str(number))
        np.testing.assert_allclose(loaded.predict(calibration.inputs), estimates, atol=1e-6)
        outcomes = calibration.outcomes
        hybrid = Hybrid.fit(outcomes.confidence, outcomes.score, outcomes.visual_tokens, estimates)
        assert np.isfinite(hybrid.score).all()


def test_questions_without_a_word_leave_question_only_the_mean():
    """12 questions, of which 3, 6 and 9 are right: (k + 0.5) / 13 for every question, of any words."""
    train, validation = (rewrite(make_labels(6, seed, 2), "?!", [0]) for seed in range(2))
    score = np.arange(12)[:, None] < np.array([3, 6, 9])
    train = replace(train, outcomes=replace(train.outcomes, score=score.astype(np.float32)))
    estimates = QuestionOnly().fit(train, validation).predict(make_labels(3, 2).inputs)
    np.testing.assert_allclose(estimates, np.tile(np.array([3.5, 6.5, 9.5]) / 13, (12, 1)))


def test_words_of_one_letter_are_words():
    train, validation = (rewrite(make_labels(6, seed, 2), "a b", [0]) for seed in range(2))
    assert QuestionOnly().fit(train, validation).num_parameters == 3 * (3 + 1)  # a, b, "a b"; a bias


@pytest.mark.parametrize("kind", [GradientBoosting, NearestNeighbours])
def test_nothing_to_read_gives_the_same_estimate_for_all(kind):
    train, validation = (rewrite(make_labels(12, seed, 2), "?!", [0]) for seed in range(2))
    predictor = kind(features=Features(question=True)).fit(train, validation)
    estimates = predictor.predict(validation.inputs)
    np.testing.assert_allclose(estimates, estimates[:1].repeat(len(estimates), axis=0))


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9, 10, 11, 20, 200])
def test_the_schedule_is_valid_for_every_number_of_steps(num_steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, 1.0, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.isfinite(rates).all() and max(rates) <= 1 and max(rates) > 0.7
    if num_steps > 10:
        parameter = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        usual = torch.optim.lr_scheduler.OneCycleLR(parameter, 1.0, total_steps=num_steps, pct_start=0.1)
        assert rates[0] == usual.get_last_lr()[0]
