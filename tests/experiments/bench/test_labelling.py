"""The labelling benchmark, at a size that says nothing but that its counts are right."""

import json
from typing import Any

import pytest

from experiments.bench.labelling import measure, read_pictures, report
from experiments.tasks.scenes import Scenes
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.random_llava import RandomLlavaBackbone

TINY: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 4,
    "vision_size": 32,
    "num_vision_layers": 2,
    "num_vision_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 500,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def pictures():
    return read_pictures(Scenes(seed=5), "test", 3, 4)


@pytest.mark.long
def test_the_packaged_model_answers_alike_in_every_way(pictures, capsys):
    found = measure(LlavaBackbone("tiny_m3", dtype="float32", device="cpu"), pictures, num_naive=5, repeats=1)
    assert found["answers_that_differ"] == 0
    assert (found["num_images"], found["num_questions"]) == (3, sum(len(samples) for _, samples in pictures))
    assert 0 < found["draft_acceptance"] <= 1 and found["padding_share"] < 0.05
    assert 0 < found["share_of_matrix_peak"] < 1
    report(found)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


@pytest.mark.parametrize("acceptance", [0.0, 1.0])
def test_random_weights_draw_answers_as_they_are_told(pictures, acceptance):
    backbone = RandomLlavaBackbone(acceptance=acceptance, answer_lengths=(2, 4), **TINY)
    encoded = backbone.encode([pictures[0][0]]) * 2
    questions, references = ["What color?", "How many?"], [["red"], ["12"]]
    answers = backbone.answer(encoded, questions, 9, references=references)
    expected = [backbone.processor.answer_ids(row[0]) for row in references]
    for answer, reference in zip(answers, expected, strict=True):
        assert (answer.token_ids == reference) == (acceptance == 1)
        assert acceptance == 1 or 2 <= len(answer.token_ids) <= 4
    assert backbone.work.num_drafted == 2 * acceptance


@pytest.mark.long
def test_plain_generation_is_made_as_long_as_the_drawn_answers(pictures):
    backbone = RandomLlavaBackbone(**TINY)
    found = measure(backbone, pictures, num_naive=3, repeats=1)
    assert found["answers_that_differ"] is None
    assert found["scales"] == [1, 9, 36, 144]


def test_acceptance_is_a_probability():
    with pytest.raises(ValueError, match=r"acceptance=1\.5: give a number from 0 to 1"):
        RandomLlavaBackbone(acceptance=1.5, **TINY)
