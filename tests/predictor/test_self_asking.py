"""Self-asking among the features of predictors: how it is asked, read, and paid."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest

from experiments.evaluation.costs import list_cost_measures
from experiments.training.joining import join_labels
from m3_backbone.asking import ask_whether, check_prompt, count_asking_flops
from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.inputs import choose_scales, make_inputs
from predictor.base import ScalePredictor
from predictor.classical.controls import randomize
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.pooled import Linear
from predictor.policy.pricing import OperatingPoint
from tests.experiments.labels.test_native_backbone import IMAGES
from tests.paths import FIXTURES
from tests.predictor.synthetic import make_labels

PROMPT = "Can you see it: {question}"
ASKING = Features(visual=[], self_asking=True)


def with_asking(labels, prompt=PROMPT):
    """The labels with log-odds that say whether the coarsest scale is right, at 10 to 12 operations."""
    noise = np.random.default_rng(len(labels)).normal(size=len(labels))
    log_odds = (2 * labels.outcomes.score[:, 0] - 1 + 0.3 * noise).astype(np.float32)
    asked = {"yes_log_odds": log_odds, "asking_flops": 10 + np.arange(len(labels), dtype=np.int64) % 3}
    return dataclasses.replace(
        labels,
        inputs=dataclasses.replace(labels.inputs, **asked, asking_prompt=prompt),
        outcomes=dataclasses.replace(labels.outcomes, **asked),
    )


def make_predictor(**arguments):
    settings = {"max_epochs": 20, "batch_size": 16, "learning_rate": 3e-2, "average_decay": 0.5, **arguments}
    return LearnedPredictor(network=partial(Linear), features=ASKING, name="self_asking", **settings)


@pytest.fixture(scope="module")
def parts():
    return with_asking(make_labels(60, 0)), with_asking(make_labels(30, 1, split="validation"))


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone(FIXTURES / "official_m3" / "llava15" / "checkpoint", max_new_tokens=2)


def test_the_log_odds_are_those_of_the_likelier_spellings(backbone):
    encoded = backbone.encode([*IMAGES.values()])
    questions = ["What color is it?", "How many?"]
    log_odds = ask_whether(backbone, encoded, questions, PROMPT)
    for image, question, value in zip(encoded, questions, log_odds, strict=True):
        mean_nll = {}
        for text in ("yes", "Yes", "no", "No"):
            asked = PROMPT.format(question=question)
            (answer,) = backbone.answer([image], [asked], 1, references=[[text]])
            mean_nll[text] = answer.nll, answer.reference_tokens
        yes, no = (-math.prod(min(mean_nll[low], mean_nll[low.title()])) for low in ("yes", "no"))
        assert value == pytest.approx(yes - no, abs=1e-4)
    flops = backbone.prefill_flops((40, 30), "Can you see it: Why?", 1) + backbone.decode_flops_per_token()
    assert count_asking_flops(backbone, (40, 30), "Why?", PROMPT) == flops
    with pytest.raises(ValueError, match=r"self_asking_prompt=Can you see it: write \{question\} where"):
        check_prompt("Can you see it")


@pytest.mark.long
def test_a_linear_layer_calibrates_the_log_odds(parts, tmp_path):
    train, validation = parts
    predictor = make_predictor().fit(train, validation)
    estimates, right = predictor.predict(validation.inputs)[:, 0], validation.outcomes.score[:, 0] > 0
    assert estimates[right].mean() > estimates[~right].mean() + 0.5
    assert predictor.features.self_asking == PROMPT and predictor.reads_backbone
    predictor.save(tmp_path)
    loaded = ScalePredictor.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(validation.inputs)[:, 0], estimates)
    blind = predictor.predict(randomize(validation.inputs, np.random.default_rng(0)))[:, 0]
    assert abs(blind[right].mean() - blind[~right].mean()) < 0.3
    with pytest.raises(ValueError, match=r"these labels were made with 'Really: \{question\}'"):
        predictor.predict(with_asking(validation, "Really: {question}").inputs)


def test_labels_that_were_not_asked_are_refused(parts):
    plain = make_labels(20, 0), make_labels(20, 1, split="validation")
    with pytest.raises(ValueError, match="tokenscale label self_asking=true"):
        make_predictor().fit(*plain)
    for other in (plain[0], with_asking(plain[0], "Really: {question}")):
        assert join_labels({"first": parts[0], "other": other}).inputs.yes_log_odds is None
    joined = join_labels({"first": parts[0], "second": parts[1]}).inputs
    assert joined.yes_log_odds is not None and joined.asking_prompt == PROMPT
    with pytest.raises(ValueError, match="self-asking with different prompts"):
        Features.union(ASKING, Features(self_asking=PROMPT))


def test_asking_is_paid_at_every_scale(parts, backbone):
    train, validation = parts
    predictors = {
        "question_only": QuestionOnly().fit(train, validation),
        "self_asking": make_predictor(max_epochs=1).fit(train, validation),
    }
    inputs = validation.inputs
    coarsest = inputs.visual_tokens[:, :1]
    features = predictors["self_asking"].features
    assert (features.count_paid_tokens(inputs) == inputs.visual_tokens + coarsest).all()
    measures = list_cost_measures(
        validation.outcomes, predictors, inputs, starts_from={"hybrid": "self_asking"}
    )
    tokens, flops = measures
    assert tokens.overhead == dict.fromkeys(("self_asking", "hybrid"), coarsest.mean())
    own = predictors["self_asking"].count_own_flops(inputs)
    assert flops.overhead["self_asking"] == pytest.approx((inputs.asking_flops.mean() + own) / 1e9)
    assert "self_asking" in flops.vision_readers and not flops.state_readers

    # In use, the model is asked with the prompt of training, and the choice names what was paid.
    encoded, questions = backbone.encode([IMAGES["large"]]), ["How many?"]
    asked = make_inputs(backbone, encoded, questions, features, token_embeddings=backbone.token_embeddings())
    expected = ask_whether(backbone, encoded, questions, PROMPT)
    assert asked.yes_log_odds is not None
    np.testing.assert_allclose(asked.yes_log_odds, expected, rtol=1e-5)
    estimates = np.zeros((1, len(backbone.scales)))
    (choice,) = choose_scales(estimates, asked, OperatingPoint(0.1, 1.0, 1.0, 1.0), features)
    assert (choice.scale, choice.cost) == (1, 2)
