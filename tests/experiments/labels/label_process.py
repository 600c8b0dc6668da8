"""`python -m experiments.label` on a few pictures and a small checkpoint, as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

CHECKPOINT = ROOT / "tests" / "fixtures" / "official_m3" / "llava15" / "checkpoint"
SETTINGS = [
    "task=easy_vqa",
    "backbone=local",
    f"backbone.checkpoint={CHECKPOINT}",
    "backbone.max_new_tokens=2",
    "limit={train: 6, calibration: 1, test: 1}",
    "allow_small=true",
    "shard_size=10",
    "images_per_batch=1",
]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in its own folder, labelling into `folder`."""
    folder.parent.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.label", *SETTINGS, f"paths.labels={folder}", *arguments],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
