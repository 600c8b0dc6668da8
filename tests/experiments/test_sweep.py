"""Sweeps whose jobs run at the same time: each leaves its own predictors, and none disturbs another."""

import subprocess
import sys

import pytest

from experiments.training_record import read_record
from tests.predictor.synthetic import make_labels, write_labels


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "labels"
    parts = {"train": make_labels(60, seed=0), "calibration": make_labels(30, seed=1, split="calibration")}
    write_labels(folder, parts)
    return folder


def sweep(labels, store, *overrides):
    command = [
        *(sys.executable, "-m", "experiments.train", "-m", f"paths.labels={labels}"),
        *(f"paths.store={store}", f"paths.outputs={store}", "~predictor@baselines.per_task"),
        *("predictor=question_only", "seed=0,1", *overrides),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = list(store.glob("predictors/**/manifest.json"))
    records = [read_record(path.parent) for path in paths]
    return {record.identity["seed"]: path for record, path in zip(records, paths, strict=True) if record}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_at_the_same_time_leave_predictors_of_their_own(labels, tmp_path, launcher):
    parallel = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    made = sweep(labels, tmp_path, f"hydra/launcher={launcher}", *parallel)
    assert set(made) == {0, 1}
    assert made[0].parent.parent != made[1].parent.parent
    if launcher == "joblib":
        # The same sweep one after the other finds what is there.
        stamps = {seed: path.stat().st_mtime_ns for seed, path in made.items()}
        again = sweep(labels, tmp_path)
        assert {seed: path.stat().st_mtime_ns for seed, path in again.items()} == stamps
