"""A trial chooses as the adaptive model does, at every price, without asking again."""

from dataclasses import replace

import pytest

from experiments.serving.demo.trial import try_scales
from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from tests.experiments.serving.conftest import COLOR, COUNT, draw_picture, make_fixed


@pytest.mark.parametrize("question", [COLOR, COUNT])
def test_choices_are_those_of_the_model(escalating, question):
    image = draw_picture()
    trial = try_scales(escalating, image, question)
    for terms in ({}, {"price": 0.0}, {"price": 3.0}, {"budget": 50.0}, {"point": "guarantee"}):
        expected = escalating.answer(image, question, **terms)
        point = escalating.prices.find(
            price=terms.get("price"), budget=terms.get("budget"), name=terms.get("point")
        )
        chosen = trial.choose(point)
        assert (chosen.text, chosen.tried, chosen.cost) == (expected.text, expected.tried, expected.cost)
        assert chosen.choice.estimates == pytest.approx(expected.choice.estimates)


@pytest.mark.long
def test_paths_are_those_of_the_hybrid(escalating):
    image = draw_picture("green")
    trial = try_scales(escalating, image, COUNT)
    paths = set()
    for row in range(len(escalating.hybrid.price)):
        hybrid = escalating.hybrid.at(row)
        (expected,) = escalating.escalate(escalating.encode([image]), [COUNT], hybrid)
        chosen = trial.escalate(hybrid)
        assert (chosen.text, chosen.tried, chosen.cost) == (expected.text, expected.tried, expected.cost)
        paths.add(chosen.tried)
    assert len(paths) > 1 and any(len(path) > 1 for path in paths)


def test_answers_and_costs_are_those_of_the_backbone(escalating):
    image, backbone = draw_picture(size=(120, 60)), escalating.backbone
    trial = try_scales(escalating, image, COLOR)
    encoded = backbone.encode([image])
    assert [item.scale for item in trial.answers] == [1, 9, 36, 144]
    for item in trial.answers:
        (expected,) = backbone.answer(encoded, [COLOR], item.scale)
        assert item.answer.token_ids == expected.token_ids
        assert item.visual_tokens == item.scale and item.milliseconds > 0
        assert item.flops == (
            backbone.vision_flops(image.size, item.scale)
            + backbone.prefill_flops(image.size, COLOR, item.scale)
        )


def test_coinciding_scales_are_answered_once(monkeypatch):
    """A picture of 60 x 60 pixels has 4 tokens of 32 pixels at scales 16 and 64, and 1 at scale 1."""
    backbone = open_random_backbone(
        model_type="qwen3_vl", name="q", scales=[1, 16, 64], dtype="float32", device="cpu", max_new_tokens=2
    )
    model = AdaptiveVLM(backbone, *make_fixed(backbone, 64))
    asked = []
    answer = backbone.answer

    def count(encoded, questions, scale):
        asked.append(scale)
        return answer(encoded, questions, scale)

    monkeypatch.setattr(backbone, "answer", count)
    trial = try_scales(model, draw_picture(size=(60, 60)), COUNT)
    assert asked == [1, 16]
    assert [item.visual_tokens for item in trial.answers] == [1, 4, 4]
    assert trial.answers[1].answer == trial.answers[2].answer
    expected = model.answer(draw_picture(size=(60, 60)), COUNT)
    assert trial.choose(model.prices.default).tried == expected.tried == (16,)


def test_what_the_backbone_refuses_is_refused(escalating):
    with pytest.raises(ValueError, match=r"^the question is empty: ask something$"):
        try_scales(escalating, draw_picture(), " ")


def test_numbers_that_are_not_finite_are_refused(escalating, monkeypatch):
    answer = escalating.backbone.answer
    monkeypatch.setattr(
        escalating.backbone,
        "answer",
        lambda *given: [replace(item, confidence=float("nan")) for item in answer(*given)],
    )
    with pytest.raises(ValueError, match="numbers that are not finite"):
        try_scales(escalating, draw_picture(), COLOR)
