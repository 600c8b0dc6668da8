"""Sweeps: jobs at the same time leave predictors of their own; what they return comes from validation."""

import importlib
import json
import subprocess
import sys

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from experiments.command_line.script import find_config_dir
from experiments.training.trained import VALIDATION_METRICS, read_record
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


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.slow), "submitit_local"])
@pytest.mark.slow
def test_jobs_at_the_same_time_leave_predictors_of_their_own(labels, tmp_path, launcher):
    parallel = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    made = sweep(labels, tmp_path, f"hydra/launcher={launcher}", *parallel)
    assert set(made) == {0, 1}
    assert made[0].parent != made[1].parent
    if launcher == "joblib":
        # The same sweep one after the other finds what is there.
        stamps = {seed: path.stat().st_mtime_ns for seed, path in made.items()}
        again = sweep(labels, tmp_path)
        assert {seed: path.stat().st_mtime_ns for seed, path in again.items()} == stamps


def call(command, output, *overrides):
    """What a command returns to whoever sweeps over it."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose(command, list(overrides), return_hydra_config=True)
        with read_write(config), open_dict(config.hydra):
            config.hydra.runtime.output_dir = str(output)
            config.hydra.job.config_name = command
        HydraConfig.instance().set_config(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        try:
            return importlib.import_module(f"experiments.{command}").main(config)
        finally:
            HydraConfig.instance().cfg = None


def search(command, output, *overrides):
    """Optuna over three jobs of a command: the values that it saw, by number of words."""
    study = optuna.create_study(direction="maximize")

    def objective(trial):
        words = trial.suggest_int("words", 1, 3)
        return call(command, output / str(words), *overrides, f"predictor.max_words={words}")

    for words in (1, 2, 3):
        study.enqueue_trial({"words": words})
    study.optimize(objective, n_trials=3)
    return {trial.params["words"]: trial.value for trial in study.trials}


@pytest.mark.parametrize(
    "metric", ["validation/gap_share", pytest.param("validation/value", marks=pytest.mark.slow)]
)
@pytest.mark.long
def test_an_optimising_sweep_sees_validation_alone(tmp_path, metric):
    """Two label folders that differ in their test split alone: Optuna sees the same values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values = {}
    for seed in (2, 3):
        store = tmp_path / str(seed)
        parts = {
            "train": make_labels(60, seed=0),
            "calibration": make_labels(30, seed=1, split="calibration"),
            "test": make_labels(30, seed=seed, split="test"),
        }
        write_labels(store / "labels", parts)
        path = store / "labels" / "manifest.json"
        names = {"backbone": "small", "task": "synthetic"}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
        shared = [
            *(f"paths.labels={store / 'labels'}", f"paths.outputs={store}", f"paths.store={store}"),
            *("predictor=question_only", "~predictor@baselines.question_only", f"optimized_metric={metric}"),
        ]
        values["train", seed] = search("train", store, *shared)
        task = ["task._target_=tests.experiments.test_evaluate_command.Pictures", "num_resamples=20"]
        dropped = [f"~task.{key}" for key in ("seed", "num_images", "questions_per_image", "image_size")]
        evaluated = [*shared, *task, *dropped, "guarantee.num_resplits=0", "gallery=0"]
        values["evaluate", seed] = search("evaluate", store, *evaluated)
        records = [read_record(path.parent) for path in store.glob("predictors/**/manifest.json")]
        found = {
            record.identity["arguments"]["max_words"]: VALIDATION_METRICS[metric](record)
            for record in records
            if record is not None and record.name == "question_only"
        }
        assert values["train", seed] == values["evaluate", seed] == found
    assert values["evaluate", 2] == values["evaluate", 3]
    # Both evaluations were of other test images: scores there do differ.
    scores = [
        json.loads((tmp_path / str(seed) / "1" / "metrics.json").read_text())["fixed"][0]["score"]
        for seed in (2, 3)
    ]
    assert scores[0] != scores[1]


def test_a_metric_that_is_not_validation_s_is_refused_before_anything_is_read(tmp_path, capsys):
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit, match="2"):
            call(command, tmp_path, "optimized_metric=test/score", f"paths.outputs={tmp_path / 'nowhere'}")
        assert "optimized_metric=test/score: give one of validation/gap_share, validation/value" in (
            capsys.readouterr().err
        )
    assert not (tmp_path / "nowhere").exists()
