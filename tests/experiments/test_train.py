"""The train command on a synthetic label folder: what it writes, skips, resumes and refuses."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.train import train_predictors
from experiments.training_record import format_records, read_record
from predictor.base import ScalePredictor
from predictor.baselines import Mix
from predictor.hybrid import HYBRID, Hybrid
from predictor.pricing import PriceList
from predictor.question_only import QuestionOnly
from tests.predictor.synthetic import make_labels, write_labels

train_with = functools.partial(train_predictors, validation_fraction=0.2, seed=0)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "labels"
    parts = {"train": make_labels(200, seed=0), "calibration": make_labels(60, seed=1, split="calibration")}
    write_labels(folder, parts)
    return folder


def command(labels, store, *overrides):
    return [
        *(sys.executable, "-m", "experiments.train", "~backbone", f"paths.labels={labels}"),
        *(f"paths.predictors={store / 'predictors'}", f"paths.outputs={store}"),
        *("predictor.network.width=32", "predictor.num_members=1", "trainer.enable_progress_bar=false"),
        *overrides,
    ]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def test_predictors_are_written_with_prices_and_record(labels, tmp_path):
    records = train_with([QuestionOnly(), Mix()], labels=labels, folder=tmp_path, budget=20)
    assert [record.name for record in records] == ["question_only", "mix"]
    for record in records:
        assert read_record(tmp_path / record.name) == record
        assert ScalePredictor.load(tmp_path / record.name).name == record.name
        assert PriceList.load(tmp_path / record.name).default.cost == record.default_cost <= 20
        hybrid = Hybrid.load(tmp_path / record.name)
        assert hybrid is not None and hybrid.cost[hybrid.default] <= 20
    question_only, mix = records
    assert mix.recovered == pytest.approx(0, abs=1e-9)
    assert mix.mix_value < question_only.value < mix.oracle_value
    assert question_only.recovered == pytest.approx(
        (question_only.value - mix.value) / (mix.oracle_value - mix.value)
    )
    assert question_only.identity["labels"]["fingerprints"]["weights"] == "aa"
    assert question_only.num_train + question_only.num_validation == 800
    table = format_records(records)
    assert "question_only" in table and "budgeted oracle" in table


def test_what_is_up_to_date_is_left_alone(labels, tmp_path):
    def stamp():
        return (tmp_path / "mix" / "manifest.json").stat().st_mtime_ns

    train_with([Mix()], labels=labels, folder=tmp_path)
    first = stamp()
    train_with([Mix()], labels=labels, folder=tmp_path)
    assert stamp() == first
    train_with([Mix()], labels=labels, folder=tmp_path, seed=1)
    assert stamp() > first
    # What an earlier version trained has no hybrid, and gets one without being trained again.
    first, path = stamp(), tmp_path / "mix" / HYBRID
    before = path.read_bytes()
    for remains in (None, before[:100]):
        path.unlink() if remains is None else path.write_bytes(remains)
        train_with([Mix()], labels=labels, folder=tmp_path, seed=1)
        assert stamp() == first and path.read_bytes() == before


def test_other_labels_make_it_out_of_date(labels, tmp_path):
    relabelled = tmp_path / "labels"
    shutil.copytree(labels, relabelled)
    train_with([Mix()], labels=relabelled, folder=tmp_path)
    manifest = json.loads((relabelled / "manifest.json").read_text())
    manifest["shards"]["train-00000"] = "another digest"
    (relabelled / "manifest.json").write_text(json.dumps(manifest))
    before = (tmp_path / "mix" / "manifest.json").stat().st_mtime_ns
    train_with([Mix()], labels=relabelled, folder=tmp_path)
    assert (tmp_path / "mix" / "manifest.json").stat().st_mtime_ns > before


def test_two_of_one_name_are_refused(labels, tmp_path):
    with pytest.raises(ValueError, match="two predictors are named 'mix'"):
        train_with([Mix(), Mix()], labels=labels, folder=tmp_path)


def test_the_command_says_what_is_missing(tmp_path):
    done = run(tmp_path / "nowhere", tmp_path)
    assert done.returncode == 2
    assert "python -m experiments.label" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_and_started_again_it_ends_as_undisturbed(labels, tmp_path):
    """SIGKILL once a checkpoint is there; the second run goes on from it and leaves the same weights."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = run(labels, undisturbed, "predictor.max_epochs=12")
    assert done.returncode == 0, done.stderr
    assert "budgeted oracle" in done.stdout

    process = subprocess.Popen(command(labels, killed, "predictor.max_epochs=12"), start_new_session=True)
    last = killed / "predictors" / "cross_attention" / "unfinished" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.poll() is None, "it ended before its first checkpoint was seen"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "predictors" / "cross_attention" / "config.json").exists()

    done = run(labels, killed, "predictor.max_epochs=12")
    assert done.returncode == 0, done.stderr
    name = "predictors/cross_attention/weights.safetensors"
    assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not last.parent.parent.exists()
