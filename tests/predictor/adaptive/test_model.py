"""ScalePredictor and backbone joined, on a small random checkpoint in the authors' layout."""

import functools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveM3, AdaptiveVLM
from predictor.cascades.hybrid import ExpectedGain, Hybrid
from predictor.classical.baselines import FixedScale
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.learned import LearnedPredictor
from predictor.networks.cross_attention import CrossAttention
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.experiments.labels.test_native_backbone import NativeBackbone
from tests.paths import FIXTURES
from tests.predictor.synthetic import label

FIXTURE = FIXTURES / "official_m3" / "llava15"
COLOR, COUNT = "What color is it?", "How many are there?"
FEATURES = Features(visual=(1, 9), question=True, statistics=("tower", "image"))
FREE = OperatingPoint(price=0, unit=1, cost=1, score=1)


@pytest.fixture(scope="module")
def inputs(backbone, images):
    encoded = backbone.encode(images)
    return make_inputs(
        backbone,
        [encoded[0], encoded[0], encoded[1], encoded[1]],
        [COLOR, COUNT] * 2,
        FEATURES,
        token_embeddings=backbone.token_embeddings(),
    )


def make_parts(backbone, inputs):
    """Train and validation: questions on color are right at every scale, on counts at the finest alone."""
    fine = np.arange(len(backbone.scales)) == len(backbone.scales) - 1
    score = np.array([fine | (question == COLOR) for question in inputs.question], dtype=np.float32)
    return [
        label(
            inputs,
            score,
            image_prefix=side,
            fingerprints={**backbone.fingerprints, "data": "dd"},
        )
        for side in ("train", "validation")
    ]


def test_inputs_are_what_labelling_stores(backbone, images, inputs):
    encoded = backbone.encode(images)
    assert inputs.scales == backbone.scales
    assert inputs.image_row.tolist() == [0, 0, 1, 1]
    for row, image in enumerate(encoded):
        for scale in (1, 9):
            tokens = backbone.visual_tokens([image], scale)[0].half().numpy()
            np.testing.assert_array_equal(inputs.visual[scale].tokens[row, : len(tokens)], tokens)
        (stored,) = backbone.compute_features([image], (1, 9, 36))
        assert inputs.statistic_names == tuple(stored.statistics)
        np.testing.assert_allclose(inputs.statistics[row], list(stored.statistics.values()), rtol=1e-6)
    assert inputs.visual_tokens[0].tolist() == [
        len(backbone.visual_tokens(encoded[:1], scale)[0]) for scale in backbone.scales
    ]
    assert inputs.question_ids[1].tolist() == backbone.question_ids(COUNT)


@pytest.fixture
def joined(backbone, inputs):
    """Colors need the coarsest scale, counts the finest, at the default price; the named one pays nothing."""
    predictor = QuestionOnly(inverse_penalties=(1000.0,)).fit(*make_parts(backbone, inputs))
    unit = backbone.scales[-1]
    points = (OperatingPoint(0.2, unit, 300, 0.9), OperatingPoint(4, unit, 1, 0.5))
    return AdaptiveM3(backbone, predictor, PriceList(points[0], points, {"guarantee": FREE}))


def test_each_question_is_answered_at_its_own_scale(backbone, images, joined):
    asked = [images[0], images[1], images[0]], [COUNT, COLOR, COLOR]
    results = joined.answer(*asked)
    coarsest, finest = backbone.scales[0], backbone.scales[-1]
    assert [result.choice.scale for result in results] == [finest, coarsest, coarsest]
    for image, question, result in zip(*asked, results, strict=True):
        encoded = backbone.encode([image])
        alone = backbone.answer(encoded, [question], result.choice.scale)[0]
        assert (result.text, result.answer.token_ids) == (alone.text, alone.token_ids)
        assert result.choice.cost == len(backbone.visual_tokens(encoded[:1], result.choice.scale)[0])
        assert len(result.choice.estimates) == len(result.choice.visual_tokens) == len(backbone.scales)


def test_price_budget_and_name_set_the_operating_point(backbone, images, joined):
    def choose(**arguments):
        return [result.choice.scale for result in joined.answer(images, [COUNT, COLOR], **arguments)]

    coarsest, finest = backbone.scales[0], backbone.scales[-1]
    assert choose(point="default") == choose(budget=300) == choose(price=0.2) == [finest, coarsest]
    assert choose(budget=1) == choose(price=4) == [coarsest, coarsest]
    assert choose(point="risk") == choose(point="guarantee")  # its former name
    results = joined.answer(images, [COUNT, COLOR], point="guarantee")
    free = [max(result.choice.estimates) for result in results]
    for result, best in zip(results, free, strict=True):
        assert result.choice.estimates[backbone.scales.index(result.choice.scale)] == best
    with pytest.raises(ValueError, match="not several"):
        choose(price=1, budget=1)
    with pytest.raises(ValueError, match="only default, guarantee"):
        choose(point="nowhere")
    with pytest.raises(ValueError, match="give one image per question"):
        joined.answer(images, [COUNT])
    assert joined.answer([], []) == []


@pytest.fixture(scope="module")
def make_escalating(images):
    """Starts at the coarsest scale, goes on while its answer of one token is less sure than a threshold."""
    backbone = LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=1)
    inputs = make_inputs(
        backbone,
        backbone.encode(images),
        [COLOR, COUNT],
        QuestionOnly.features,
        token_embeddings=backbone.token_embeddings(),
    )
    predictor = QuestionOnly().fit(*make_parts(backbone, inputs))
    num_scales = len(backbone.scales)

    def make(threshold):
        here, beyond = np.zeros((2, num_scales - 1, num_scales + 2))
        # This answer is right as often as it says, the next one as often as the threshold.
        here[:, 0], beyond[:, -1] = 1, np.log(threshold / (1 - threshold))
        one = np.zeros(1)
        hybrid = Hybrid(
            price=one,
            cost=np.array([40.0]),
            score=one,
            starting_price=np.array([np.inf]),
            escalation_price=one,
            unit=float(backbone.scales[-1]),
            gain=ExpectedGain(here, beyond),
        )
        return AdaptiveM3(backbone, predictor, PriceList(FREE, (FREE,), {"guarantee": FREE}), hybrid)

    return make


def test_escalation_goes_on_while_its_answer_is_unsure_and_pays_for_all(images, make_escalating):
    asked = [images[0], images[1], images[0]], [COUNT, COLOR, COLOR]
    backbone = make_escalating(0.5).backbone
    encoded = [backbone.encode([image])[0] for image in asked[0]]
    sure = np.array(
        [[each.confidence for each in backbone.answer(encoded, asked[1], scale)] for scale in backbone.scales]
    ).T
    # Between the coarsest answers' confidences: some of them are enough, others are not.
    threshold = float(np.sort(sure[:, 0])[1:].mean())
    results = make_escalating(threshold).answer(*asked, escalate=True)
    for row, result in enumerate(results):
        last = next((i for i, each in enumerate(sure[row][:-1]) if each >= threshold), len(sure[row]) - 1)
        assert result.tried == backbone.scales[: last + 1]
        assert result.scale == result.tried[-1] and result.choice.scale == backbone.scales[0]
        assert result.text == backbone.answer([encoded[row]], [asked[1][row]], result.scale)[0].text
        assert result.cost == sum(
            len(backbone.visual_tokens([encoded[row]], scale)[0]) for scale in result.tried
        )
    assert {len(result.tried) for result in results} >= {1, 2}
    assert make_escalating(threshold).answer([], [], escalate=True) == []
    former = make_escalating(threshold).answer(*asked, climb=True)
    assert [result.tried for result in former] == [result.tried for result in results]


def test_in_use_the_hybrid_does_what_evaluation_says_of_tiled_images():
    """`Hybrid.escalate` on all confidences at once, as in evaluation: same scales tried, same mean cost."""
    tiled = FIXTURE.parent / "llavanext" / "checkpoint"
    backbone = LlavaBackbone(tiled, dtype="float32", device="cpu", max_new_tokens=1)
    sizes = [(640, 480), (300, 700), (900, 200)]
    images = [
        Image.new("RGB", size, color) for size, color in zip(sizes, ("red", "blue", "green"), strict=True)
    ]
    encoded, questions = backbone.encode(images) * 4, [COLOR, COUNT] * 6
    embeddings = backbone.token_embeddings()
    inputs = make_inputs(backbone, encoded, questions, QuestionOnly.features, token_embeddings=embeddings)
    predictor = QuestionOnly().fit(*make_parts(backbone, inputs))
    confidence = np.array(
        [
            [each.confidence for each in backbone.answer(encoded, questions, scale)]
            for scale in backbone.scales
        ]
    ).T
    score = np.random.default_rng(0).random(confidence.shape) < 0.5
    cost, estimates = inputs.visual_tokens, predictor.predict(inputs)
    hybrid = Hybrid.fit(confidence, score, cost, estimates)
    model = AdaptiveM3(backbone, predictor, PriceList(FREE, (FREE,)), hybrid)
    assert len(np.unique(cost[:, -1])) == 3
    tried = []
    for row, (first, last) in enumerate(zip(*hybrid.escalate(confidence, cost, estimates), strict=True)):
        results = model.escalate(encoded, questions, hybrid.at(row))
        tried += [result.tried for result in results]
        expected = [backbone.scales[i : j + 1] for i, j in zip(first, last, strict=True)]
        assert [result.tried for result in results] == expected
        assert np.mean([result.cost for result in results]) == pytest.approx(hybrid.cost[row])
    assert max(map(len, tried)) > 1


def test_escalation_is_refused_where_it_cannot_be(images, joined, make_escalating):
    with pytest.raises(ValueError, match="no hybrid was saved"):
        joined.answer(images[:1], [COLOR], escalate=True)
    with pytest.raises(ValueError, match="'guarantee' is a point of the predictor only"):
        make_escalating(0.5).answer(images[:1], [COLOR], escalate=True, point="guarantee")
    with pytest.raises(ValueError, match=r"within 10: it is at least 40\.0"):
        make_escalating(0.5).answer(images[:1], [COLOR], escalate=True, budget=10)
    assert make_escalating(0.5).answer(images[:1], [COLOR], escalate=True, point="default")
    few = Hybrid.fit(*np.random.default_rng(0).uniform(0.1, 0.9, (4, 20, 2)))
    with pytest.raises(ValueError, match="fitted on 2 scales, but checkpoint has 5: train"):
        AdaptiveM3(joined.backbone, joined.predictor, joined.prices, few)


def test_one_vision_pass_serves_predictor_and_decoder(backbone, images, joined, monkeypatch):
    seen = []
    encode = backbone.encode

    def count(images):
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(backbone, "encode", count)
    joined.answer([images[0], images[1], images[0]], [COUNT, COLOR, COLOR])
    assert seen == [2]


def test_a_network_serves_too(backbone, images, inputs):
    network = functools.partial(CrossAttention, width=16)
    predictor = LearnedPredictor(network=network, max_epochs=1).fit(*make_parts(backbone, inputs))
    joined = AdaptiveM3(backbone, predictor, PriceList(FREE, (FREE,)))
    choice = joined.choose(backbone.encode(images[:1]), [COLOR])[0]
    np.testing.assert_allclose(choice.estimates, predictor.predict(inputs)[0], atol=1e-5)


def test_a_predictor_of_another_backbone_is_refused(backbone, inputs):
    predictor = FixedScale(scale=backbone.scales[-1]).fit(*make_parts(backbone, inputs))
    predictor.fingerprints = {**backbone.fingerprints, "weights": "others"}
    with pytest.raises(ValueError, match="weights others instead of"):
        AdaptiveM3(backbone, predictor, PriceList(FREE, (FREE,)))


def test_only_what_a_predictor_reads_is_computed(backbone, images):
    encoded = backbone.encode(images[:1])
    features = Features(statistics="image/entropy")
    inputs = make_inputs(backbone, encoded, [COLOR], features, token_embeddings=backbone.token_embeddings())
    assert not inputs.visual and {name.split("/")[0] for name in inputs.statistic_names} == {"image"}
    assert features.read_statistics(inputs).tolist() == [[pytest.approx(images[0].convert("L").entropy())]]


def test_pictures_come_in_any_form(backbone, images, joined, tmp_path):
    """A path, the bytes of its file, its pixels and the image give one answer; one question no list."""
    path = tmp_path / "image.png"
    images[0].save(path)
    expected = joined.answer([images[0]], [COUNT])
    assert isinstance(expected, list)
    for picture in (images[0], path, str(path), path.read_bytes(), np.asarray(images[0])):
        assert joined.answer(picture, COUNT) == expected[0]
        assert joined.answer([picture], COUNT) == expected[0]
        assert joined.answer(picture, [COUNT]) == expected


def test_one_picture_answers_all_questions_and_is_encoded_once(images, joined, monkeypatch):
    expected = joined.answer([images[0]] * 3, [COUNT, COLOR, COUNT])
    seen = []
    encode = joined.backbone.encode

    def count(batch):
        seen.append(len(batch))
        return encode(batch)

    monkeypatch.setattr(joined.backbone, "encode", count)
    assert joined.answer(np.asarray(images[0]), [COUNT, COLOR, COUNT]) == expected
    assert seen == [1]


@pytest.mark.parametrize(
    ("pictures", "questions", "message"),
    [
        ("image", "", "^the question is empty: ask something$"),
        ("image", [COLOR, " \n"], "^question 2 of 2: the question is empty: ask something$"),
        ("image", [COLOR, None], "question 2 of 2 is None"),
        ("image", "word " * 5000, "the question is too long"),
        (
            "image",
            "what </s> is it?",
            "the question contains '</s>', a control token of the model: remove it",
        ),
        (
            "image",
            "what <image> is it?",
            "the question contains '<image>', the placeholder of the image: remove it",
        ),
        ("image", "what \ud800?", "the question cannot be encoded as UTF-8"),
        ("two", COLOR, "2 images and 1 questions: give one image per question"),
        ("two", [COLOR] * 3, "2 images and 3 questions"),
        ("none.png", COLOR, "cannot read image 'none.png': no such file"),
        (b"", COLOR, "cannot read the image: the file is empty"),
        (b"%!PS", COLOR, "cannot read the image: not an image of a known format"),
        (np.full((4, 4, 3), 7.0), COLOR, "pixels that are not all from 0 to 1: their range is not known"),
        (Image.new("RGB", (0, 4)), COLOR, "cannot read the image: it has no pixels: 0 x 4"),
        (np.zeros((2, 4, 4, 3), np.uint8), COLOR, r"array of uint8 \[2, 4, 4, 3\]"),
        ([7], [COLOR], "a int is not an image"),
    ],
)
def test_what_cannot_be_asked_is_refused(images, joined, pictures, questions, message):
    if isinstance(pictures, str) and pictures in ("image", "two"):
        pictures = images[0] if pictures == "image" else images[:2]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        joined.answer(pictures, questions)


def test_its_representation_says_what_it_is(joined):
    assert repr(joined) == (
        "AdaptiveVLM(backbone='checkpoint', scales=[1, 9, 36, 144, 576], predictor='question_only', default "
        "price 0.2 per 576 visual tokens (300.0 visual tokens, score 0.9000 on calibration), budgets from "
        "1.0 to 300.0 visual tokens, points guarantee)"
    )


def test_it_moves_like_a_module(images, caplog):
    backbone = LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", max_new_tokens=2)
    encoded = backbone.encode(images[:1])
    inputs = make_inputs(
        backbone, encoded * 2, [COLOR, COUNT], FEATURES, token_embeddings=backbone.token_embeddings()
    )
    predictor = QuestionOnly().fit(*make_parts(backbone, inputs))
    model = AdaptiveM3(backbone, predictor, PriceList(FREE, (FREE,)))
    before = model.answer(images[0], [COLOR, COUNT])
    fingerprints = dict(backbone.fingerprints)
    assert model.eval() is model and model.to("cpu") is model and model.to(torch.float32) is model
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert not caplog.records and backbone.fingerprints == fingerprints
    assert model.to("cpu", torch.bfloat16).dtype == torch.bfloat16 == backbone.model.dtype
    assert "its predictor was trained on answers in float32" in caplog.text
    assert backbone.fingerprints["decoding"] != fingerprints["decoding"]
    assert len(model.answer(images[0], [COLOR, COUNT])) == 2
    # Back again it is what it was: weights are read anew, not rounded.
    assert model.to(dtype="float32").answer(images[0], [COLOR, COUNT]) == before
    with pytest.raises(ValueError, match="dtype is 'int8': give float32"):
        model.to(dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no GPU"):
            model.to("cuda")


def test_the_former_name_is_the_same_class():
    assert AdaptiveM3 is AdaptiveVLM
    former = pickle.dumps(AdaptiveVLM, protocol=0).replace(b"AdaptiveVLM", b"AdaptiveM3")
    assert pickle.loads(former) is AdaptiveVLM


class UnsureBackbone(NativeBackbone):
    """A native backbone of three scales, of which two coincide on a small image."""

    scales = (70, 140, 280)  # type: ignore[assignment]


SMALL, MIDDLE, LARGE = (
    Image.new("RGB", size, color)
    for size, color in (((40, 24), "red"), ((80, 64), "blue"), ((320, 240), "red"))
)


def make_native(predictor, threshold=None):
    """An adaptive model of a native backbone: SMALL has 15 tokens at every scale, MIDDLE 63 and 80 twice."""
    backbone = UnsureBackbone()
    encoded = backbone.encode([SMALL, MIDDLE, LARGE])
    features = Features(visual=70, question=True, statistics="image")
    inputs = make_inputs(
        backbone, encoded, [COLOR, COUNT, COLOR], features, token_embeddings=backbone.token_embeddings()
    )
    predictor.fit(*make_parts(backbone, inputs))
    backbone.vision_passes.clear()
    if threshold is None:
        return AdaptiveVLM(backbone, predictor, PriceList(FREE, (FREE,)))
    here, beyond = np.zeros((2, 2, 5))
    here[:, 0], beyond[:, -1] = 1, np.log(threshold / (1 - threshold))
    one = np.zeros(1)
    hybrid = Hybrid(
        price=one,
        cost=np.array([40.0]),
        score=one,
        starting_price=np.array([np.inf]),
        escalation_price=one,
        unit=280.0,
        gain=ExpectedGain(here, beyond),
    )
    return AdaptiveVLM(backbone, predictor, PriceList(FREE, (FREE,)), hybrid)


def test_a_coarse_answer_of_a_native_backbone_runs_no_fine_vision_pass():
    network = functools.partial(CrossAttention, width=8)
    coarse = make_native(LearnedPredictor(network=network, max_epochs=1))
    assert coarse.predictor.features.scales == (70,)  # the only stored scale
    choices = coarse.choose(coarse.encode([SMALL, MIDDLE, LARGE]), [COLOR, COUNT, COLOR])
    assert coarse.backbone.vision_passes == [70] * 3
    assert len(choices) == 3
    dear = OperatingPoint(price=1e9, unit=1, cost=1, score=1)
    results = coarse.answer_at(coarse.encode([LARGE, SMALL]), [COLOR, COLOR], dear)
    assert [result.scale for result in results] == [70, 70]
    assert set(coarse.backbone.vision_passes) == {70}


def test_of_coinciding_scales_the_coarsest_is_used():
    model = make_native(FixedScale(scale=280))
    results = model.answer([SMALL, MIDDLE, LARGE], [COLOR] * 3)
    assert [result.scale for result in results] == [70, 140, 280]
    assert [int(result.text) for result in results] == [result.choice.cost for result in results]
    assert model.backbone.vision_passes == [70, 140, 280]


def test_escalation_answers_coinciding_scales_once():
    # Every answer has a confidence of a half, so that each escalates to the finest scale.
    model = make_native(FixedScale(scale=70), threshold=0.9)
    results = model.answer([SMALL, MIDDLE, LARGE], [COLOR] * 3, escalate=True)
    assert [result.tried for result in results] == [(70,), (70, 140), (70, 140, 280)]
    tokens = [model.backbone.num_visual_tokens(LARGE.size, scale) for scale in model.backbone.scales]
    assert results[2].cost == sum(tokens) and results[0].cost == 15
    assert sorted(model.backbone.vision_passes) == [70] * 3 + [140] * 2 + [280]


def test_a_backbone_without_a_checkpoint_has_no_device(tmp_path):
    model = make_native(FixedScale(scale=280))
    with pytest.raises(
        ValueError, match="a UnsureBackbone has no `device`: only a backbone from a checkpoint"
    ):
        _ = model.device
    with pytest.raises(ValueError, match="a UnsureBackbone cannot be saved: only one from a checkpoint can"):
        model.save_pretrained(tmp_path)
