import json
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from experiments.parity.__main__ import main
from experiments.parity.deviations import summarize
from experiments.parity.recording import compare_model, compare_router, compare_scorers
from tests.paths import FIXTURES


@pytest.mark.parametrize(
    "name",
    [
        "official_m3/llava15",
        "official_m3/llavanext",
        "reference_m3/grouped_query_bin",
        "reference_m3/tiled_other_grids",
    ],
)
@pytest.mark.long
def test_the_model_agrees_with_the_official_code(name):
    deviations = list(compare_model(FIXTURES / name))
    assert all(deviation.size <= deviation.allowed for deviation in deviations), summarize(deviations)
    assert {deviation.quantity for deviation in deviations} == {
        "pixel values",
        "prompt",
        "prompt ids",
        "prompt and reference ids",
        "length of the reference",
        "number of visual tokens",
        "visual tokens",
        "logits",
        "greedy ids",
        "greedy text",
        "reference NLL",
        "training loss",
    }


def test_the_scorers_agree_with_the_official_ones():
    deviations = list(compare_scorers(FIXTURES / "scoring.json"))
    assert len(deviations) == len(json.loads((FIXTURES / "scoring.json").read_text()))
    assert all(deviation.size <= deviation.allowed for deviation in deviations), summarize(deviations)


def test_the_router_agrees_with_the_released_code():
    deviations = list(compare_router(FIXTURES / "avg_router.safetensors"))
    assert all(deviation.size < 1e-5 for deviation in deviations), summarize(deviations)
    assert [deviation.where for deviation in deviations] == ["case0", "case1", "case2", "rglf", "rglf"]


def test_a_router_that_computes_something_else_is_found(tmp_path):
    recorded = load_file(FIXTURES / "avg_router.safetensors")
    recorded["router.voter"][-1] += 1  # the vote of the last word alone
    save_file(recorded, tmp_path / "router.safetensors")
    deviations = list(compare_router(tmp_path / "router.safetensors"))
    assert {each.quantity for each in deviations if each.size > each.allowed} == {"router logits"}
    del recorded["router.voter"]
    save_file(recorded, tmp_path / "router.safetensors")
    with pytest.raises(ValueError, match=r"is not one of AVG-LLaVA's"):
        list(compare_router(tmp_path / "router.safetensors"))
    del recorded["case1.logits"]
    recorded["router.voter"] = load_file(FIXTURES / "avg_router.safetensors")["router.voter"]
    save_file(recorded, tmp_path / "router.safetensors")
    with pytest.raises(ValueError, match=r"lacks case1.logits"):
        list(compare_router(tmp_path / "router.safetensors"))


def test_every_kind_of_difference_is_found(tmp_path):
    folder = tmp_path / "fixture"
    shutil.copytree(FIXTURES / "official_m3" / "llava15", folder)
    recorded = json.loads((folder / "expected.json").read_text())
    (case,) = recorded["cases"] = recorded["cases"][:1]
    case["generated_ids"][3] += 1
    case["prompt_ids"][5] += 1
    case["visual_tokens"] += 1
    case["answer_nll"] = float("nan")
    (folder / "expected.json").write_text(json.dumps(recorded))
    deviations = list(compare_model(folder))
    failed = {deviation.quantity for deviation in deviations if deviation.size > deviation.allowed}
    assert failed == {"greedy ids", "prompt ids", "number of visual tokens", "reference NLL", "training loss"}
    assert "FAILED, most at image0.scale1" in summarize(deviations)


@pytest.fixture
def run(monkeypatch, capsys):
    """The command with some arguments -> its exit status and what it printed."""

    def run_command(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        try:
            main()
            status: object = 0
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run_command


def test_exit_status(run, tmp_path):
    rows = [{"metric": "exact", "prediction": "a", "references": ["a"], "score": 1.0}]
    (tmp_path / "good.json").write_text(json.dumps(rows))
    (tmp_path / "bad.json").write_text(json.dumps([{**rows[0], "score": 0.0}]))
    assert run(f"scoring={tmp_path / 'good.json'}")[0] == 0
    status, printed = run(f"scoring={tmp_path / 'bad.json'}")
    assert status == 1 and "score: exact" in printed and "FAILED" in printed
    status, printed = run()
    assert status == 2 and "give fixture=DIR" in printed
    status, printed = run(f"fixture={tmp_path}")
    assert status == 2 and "expected.json" in printed


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("expected.json", "{", "not JSON"),
        (
            "expected.json",
            '{"cases": [{"image": "image0.png"}], "training_loss_image0": 1}',
            "lacks question",
        ),
        ("expected.safetensors", "x", "cannot be read"),
        ("image0.png", "x", "cannot identify image file"),
    ],
)
def test_a_recording_that_cannot_be_used_is_an_error_of_its_own(tmp_path, file, content, message):
    folder = tmp_path / "fixture"
    shutil.copytree(FIXTURES / "official_m3" / "llava15", folder)
    (folder / file).write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        list(compare_model(folder))
