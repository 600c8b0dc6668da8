"""Drawn answers: at next to no temperature they are the greedy ones, and a seed makes them again."""

from pathlib import Path

import pytest
from PIL import Image

from m3_backbone.llava import LlavaBackbone
from m3_backbone.sampling import draw_answers

FIXTURE = Path(__file__).parent.parent / "fixtures" / "official_m3" / "llava15"


@pytest.fixture(scope="module")
def backbone():
    return LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=4)


@pytest.fixture(scope="module")
def questions():
    images = [Image.open(FIXTURE / f"image{number}.png").convert("RGB") for number in (0, 1)]
    return [(images[0], "What is it?"), (images[1], "How many are there, and of which color?")]


def test_cold_answers_are_the_greedy_ones(backbone, questions):
    encoded = backbone.encode([image for image, _ in questions])
    greedy = backbone.answer(encoded, [question for _, question in questions], 9)
    cold = list(draw_answers(backbone, questions, 9, num_runs=3, temperature=1e-5))
    assert cold == [[answer.text] * 3 for answer in greedy]


def test_a_seed_draws_the_same_answers_and_another_others(backbone, questions):
    first, again, other = (
        list(draw_answers(backbone, questions, 36, num_runs=4, temperature=5.0, batch_size=1, seed=seed))
        for seed in (0, 0, 1)
    )
    assert first == again != other and [len(row) for row in first] == [4, 4]
    with pytest.raises(ValueError, match="temperature above 0, not 0"):
        next(draw_answers(backbone, questions, 9, num_runs=2, temperature=0))
    with pytest.raises(ValueError, match="7"):
        next(draw_answers(backbone, questions, 7, num_runs=2))
