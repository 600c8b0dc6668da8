"""`python -m experiments.label` as people run it: killed on the way, run again, run twice at a time."""

import signal
import subprocess
import time

import pytest

from experiments.labels.labelling import label
from experiments.tasks.easy_vqa import EasyVqa
from m3_backbone.llava.backbone import LlavaBackbone
from tests.experiments.labels.label_process import CHECKPOINT, start
from tests.held_out import read_outcomes, read_split


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.slow
def test_killed_and_run_again_the_table_equals_an_undisturbed_one(tmp_path):
    undisturbed = start(tmp_path / "undisturbed" / "labels")
    folder = tmp_path / "killed" / "labels"
    killed = start(folder)
    while len(shards := list(folder.glob("outcomes/*.parquet"))) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    with pytest.raises(ValueError, match=f"process {killed.pid} on .* is labelling into"):
        label(task=EasyVqa(), backbone=LlavaBackbone(CHECKPOINT), folder=folder, overwrite=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with pytest.raises(ValueError, match="not finished"):
        read_outcomes(folder)
    before = {path: path.stat().st_mtime_ns for path in shards}

    status, out, err = finish(start(folder))
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    assert f"labels: {folder}" in out
    assert "next: tokenscale train task=easy_vqa backbone=local" in out

    assert finish(undisturbed)[0] == 0
    for split in ("train", "calibration", "test"):
        ours, theirs = read_split(folder, split), read_split(tmp_path / "undisturbed" / "labels", split)
        assert ours.outcomes.to_arrow().equals(theirs.outcomes.to_arrow())
        assert ours.inputs.visual_at(9).tokens.tobytes() == theirs.inputs.visual_at(9).tokens.tobytes()
