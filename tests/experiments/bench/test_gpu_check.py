"""`tokenscale gpu-check` on a CPU: its results, their resumption, and its page."""

import json
import sys
from functools import partial
from html.parser import HTMLParser

import pytest
import torch

from experiments import gpu_check
from experiments.bench.gpu_check import agreement
from experiments.bench.gpu_check.agreement import compare_with_recordings, find_recordings
from experiments.bench.gpu_check.attention import PackedInputs, attend_packed, compare_attention, prepare_flex
from experiments.bench.gpu_check.parts import Part, Unavailable, run_parts, select_parts
from experiments.parity.deviations import EXACT, NUMBER, Deviation
from experiments.reporting.gpu_check import summarize, tabulate
from tests.paths import FIXTURES

IDENTITY = {"machine": "here"}


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu_check", "device=cpu", "folder=out", *arguments])
        gpu_check.main()

    return call


@pytest.mark.slow
def test_command_writes_page_and_results(call, capsys, tmp_path):
    call("steps=[facts, 'parity/m3, float32', varlen, 'labelling/1']")
    assert "report: out/gpu_check.html" in capsys.readouterr().out
    parts = json.loads((tmp_path / "out/gpu_check.json").read_text())["parts"]
    outcomes = {(part["step"], part["name"]): part for part in parts}
    assert outcomes["parity", "m3, float32"]["values"]["same_answers"] == 4
    assert outcomes["parity", "m3, float32"]["values"]["largest_difference"] == 0
    assert outcomes["attention", "varlen, 1 question an image"]["status"] == "unavailable"
    assert outcomes["labelling", "1 question an image"]["values"]["questions_per_second"] > 0
    page = (tmp_path / "out/gpu_check.html").read_text()
    assert "runs on GPUs only" in page and "<script" not in page
    HTMLParser().feed(page)


def test_recordings_of_the_authors_code_have_to_agree_in_float32(monkeypatch):
    """What `compare_model` computes is tested with `tokenscale parity`."""
    with pytest.raises(Unavailable, match="no recordings=DIR was given"):
        compare_with_recordings([], "cpu", "float32")
    with pytest.raises(ValueError, match=r"recordings=.*scoring.*no folder in it has expected\.json"):
        find_recordings(FIXTURES / "scoring.json")
    folders = find_recordings(FIXTURES / "official_m3")
    found = [Deviation("logits", "image0", 2e-3, NUMBER), Deviation("prompt", "image0", 0.0, EXACT)]
    monkeypatch.setattr(agreement, "compare_model", lambda folder, **arguments: found)
    values = {"values_compared": 2, "differing_quantities": ["logits"], "largest_difference": 2e-3}
    both = {"llava15": values, "llavanext": values}
    assert compare_with_recordings(folders, "cpu", "float32") == {"methods": both, "agrees": False}
    assert compare_with_recordings(folders, "cpu", "bfloat16") == {"methods": both}
    found[0] = Deviation("logits", "image0", 9e-5, NUMBER)
    assert compare_with_recordings(folders, "cpu", "float32")["agrees"]


@pytest.mark.long
def test_finished_parts_are_kept_and_failed_ones_run_again(tmp_path):
    counts = {"good": 0, "bad": 0}

    def run(name):
        counts[name] += 1
        if name == "bad" and counts[name] == 1:
            raise RuntimeError("<b>out of memory</b>")
        return {"agrees": True}

    parts = [Part("parity", name, partial(run, name)) for name in ("bad", "good")]
    path = tmp_path / "gpu_check.json"
    first = run_parts(parts, path, IDENTITY, overwrite=False)
    assert [result.status for result in first] == ["failed", "agrees"]
    assert "RuntimeError: <b>out of memory" in first[0].reason
    second = run_parts(parts, path, IDENTITY, overwrite=False)
    assert [result.status for result in second] == ["agrees", "agrees"]
    assert counts == {"good": 1, "bad": 2}
    with pytest.raises(ValueError, match="another device, size or version"):
        run_parts(parts, path, {"machine": "there"}, overwrite=False)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        run_parts(parts, path, IDENTITY, overwrite=False)


def test_status_is_1_if_a_part_differs(call, monkeypatch):
    monkeypatch.setattr("experiments.bench.gpu_check.steps.measure_device", lambda device: {"agrees": False})
    with pytest.raises(SystemExit) as exit:
        call("steps=[facts]")
    assert exit.value.code == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size=7b", "size=7b needs a GPU: give size=small"),
        ("device=mps", "device=mps: give cpu, cuda or cuda:N"),
        ("steps=[nosuch]", "steps=[nosuch]: no part has this in its name"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(call, capsys, tmp_path, argument, message):
    with pytest.raises(SystemExit) as exit:
        call(argument)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.long
def test_flex_attention_sees_what_the_engine_sees():
    inputs = PackedInputs.draw(num_images=2, num_questions=3, num_visual=20, heads=2, size=16, device="cpu")
    values = compare_attention(inputs, prepare_flex(inputs, is_compiled=False), is_timed=False)
    assert values["agrees"] and values["largest_difference"] < 1e-5
    # Attention that sees the questions before it differs.
    causal = torch.nn.functional.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, is_causal=True
    )
    assert not compare_attention(inputs, lambda: causal, is_timed=False)["agrees"]
    assert attend_packed(inputs).shape == (1, 2, 2 * (20 + 3 * 24), 16)


def test_missing_parts_say_why(tmp_path):
    def run():
        raise Unavailable("there is no GPU")

    (result,) = run_parts([Part("attention", "varlen", run)], tmp_path / "a.json", IDENTITY, overwrite=False)
    assert summarize([result]) == "1 unavailable"
    assert tabulate("attention", [result]).rows == (("varlen", "unavailable", "there is no GPU"),)
    with pytest.raises(ValueError, match=r"steps=\[x\]"):
        select_parts([Part("attention", "varlen", run)], ["x"])
