"""An adaptive model whose predictor reads the decoder's state after the coarsest scale."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation.costs import TOKENS
from experiments.evaluation.policies import CascadePolicy, ScoredSamples
from experiments.training.trainer import fit_hybrid
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveVLM
from predictor.cascades.hybrid import ExpectedGain, Hybrid
from predictor.classical.nearest import NearestNeighbours
from predictor.features import Features
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.experiments.labels.test_native_backbone import NativeBackbone
from tests.predictor.adaptive.test_model import COLOR, COUNT, make_parts
from tests.predictor.synthetic import label

WORDS = ("red", "blue", "large", "small", "left", "right", "top", "round", "one", "two")
GATE = Features(visual=[], decoder_state=True)


@pytest.fixture(scope="module")
def model(backbone, images):
    """Colors need the coarsest scale, counts the finest one; escalation goes on below a confidence of 0.5."""
    encoded = backbone.encode(images)
    inputs = make_inputs(
        backbone,
        [encoded[0], encoded[0], encoded[1], encoded[1]],
        [COLOR, COUNT] * 2,
        GATE,
        token_embeddings=backbone.token_embeddings(),
    )
    predictor = NearestNeighbours(features=GATE, num_neighbours=(1,)).fit(*make_parts(backbone, inputs))
    num_scales = len(backbone.scales)
    current, following = np.zeros((2, num_scales - 1, num_scales + 2))
    current[:, 0] = 1
    one = np.zeros(1)
    hybrid = Hybrid(
        price=one,
        cost=np.array([40.0]),
        score=one,
        starting_price=np.array([np.inf]),
        escalation_price=one,
        unit=float(backbone.scales[-1]),
        gain=ExpectedGain(current, following),
    )
    point = OperatingPoint(0.2, backbone.scales[-1], 300, 0.9)
    return AdaptiveVLM(backbone, predictor, PriceList(point, (point,)), hybrid)


def count_work(backbone, run):
    before = dataclasses.replace(backbone.work)
    return run(), backbone.work.since(before)


def test_the_prefill_of_the_coarsest_scale_runs_once(model, backbone, images):
    coarsest, finest = backbone.scales[0], backbone.scales[-1]
    questions = [COUNT, COLOR]
    encoded = backbone.encode(images)
    _, prefill = count_work(backbone, lambda: backbone.prefill(encoded, questions, coarsest))
    (fine,), again = count_work(backbone, lambda: backbone.answer(encoded[:1], [COUNT], finest))
    results, work = count_work(backbone, lambda: model.answer(images, questions))
    assert [result.scale for result in results] == [finest, coarsest]
    assert work.prefix_tokens == prefill.prefix_tokens + again.prefix_tokens
    assert work.question_tokens == prefill.question_tokens + again.question_tokens
    assert results[0].answer.token_ids == fine.token_ids
    coarse = backbone.answer(encoded[1:], [COLOR], coarsest)[0]
    assert results[1].answer.token_ids == coarse.token_ids
    # The count pays the coarsest scale, which the predictor has read; the color is answered there.
    tokens = [backbone.num_visual_tokens(images[0].size, scale) for scale in (coarsest, finest)]
    assert [result.cost for result in results] == [sum(tokens), tokens[0]]
    assert [result.choice.cost for result in results] == [sum(tokens), tokens[0]]


def test_a_hybrid_starts_from_the_same_prefill(model, backbone, images):
    coarsest = backbone.scales[0]
    encoded = backbone.encode(images[:1])
    (result,), work = count_work(backbone, lambda: model.answer(images[:1], [COUNT], escalate=True))
    assert result.tried[0] == coarsest and result.choice.prefilled_tokens == 0
    num_prefixes = [
        count_work(backbone, lambda scale=scale: backbone.answer(encoded, [COUNT], scale))[1].prefix_tokens
        for scale in result.tried
    ]
    assert work.prefix_tokens == sum(num_prefixes)


def test_the_model_is_saved_and_loaded(model, backbone, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AdaptiveVLM.from_pretrained(tmp_path, backbone=backbone)
    assert loaded.predictor.features.decoder_state
    asked = [*images, images[0]], [COUNT, COLOR, COLOR]
    before = model.answer(*asked)
    after = loaded.answer(*asked)
    assert [result.choice for result in after] == [result.choice for result in before]
    assert [result.text for result in after] == [result.text for result in before]
    assert loaded.answer([], []) == []


@pytest.mark.long
@pytest.mark.parametrize("asks", [False, True])
def test_the_saved_hybrid_takes_the_decisions_of_evaluation(backbone, images, asks, tmp_path):
    """Both count the prefill of the coarsest scale; that of self-asking is the same at every scale."""
    features = Features(
        visual=[], decoder_state=True, self_asking="Can you see it: {question}" if asks else False
    )
    encoded = [image for image in backbone.encode(images) for _ in WORDS]
    questions = [f"What is {word}?" for word in WORDS] * len(images)
    embeddings = backbone.token_embeddings()
    inputs = make_inputs(backbone, encoded, questions, features, token_embeddings=embeddings)
    shape = (len(questions), len(backbone.scales))
    rng = np.random.default_rng(0)
    train, calibration = (
        label(
            inputs,
            (rng.random(shape) < np.linspace(0.2, 0.8, shape[1])).astype(np.float32),
            image_prefix=side,
            fingerprints={**backbone.fingerprints, "data": "dd"},
        )
        for side in ("train", "calibration")
    )
    answers = [backbone.answer(encoded, questions, scale) for scale in backbone.scales]
    confidence = np.array([[answer.confidence for answer in row] for row in answers], dtype=np.float32).T
    table = dataclasses.replace(calibration.outcomes, confidence=confidence)
    predictor = NearestNeighbours(features=features, num_neighbours=(3,)).fit(train, calibration)
    estimates, paid_tokens = predictor.predict(inputs), features.count_paid_tokens(inputs)
    hybrid = fit_hybrid(estimates, table, paid_tokens, None, 0.0)
    point = OperatingPoint(0.2, backbone.scales[-1], 300, 0.9)
    AdaptiveVLM(backbone, predictor, PriceList(point, (point,)), hybrid).save_pretrained(tmp_path)
    loaded = AdaptiveVLM.from_pretrained(tmp_path, backbone=backbone)

    measure = dataclasses.replace(TOKENS, state_readers=["hybrid"])
    samples = ScoredSamples.of(table, measure, "hybrid")
    decisions = CascadePolicy("hybrid", Hybrid.fit, (estimates, estimates)).decide(
        samples, samples.inputs, 128
    )
    evaluated_cost = decisions.paths.cost(samples) + asks * samples.tokens[:, :1]
    starts = set()
    assert len(decisions.price) > 3
    for row, price in enumerate(decisions.price):
        paths = decisions.test.at(row)
        results = loaded.escalate(encoded, questions, loaded.find_hybrid(price=price))
        tried = [[backbone.scales.index(scale) for scale in result.tried] for result in results]
        assert [columns[0] for columns in tried] == decisions.paths.start[paths].tolist()
        assert [columns[-1] for columns in tried] == decisions.paths.stop[paths].tolist()
        costs = [result.cost for result in results]
        assert costs == evaluated_cost[np.arange(len(paths)), paths].tolist()
        # The cost that is saved for budgets is what the answers pay.
        assert np.mean(costs) == pytest.approx(loaded.find_hybrid(price=price).cost[0])
        starts |= {columns[0] for columns in tried}
    assert len(starts) > 1


def test_a_backbone_without_states_is_an_error():
    backbone = NativeBackbone()
    encoded = backbone.encode([Image.new("RGB", (64, 48))])
    with pytest.raises(ValueError, match="native gives no states of its decoder"):
        make_inputs(backbone, encoded, [COLOR], GATE, token_embeddings=backbone.token_embeddings())
