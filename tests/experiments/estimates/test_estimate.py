"""`tokenscale estimate`: what it counts, hours by hand, and a checkpoint of which there are no weights."""

import json
import shutil
import sys
from typing import Any

import pytest
import torch

from experiments import estimate
from experiments.estimates.labelling import (
    LabellingWork,
    count_labelling,
    count_vision,
    measure_features,
    read_workload,
)
from experiments.estimates.steps import check_memory, estimate_labelling
from experiments.estimates.throughput import GPUS, LayerShape, measure_layer
from experiments.reporting.estimate import format_estimate, format_number, format_seconds
from experiments.tasks.easy_vqa import EasyVqa
from m3_backbone.llava.backbone import LlavaBackbone
from tests.paths import FIXTURES

CHECKPOINTS = FIXTURES / "official_m3"
LIMIT = {"train": 6, "calibration": 1, "test": 1}


def read_all(name="llava15", **arguments):
    backbone = LlavaBackbone(CHECKPOINTS / name / "checkpoint", device="cpu", dtype="bfloat16", **arguments)
    return backbone, read_workload(EasyVqa(), LIMIT, 8)


def test_work_of_all_scales_by_hand():
    """One vision pass an image; the tokens of each image once a scale, and its questions behind it."""
    backbone, workload = read_all()
    assert (workload.num_images, len(workload.sampled)) == (8, 8)
    work = count_labelling(backbone, workload, images_per_batch=32, acceptance=1.0)
    size = workload.sampled[0].size
    assert work.vision == 8 * backbone.vision_flops(size, 144)
    assert work.decoding == work.steps == 0
    # Every prompt alone has the whole prefix, so that sharing it takes less.
    alone = sum(
        backbone.prefill_flops(size, sample.question, scale)
        for image in workload.sampled
        for sample in image.samples.samples
        for scale in backbone.scales
    )
    per_image = sum(backbone._decoder_flops(scale) for scale in backbone.scales) * 8
    assert per_image < work.prompts < alone
    half = count_labelling(backbone, read_workload(EasyVqa(), LIMIT, 4), images_per_batch=32, acceptance=1.0)
    assert half.total == pytest.approx(work.total, rel=0.2)
    less = count_labelling(backbone, workload, images_per_batch=32, acceptance=0.5)
    assert less.prompts > work.prompts and less.decoding > 0 and less.steps > 0


def test_features_take_two_bytes_a_number():
    backbone, workload = read_all()
    hidden = backbone.checkpoint.config.get_text_config().hidden_size
    assert measure_features(backbone, workload, (1, 9)) == 2 * hidden * 10


class Passes:
    """A backbone with the vision passes of a family."""

    def __init__(self, family):
        self.family = family

    def vision_flops(self, size, scale):
        return {1: 10, 4: 50, 16: 170}[scale]


@pytest.mark.parametrize(
    ("family", "flops"), [("pooled", 170), ("native", 10 + 50 + 170), ("thumbnail", 10 + 40 + 160)]
)
def test_vision_passes_of_a_family(family, flops):
    backbone: Any = Passes(family)
    assert count_vision(backbone, (8, 8), [1, 4, 16]) == flops


def calculate(work, **settings):
    backbone, workload = read_all()
    return estimate_labelling(
        backbone,
        "easy_vqa",
        workload,
        work,
        **{
            **{"device": "a100", "num_devices": 2, "mfu": 0.4, "acceptance": 0.8},
            **{"feature_scales": (1, 9), "num_workers": 1, **settings},
        },
    )


def test_hours_of_gpus_by_hand():
    """39,602 questions of 14.44 TFLOPs at 40% of an A100 take 1.27 hours (docs/faq.md)."""
    work = LabellingWork(vision=39602 * 0.39e12, prompts=39602 * 14.05e12)
    result = calculate(work)
    assert result.device_hours == pytest.approx(39602 * 14.44e12 / (0.4 * 312e12) / 3600)
    assert result.device_hours == pytest.approx(1.27, abs=0.01)
    assert result.wall_hours == pytest.approx(result.device_hours / 2)
    half = calculate(work, mfu=0.2)
    assert half.device_hours == pytest.approx(2 * result.device_hours)
    # Few tokens a pass: reading the weights takes longer.
    steps = calculate(LabellingWork(steps=1e9))
    num_bytes = 2 * read_all()[0].checkpoint.count_weights()
    assert 3600 * steps.device_hours == pytest.approx(1e9 * num_bytes / (0.6 * GPUS["a100"].bandwidth))


def test_a_model_that_does_not_fit_is_named():
    fits = calculate(LabellingWork())
    assert check_memory(fits) is None
    large = calculate(LabellingWork(largest_batch=1e9))
    assert "backbone.device_map=auto" in str(check_memory(large))
    assert "memory: needs" in format_estimate(large)


def test_layers_of_a_cpu_are_timed_in_the_dtype():
    shape = LayerShape(64, 64, 32, 128, 4)
    assert shape.flops(3, 5) == 3 * (64 * (4 * 64 + 4 * 32 + 6 * 128) + 4 * 5 * 64)
    assert measure_layer(shape, 2, 8, torch.bfloat16) > 0


@pytest.mark.parametrize(
    ("value", "text"), [(0, ""), (999, "999 B"), (12.34e9, "12.3 GB"), (1e30, "1e+09 ZB"), (0.5, "0.5 B")]
)
def test_numbers_have_three_digits(value, text):
    assert format_number(value, "B") == text


def test_durations_have_three_digits():
    assert [format_seconds(s) for s in (0, 1.234, 119, 121, 7300)] == [
        "",
        "1.23 s",
        "119 s",
        "2.02 min",
        "2.03 h",
    ]


def call(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    limits = [f"limit.{split}={number}" for split, number in LIMIT.items()]
    monkeypatch.setattr(sys, "argv", ["estimate", "task=easy_vqa", *limits, "hydra.run.dir=run", *arguments])
    estimate.main()


def test_weights_are_not_needed(monkeypatch, tmp_path, capsys):
    """The configuration and the tokenizer are enough; tiles of another size are counted."""
    weights = shutil.ignore_patterns("*.safetensors*", "image*", "expected*")
    shutil.copytree(CHECKPOINTS / "llavanext", tmp_path / "model", ignore=weights)
    model = ["backbone=local", f"backbone.checkpoint={tmp_path / 'model' / 'checkpoint'}"]
    model.append("backbone.dtype=bfloat16")
    call(monkeypatch, tmp_path, *model, "device=h100", "num_devices=8")
    out = capsys.readouterr().out
    assert "estimate, not measured" in out and "assumptions:" in out and "run/estimate.json" in out
    written = json.loads((tmp_path / "run" / "estimate.json").read_text())
    backbone = LlavaBackbone(CHECKPOINTS / "llavanext" / "checkpoint", device="cpu", dtype="bfloat16")
    num_weights = sum(weight.numel() for weight in backbone.model.parameters())
    assert written["steps"][0]["disk"] == 2 * num_weights
    assert written["num_images"] == 8 and written["device"] == "h100"
    assert not list(tmp_path.glob("outputs/store/*"))


def test_images_that_cannot_be_read_are_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "questions.jsonl").write_text(
        "".join(
            json.dumps({"question_id": n, "image": f"{n}.png", "text": "what?", "answer": "it"}) + "\n"
            for n in range(30)
        )
    )
    task = ["task=llava_jsonl", "task.name=mine", "task.questions=questions.jsonl", "task.images=."]
    with pytest.raises(SystemExit, match="2"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["estimate", *task, "task.metric=exact", "hydra.run.dir=run"])
        estimate.main()
    assert "none of the 30 images of mine" in capsys.readouterr().err
