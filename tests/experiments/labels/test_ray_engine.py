"""Labelling by Ray actors: the same table, also when one of them dies on the way."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.labels.engines import RayEngine
from experiments.tasks.base import SPLITS
from tests.experiments.labels.label_process import start
from tests.held_out import read_outcomes

TWO_ACTORS = ["engine=ray", "engine.num_actors=2", "engine.num_gpus=0", "num_workers=0"]


def find_actors(driver: str) -> list[int]:
    """Processes of one cluster's actors, by a variable of its driver's environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if (
            command.startswith(b"ray::")
            and b"BlockActor" in command
            and f"DRIVER={driver}".encode() in environment
        ):
            found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the actors in /proc")
def test_two_actors_of_which_one_is_killed_make_the_same_table(tmp_path):
    pytest.importorskip("ray")
    plain = start(tmp_path / "plain")
    folder = tmp_path / "by_ray"
    os.environ["DRIVER"] = "label-actors-of-this-test"
    try:
        process = start(folder, *TWO_ACTORS)
    finally:
        del os.environ["DRIVER"]
    killed = False
    while process.poll() is None and not killed:
        if list(folder.glob("outcomes/*.parquet")):
            for actor in find_actors("label-actors-of-this-test")[:1]:
                os.kill(actor, signal.SIGKILL)
                killed = True
        time.sleep(0.02)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert plain.wait(timeout=240) == 0
    assert killed
    for split in SPLITS:
        ours, theirs = read_outcomes(folder, split), read_outcomes(tmp_path / "plain", split)
        assert ours.to_arrow().equals(theirs.to_arrow())
    for name in ("shards", "counts", "accuracy", "near_ties"):
        manifests = [
            json.loads((tmp_path / run / "manifest.json").read_text()) for run in ("plain", "by_ray")
        ]
        assert manifests[0][name] == manifests[1][name]


def test_without_ray_the_way_out_is_named(monkeypatch):
    job: Any = None
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'tokenscale\[ray\]'"):
        next(RayEngine().run(job, {"00000": 3}))
