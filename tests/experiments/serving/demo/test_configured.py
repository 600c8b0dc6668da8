"""The command `demo`: without Gradio one line, with it a published folder and a process that is stopped."""

import importlib.util
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from experiments.demo import main
from tests.paths import ROOT


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["experiments.demo", "port=0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: gradio is not installed: pip install 'tokenscale[demo]'\n"


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra demo")
def test_a_published_folder_is_shown_until_the_process_is_stopped(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "experiments.demo", "port=0", "num_examples=2"]
    command += [f"folder={tmp_path / 'model'}", f"paths.outputs={tmp_path}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    (url,) = re.findall(r"^demo at (http://127\.0\.0\.1:\d+); stop with Ctrl-C$", line)
    assert "tokenscale demo" in httpx.get(url).text
    (folder,) = tmp_path.glob("tokenscale_demo_*")
    assert len(list((folder / "offered").iterdir())) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert not folder.exists()
