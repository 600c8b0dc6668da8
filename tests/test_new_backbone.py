"""The exercise of docs/new_backbone.md, as it stands there: one Python file, one YAML, no other file."""

import json
import re
import sys
from importlib import import_module

import pytest

import m3_backbone
from experiments import check_backbone, run
from m3_backbone.conformance import CHECKS
from tests.pages import write_blocks
from tests.paths import ROOT

PAGE = ROOT / "docs" / "new_backbone.md"
MODULE = "m3_backbone.color_namer"


@pytest.fixture
def search_path(tmp_path, monkeypatch):
    """Both files in a folder of their own, found there as if they were in their places."""
    write_blocks(PAGE, tmp_path)
    monkeypatch.setattr(m3_backbone, "__path__", [*m3_backbone.__path__, str(tmp_path / "m3_backbone")])
    monkeypatch.chdir(tmp_path)
    yield f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    sys.modules.pop(MODULE, None)
    vars(m3_backbone).pop("color_namer", None)


def test_the_exercise_keeps_the_contract(search_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_backbone", "backbone=color_namer", search_path])
    check_backbone.main()
    out = capsys.readouterr().out
    assert re.search(rf"^color_namer: {len(CHECKS) - 2} ok, 0 failed, 3 not applicable$", out, re.M), out


@pytest.mark.long
def test_the_exercise_is_labelled_trained_and_evaluated(search_path, monkeypatch, tmp_path):
    arguments = [
        *("run", "backbone=color_namer", search_path, "hydra.run.dir=run", "paths.store=store"),
        *("predictor=question_only", "~predictor@baselines.per_task", "~predictor@baselines.question_only"),
        "task.num_images={train:40,calibration:20,test:20}",
        *("num_workers=1", "latency.num_images=0", "num_resamples=200", "guarantee.num_resplits=0"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    score_of = {point["scale"]: point["score"]["value"] for point in metrics["fixed"]}
    assert list(score_of) == [1, 16, 256] and score_of[1] < score_of[256]


def test_the_example_of_a_test_runs(search_path, tmp_path):
    (block,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    namespace: dict = {}
    exec(compile(block, str(PAGE), "exec"), namespace)
    namespace["test_color_namer_conforms"](CHECKS[0])
    assert namespace["SUBJECT"].backbone.name == "color_namer"


def test_its_answers_depend_on_image_question_and_scale(search_path):
    from PIL import Image

    backbone = import_module(MODULE).ColorNamer()
    image = Image.new("RGB", (160, 160), "white")
    image.paste((200, 50, 50), (40, 40, 72, 72))
    (encoded,) = backbone.encode([image])
    questions = ["What color is the background?", "What color is the square?"]
    texts = {
        scale: [answer.text for answer in backbone.answer([encoded] * 2, questions, scale)]
        for scale in backbone.scales
    }
    assert texts[1] == ["white", "white"] and texts[256] == ["white", "red"]
