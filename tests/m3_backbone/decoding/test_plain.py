"""Plain decoder on models whose attention can be packed: it gives the answers of the packed decoder."""

import numpy as np
import pytest
from PIL import Image

from m3_backbone.decoding.plain import PlainDecoder
from m3_backbone.decoding.sampling import Draw
from m3_backbone.native.qwen_vl import QwenVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint

QUESTIONS = ("What color is the large square?", "How many?", "Is there a red one?")


class PlainBackbone(QwenVLBackbone):
    _decoder_class = PlainDecoder


@pytest.mark.parametrize("pass_tokens", [10**9, 0])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_plain_and_packed_batches_give_the_same_answers(tmp_path, monkeypatch, model_type, pass_tokens):
    monkeypatch.setattr(PlainDecoder, "pass_tokens", pass_tokens)
    folder = write_random_checkpoint(tmp_path, model_type)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((640, 480), (100, 300))
    ]
    questions = [*QUESTIONS, *QUESTIONS[:2]]
    draws = [Draw(1.5, (number,)) for number in range(len(questions))]
    answers = []
    for backbone_class in (QwenVLBackbone, PlainBackbone):
        backbone = backbone_class(folder, scales=(16, 64), device="cpu", dtype="float32", max_new_tokens=6)
        first, second = backbone.encode(images)
        encoded = [first] * len(QUESTIONS) + [second] * 2
        references = [("a red one", "blue")] * len(questions)
        greedy = backbone.answer(encoded, questions, 64, references=references)
        drafts = backbone.answer(encoded, questions, 16)
        sampled = backbone.answer(encoded, questions, 64, draws=draws, drafts=drafts)
        answers.append([*greedy, *sampled])
    for packed, plain in zip(*answers, strict=True):
        assert plain.token_ids == packed.token_ids
        assert plain.confidence == pytest.approx(packed.confidence, rel=1e-4)
        assert plain.margin == pytest.approx(packed.margin, abs=1e-4)
        assert plain.entropy == pytest.approx(packed.entropy, rel=1e-4)
        assert plain.nll == pytest.approx(packed.nll, abs=1e-4)
        assert plain.reference_tokens == packed.reference_tokens
