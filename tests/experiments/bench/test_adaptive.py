"""The adaptive benchmark, at a size that says nothing but that what it returns is right."""

import functools
import json

import numpy as np
import pytest

from experiments.bench.adaptive import ADAPTIVE, measure, read_questions, report
from experiments.bench.drawn_choices import draw_choices
from experiments.tasks.scenes import Scenes
from m3_backbone.costs import prefill_flops
from m3_backbone.llava.costs import vision_flops
from m3_backbone.llava.random_llava import RandomLlavaBackbone
from predictor.learned import LearnedPredictor
from predictor.networks.cross_attention import CrossAttention
from tests.experiments.bench.test_labelling import TINY

SHARES = {1: 0.5, 9: 0.0, 36: 0.5, 144: 0.0}


@pytest.fixture(scope="module")
def adaptive():
    backbone = RandomLlavaBackbone(answer_lengths=(1, 2), **TINY)
    predictor = LearnedPredictor(network=functools.partial(CrossAttention, width=16), max_epochs=1)
    return draw_choices(backbone, predictor, questions(), SHARES, seed=0)


@functools.cache
def questions():
    return read_questions(Scenes(seed=5), "calibration", 5)


@pytest.mark.long
def test_it_measures_every_way(adaptive, capsys):
    found = measure(adaptive, adaptive.prices.default, questions(), batch_sizes=[1, 4], repeats=2)
    scales = [str(scale) for scale in adaptive.backbone.scales]
    for size in (1, 4):
        timed = found[f"batch_size_{size}"]
        assert set(timed["milliseconds"]) == {ADAPTIVE, *scales}
        assert set(timed["times_as_fast_as"]) == set(scales)
        assert min(timed["milliseconds"].values()) > 0 and timed["milliseconds_of_predictor"] > 0
    assert sum(found["chosen"].values()) == pytest.approx(1)
    assert found["chosen"]["9"] == found["chosen"]["144"] == 0
    assert found["visual_tokens"][ADAPTIVE] == pytest.approx(
        found["chosen"]["1"] * 1 + found["chosen"]["36"] * 36
    )
    report(found)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_flops_are_those_of_the_formulas(adaptive):
    backbone = adaptive.backbone
    found = measure(adaptive, adaptive.prices.default, questions()[:1], batch_sizes=[1], repeats=1)["gflops"]
    config, question = backbone.checkpoint.config, questions()[0][1]
    before, after = backbone.processor.prompt_parts(backbone.processor.template.format(question))
    for scale in backbone.scales:
        whole = vision_flops(config) + prefill_flops(config, len(before) + scale + len(after))
        assert found[str(scale)] == pytest.approx(whole / 1e9)
    assert found["predictor"] > 0
    assert found[ADAPTIVE] - found["predictor"] in (pytest.approx(found["1"]), pytest.approx(found["36"]))


def test_choices_are_drawn_by_their_shares(adaptive):
    encoded = adaptive.backbone.encode([questions()[0][0]]) * 400
    chosen = [choice.scale for choice in adaptive.choose(encoded, [questions()[0][1]] * 400)]
    assert set(chosen) == {1, 36}
    assert np.mean(np.array(chosen) == 1) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("shares", "message"), [({7: 1.0}, "drawn has scale 7"), ({1: 0.5}, "not negative and sum to 1")]
)
def test_shares_that_cannot_be_are_refused(adaptive, shares, message):
    with pytest.raises(ValueError, match=message):
        draw_choices(adaptive.backbone, adaptive.predictor.predictor, questions(), shares, seed=0)
