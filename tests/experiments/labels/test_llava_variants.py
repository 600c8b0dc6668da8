"""Labels of learned queries, shrunk images and pruned tokens, and predictors in front of them."""

import numpy as np
import pytest
from PIL import Image

from experiments.labels.block_labels import BlockLabels
from experiments.labels.blocks import Block, ImageQuestions
from experiments.labels.folder import KeptInputs
from experiments.tasks.base import Sample
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.llava.pruned import PrunedLlavaBackbone
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveM3
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.predictor.synthetic import label
from tests.query_checkpoint import write_query_checkpoint

QUESTIONS = ("what color is it?", "how many are there?")


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    folder = write_query_checkpoint(tmp_path_factory.mktemp("mqt") / "mqt")
    return LlavaBackbone(folder, name="mqt", dtype="float32", device="cpu", max_new_tokens=3)


@pytest.fixture(scope="module")
def shrunk():
    return DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu", max_new_tokens=3)


@pytest.fixture(scope="module")
def pruned():
    arguments = {"dtype": "float32", "device": "cpu", "max_new_tokens": 3}
    return PrunedLlavaBackbone("tiny_m3", pruning="class_attention", scales=[5, 128], **arguments)


@pytest.fixture(scope="module")
def enlarged():
    return DownsampledLlavaBackbone(
        "tiny_m3", dtype="float32", device="cpu", max_new_tokens=3, downsampling="enlarged"
    )


@pytest.fixture(params=["queries", "shrunk", "pruned"])
def backbone(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (2, 80, 120, 3), dtype=np.uint8)
    return {f"image{i}": Image.fromarray(pixels[:, : 120 - 60 * i]) for i, pixels in enumerate(noise)}


@pytest.mark.long
def test_labels_are_the_answers_one_by_one(backbone, pictures):
    samples = {
        image: [
            Sample(f"{image}{i}", image, "toy", "train", question, ("red",), "exact")
            for i, question in enumerate(QUESTIONS)
        ]
        for image in pictures
    }
    labels = BlockLabels(backbone, KeptInputs(backbone.feature_scales))
    block = Block("0", (*samples["image0"], *samples["image1"]))
    labels.add([ImageQuestions(block, samples[image], picture) for image, picture in pictures.items()])
    table = labels.to_table(backbone.fingerprints, lambda sample, answer: float(answer == "red"))
    assert table.family == backbone.family and not labels.skipped
    assert table.scales == backbone.scales
    assert table.visual_tokens.tolist() == [list(backbone.scales)] * 4
    for sample_id, question, texts, image_id in zip(
        table.sample_id, table.question, table.answer, table.image_id, strict=True
    ):
        alone = [
            backbone.answer(backbone.encode([pictures[image_id]]), [question], scale)[0].text
            for scale in backbone.scales
        ]
        assert texts == alone, sample_id
    assert table.vision_flops is not None
    assert len(set(table.vision_flops[0])) == (1 if backbone.family == "pooled" else len(backbone.scales))
    for features in labels.features.values():
        assert tuple(features.visual) == backbone.feature_scales


def make_model(backbone, pictures):
    inputs = make_inputs(
        backbone,
        backbone.encode(list(pictures.values())) * 2,
        [question for question in QUESTIONS for _ in pictures],
        Features(visual=backbone.feature_scales, statistics=("tower", "image")),
        token_embeddings=backbone.token_embeddings(),
    )
    fine = np.arange(len(backbone.scales)) == len(backbone.scales) - 1
    score = np.array([fine | (question == QUESTIONS[0]) for question in inputs.question], dtype=np.float32)
    fingerprints = {**backbone.fingerprints, "data": "dd"}
    train, validation = (
        label(inputs, score, image_prefix=side, fingerprints=fingerprints) for side in ("a", "b")
    )
    predictor = QuestionOnly(inverse_penalties=(1000.0,)).fit(train, validation)
    point = OperatingPoint(price=0.2, unit=backbone.scales[-1], cost=100, score=0.8)
    return AdaptiveM3(backbone, predictor, PriceList(point, (point,), {"guarantee": point}))


def test_a_predictor_chooses_the_scale(backbone, pictures):
    model = make_model(backbone, pictures)
    results = model.answer(list(pictures.values()), QUESTIONS)
    assert [result.scale for result in results] == [backbone.scales[0], backbone.scales[-1]]
    for result, picture, question in zip(results, pictures.values(), QUESTIONS, strict=True):
        (alone,) = backbone.answer(backbone.encode([picture]), [question], result.scale)
        assert result.answer.token_ids == alone.token_ids


def test_a_coarse_answer_runs_no_fine_vision_pass(shrunk, pictures, monkeypatch):
    sides = []
    inner = shrunk.model.model
    encode = inner.encode_shrunk

    def record(pixels):
        sides.append(pixels.shape[-1])
        return encode(pixels)

    monkeypatch.setattr(inner, "encode_shrunk", record)
    make_model(shrunk, pictures).answer(list(pictures.values()), [QUESTIONS[0]] * 2)
    assert set(sides) == {shrunk.processor.images.patch_size}


@pytest.mark.long
@pytest.mark.parametrize("name", ["queries", "pruned", "enlarged"])
def test_an_adaptive_model_is_saved_and_loaded(name, pictures, tmp_path, request):
    opened = request.getfixturevalue(name)
    model = make_model(opened, pictures)
    model.save_pretrained(tmp_path / "saved")
    loaded = AdaptiveM3.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.backbone.fingerprints == opened.fingerprints
    assert loaded.backbone.scales == opened.scales
    answers = [m.answer(list(pictures.values()), QUESTIONS) for m in (model, loaded)]
    assert [(a.text, a.tried) for a in answers[0]] == [(a.text, a.tried) for a in answers[1]]
