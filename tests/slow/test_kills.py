"""Commands killed at random moments and repeated end as undisturbed ones: `make test-slow`."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from experiments.labels.resampled import read_resampled
from m3_backbone.outcomes.manifest import read_manifest
from tests.held_out import read_outcomes, read_split
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_KILLS = 10
START_SECONDS = 2  # a command imports for longer than this
JOB = (
    "experiment=embedded_short",
    "task.num_images={train:24,calibration:10,test:10}",
    "task.questions_per_image=3",
    "shard_size=12",
    "latency.num_images=0",
    "allow_small=true",
)
# Of the commands after training, which know neither labelling nor evaluation.
MODEL = ("allow_small=true", "predictor=mlp", "max_epochs=30", "~baselines")
LABELS = "store/labels/tiny_m3/scenes"


def start(folder: Path, command: str, *arguments: str) -> subprocess.Popen[str]:
    """A command on the store and the outputs in `folder`."""
    root = str(ROOT)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", f"experiments.{command}", *arguments),
            *("paths.store=store", "paths.outputs=outputs", "hydra.run.dir=run"),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, command: str, *arguments: str) -> float:
    """Run a command to its end; returns the seconds that it took."""
    begin = time.monotonic()
    process = start(folder, command, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return time.monotonic() - begin


def disturb(folder: Path, seconds: float, command: str, *arguments: str) -> Counter[str]:
    """Kill a command `NUM_KILLS` times within the time that it takes; counts how often it was faster."""
    rng = random.Random(command)
    ends: Counter[str] = Counter()
    for _ in range(NUM_KILLS):
        process = start(folder, command, *arguments)
        try:
            output, _ = process.communicate(timeout=rng.uniform(START_SECONDS, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            ends["killed"] += 1
        else:
            assert process.returncode == 0, output[-3000:]
            ends["finished"] += 1
    return ends


def check(
    tmp_path: Path, prepare: Callable[[Path], None], result: Callable[[Path], Any], *command: str
) -> None:
    """Compare results of a command with those after kills; `prepare` makes what it starts from."""
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for folder in (calm, disturbed):
        folder.mkdir()
        prepare(folder)
    seconds = finish(calm, *command)
    ends = disturb(disturbed, seconds, *command)
    assert ends["killed"] >= NUM_KILLS // 2
    finish(disturbed, *command)
    assert result(disturbed) == result(calm)
    assert not list(disturbed.rglob("*.tmp"))


def make_nothing(folder: Path) -> None:
    pass


def make_labels(folder: Path) -> None:
    finish(folder, "label", *JOB[1:4], "allow_small=true")


def make_predictor(folder: Path) -> None:
    make_labels(folder)
    finish(folder, "train", *MODEL)


def read_labels(folder: Path) -> list[Any]:
    """All that labelling leaves, as values that can be compared."""
    labels = folder / LABELS
    manifest = read_manifest(labels)
    tables = [read_split(labels, split) for split in ("train", "calibration", "test")]
    answers = [table.outcomes.to_arrow().to_pydict() for table in tables]
    visual = [table.inputs.visual_at(9).tokens.tobytes() for table in tables]
    return [answers, visual, manifest["splits"], manifest["accuracy"]]


def digest_predictors(folder: Path) -> dict[str, str]:
    places = [path for path in folder.rglob("*.safetensors") if "predictors" in path.parts]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in places
        if "checkpoints" not in path.parts
    }


def read_run(folder: Path) -> list[Any]:
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    return [read_labels(folder), digest_predictors(folder), metrics]


def read_resampled_scores(folder: Path) -> Any:
    labels = folder / LABELS
    resampled = read_resampled(labels, read_outcomes(labels, "test"))
    assert resampled is not None
    return [resampled.rows.tolist(), resampled.score.tolist()]


def read_published(folder: Path) -> dict[str, str]:
    model = folder / "model"
    return {
        str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in model.rglob("*")
        if path.is_file()
    }


def test_label(tmp_path):
    check(tmp_path, make_nothing, read_labels, "label", *JOB[1:4], "allow_small=true")


def test_train(tmp_path):
    check(tmp_path, make_labels, digest_predictors, "train", *MODEL)


def test_run(tmp_path):
    check(tmp_path, make_nothing, read_run, "run", *JOB)


def test_evaluate(tmp_path):
    def read_metrics(folder: Path) -> Any:
        return json.loads((folder / "run" / "metrics.json").read_text())

    task = (*JOB[1:3], "num_resamples=200", "guarantee.num_resplits=50", "reference=null")
    check(tmp_path, make_predictor, read_metrics, "evaluate", *MODEL, *task, "cascades={}")


def test_resample(tmp_path):
    task = (*JOB[1:3], "num_images=null", "num_runs=2")
    check(tmp_path, make_labels, read_resampled_scores, "resample", *task)


def test_publish(tmp_path):
    check(tmp_path, make_predictor, read_published, "publish", "predictor=mlp", "folder=model")


@pytest.mark.parametrize("storage", ["null", "shared.journal"])
def test_tune(tmp_path, storage):
    """Also between trials: every trial is finished in the end, and the study waits for nobody."""
    make_labels(tmp_path)
    arguments = (
        *("allow_small=true", "predictor=question_only", "tune=question_only", "study.num_trials=40"),
        *("study.heartbeat=1", "study.grace=4", f"study.storage={storage}", "study.folder=study"),
    )
    seconds = 12.0
    ends = disturb(tmp_path, seconds, "tune", *arguments)
    finish(tmp_path, "tune", *arguments)
    assert ends["killed"] > 0
    if storage == "null":
        (path,) = (tmp_path / "study").glob("*.db")
        opened: Any = f"sqlite:///{path}"
    else:
        opened = JournalStorage(JournalFileBackend(str(tmp_path / storage)))
    states = Counter(trial.state.name for trial in optuna.load_study(study_name=None, storage=opened).trials)
    assert states["COMPLETE"] + states["PRUNED"] == 40
    assert not states["RUNNING"] and not states["WAITING"]
