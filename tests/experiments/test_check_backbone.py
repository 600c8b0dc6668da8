"""The command `check-backbone`, and the random backbone that needs no download."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from experiments import check_backbone, label, run
from experiments.command_line import script
from experiments.serving.conformance import adaptive_model_is_saved_and_loaded
from m3_backbone.conformance import Subject, run_checks
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from tests.experiments.labels.label_process import CHECKPOINT
from tests.paths import ROOT

IMAGE = Image.new("RGB", (160, 96), "orange")


@pytest.fixture
def call(monkeypatch, tmp_path):
    """`call("backbone=tiny_m3")` is `tokenscale check-backbone backbone=tiny_m3` in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["check_backbone", *arguments])
        check_backbone.main()

    return call


def open_random(model_type="qwen3_vl"):
    return open_random_backbone(
        model_type=model_type, name="random", scales=(16, 64), device="cpu", max_new_tokens=4
    )


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["qwen3_vl", "internvl"])
def test_checks_print_a_table_and_succeed(call, capsys, model_type):
    backbone = ("backbone=random_vlm", f"backbone.model_type={model_type}", "backbone.device=cpu")
    call(*backbone, "checks=[drafts, fingerprints, saved]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "outcome"]
    assert lines[2].split() == ["drafts_change_nothing", "ok"]
    assert lines[3].split() == ["fingerprints_are_stable", "ok"]
    assert lines[4].split()[0] == "adaptive_model_is_saved_and_loaded"
    assert lines[-1].startswith(f"random_{model_type}: ") and " 0 failed, " in lines[-1]


def test_status_is_1_after_a_failed_check(call, capsys, monkeypatch):
    monkeypatch.setattr(LlavaBackbone, "decode_flops_per_token", lambda self: 0)
    with pytest.raises(SystemExit) as exit:
        call("backbone=local", f"backbone.checkpoint={CHECKPOINT}", "checks=[flops_ascend, scales_ascend]")
    assert exit.value.code == 1
    out = capsys.readouterr().out
    assert "flops_ascend: decode_flops_per_token is a positive integer, and not 0" in out
    assert out.splitlines()[-1] == "local: 1 ok, 1 failed, 0 not applicable"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("checks=[nosuch]", "checks=[nosuch]: no check has this in its name"),
        ("checks=[]", "checks=[]: give"),
        ("backbone.model_type=nosuch", "model_type=nosuch: give one of qwen2_5_vl, qwen3_vl"),
    ],
)
def test_mistakes_are_named_before_a_check_runs(call, capsys, argument, message):
    with pytest.raises(SystemExit) as exit:
        call("backbone=random_vlm", argument)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


@pytest.mark.parametrize("name", ["check-backbone", "check_backbone"])
def test_command_has_a_hyphen_or_an_underscore(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tokenscale", name, "--help"])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the script sets it; undone here
    monkeypatch.setenv("TOKENSCALE_STARTED_BY_SCRIPT", "1")
    with pytest.raises(SystemExit) as exit:
        script.main()
    assert exit.value.code == 0
    assert "tokenscale check-backbone backbone=tiny_m3" in capsys.readouterr().out


def test_an_unknown_command_is_named_as_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tokenscale", "check-backbones"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert capsys.readouterr().err.startswith("error: check-backbones: no such command")


def test_adaptive_model_with_a_backbone_is_saved_and_loaded():
    subject = Subject(lambda: LlavaBackbone(CHECKPOINT, device="cpu", max_new_tokens=3))
    (result,) = run_checks(subject, [adaptive_model_is_saved_and_loaded])
    assert result.outcome == "ok"


def test_adaptive_model_that_answers_otherwise_is_found(monkeypatch):
    backbone = LlavaBackbone(CHECKPOINT, device="cpu", max_new_tokens=3)
    answer = LlavaBackbone.answer

    def answer_otherwise(self, encoded, questions, scale, **options):
        questions = questions if self is backbone else [f"{text} Or not?" for text in questions]
        return answer(self, encoded, questions, scale, **options)

    monkeypatch.setattr(LlavaBackbone, "answer", answer_otherwise)
    (result,) = run_checks(Subject(lambda: backbone), [adaptive_model_is_saved_and_loaded])
    assert result.outcome == "failed" and "saved and loaded" in result.reason


def test_random_backbones_are_equal_and_differ_by_type_and_seed():
    first, again, older = open_random(), open_random(), open_random("qwen2_5_vl")
    assert first.fingerprints == again.fingerprints
    assert first.fingerprints["weights"] != older.fingerprints["weights"]
    options: dict[str, Any] = {"model_type": "qwen3_vl", "name": "random", "scales": (16,), "device": "cpu"}
    assert open_random_backbone(**options, seed=1).fingerprints["weights"] != first.fingerprints["weights"]
    with pytest.raises(ValueError, match="give one of qwen2_5_vl, qwen3_vl"):
        open_random_backbone(**{**options, "model_type": "llava"})


class Answers(torch.utils.data.Dataset):
    """Token ids of one answer by a backbone, in the process that reads it."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.tensor(self.backbone.answer(self.backbone.encode([IMAGE]), ["Why?"], 16)[0].token_ids)


@pytest.mark.slow
def test_random_backbone_answers_the_same_in_a_worker():
    backbone = open_random()
    folder = backbone.checkpoint.folder
    expected = Answers(backbone)[0].tolist()
    loader = DataLoader(
        Answers(pickle.loads(pickle.dumps(backbone))), num_workers=1, multiprocessing_context="spawn"
    )
    assert [batch.tolist() for batch in loader] == [[expected]]
    assert folder.is_dir()  # the end of the worker did not remove it


@pytest.mark.slow
def test_the_folder_is_removed_with_its_process_and_not_with_a_fork():
    code = """
import os
from m3_backbone.native.random_backbone import open_random_backbone
backbone = open_random_backbone(model_type="qwen3_vl", name="random", scales=(16,), device="cpu")
if os.fork() == 0:
    raise SystemExit
os.wait()
print(backbone.checkpoint.folder, backbone.checkpoint.folder.is_dir())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    folder, is_there = done.stdout.split()
    assert is_there == "True", done.stderr
    assert not Path(folder).exists()


@pytest.mark.long
def test_random_backbone_labels_and_labels_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    counts = []
    for number in (8, 9):
        arguments = [
            *("label", "backbone=random_vlm", "backbone.device=cpu", "backbone.max_new_tokens=2"),
            *(f"limit={{train:{number},calibration:8,test:8}}", "task.questions_per_image=2"),
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        label.main()
        counts.append(capsys.readouterr().out)
    assert all("labels: outputs/store/labels/random_qwen3_vl/scenes" in out for out in counts)
    assert len(list((tmp_path / "outputs/store/labels").glob("*/scenes*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "scales"), [("internvl", [4, 12, 20, 52]), ("qwen3_vl", [16, 64])])
def test_random_backbone_is_labelled_trained_timed_and_evaluated(model_type, scales, tmp_path, monkeypatch):
    """Its answers are all wrong, so that no policy ever changes its choice."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("run", "backbone=random_vlm", f"backbone.model_type={model_type}", f"backbone.scales={scales}"),
        *("backbone.device=cpu", "backbone.max_new_tokens=2", "predictor=question_only", "allow_small=true"),
        *("task.num_images={train:8,calibration:4,test:4}", "task.questions_per_image=2", "num_workers=0"),
        *("~predictor@baselines.per_task", "~predictor@baselines.question_only", "hydra.run.dir=run"),
        *("latency.num_images=2", "latency.num_rounds=1", "num_resamples=20", "guarantee.num_resplits=0"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [fixed["scale"] for fixed in metrics["fixed"]] == scales
    cheapest = metrics["flops"]["fixed"][0]
    assert metrics["flops"]["predictors"]["question_only"]["default"]["cost"]["value"] >= cheapest > 0
