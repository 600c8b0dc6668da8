"""The train command on a synthetic label folder: what it writes, skips, resumes and refuses."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from experiments.reporting.console import format_records
from experiments.training.trained import TrainingSettings, load_trained, read_record
from experiments.training.trainer import fit_hybrid, train_predictors
from m3_backbone.outcomes.labels import read_labels
from predictor.base import ScalePredictor
from predictor.calibration import Isotonic
from predictor.cascades.hybrid import Hybrid
from predictor.classical.baselines import Mix
from predictor.classical.question_only import QuestionOnly
from predictor.policy.pricing import PriceList
from predictor.splitting import calibrator_half
from tests.predictor.synthetic import make_labels, write_labels

SETTINGS = TrainingSettings(seed=0, validation_fraction=0.2)
train_with = functools.partial(train_predictors, settings=SETTINGS)


def find(folder, name):
    """The one folder of a trained predictor of this name."""
    (path,) = (folder / name).glob("*/manifest.json")
    return path.parent


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


@pytest.mark.long
def test_a_predictor_without_a_network_is_trained_without_torch(labels, tmp_path):
    """Importing torch and transformers takes most of the time of such a training."""
    arguments = ["train", "~backbone", "predictor=question_only", f"paths.labels={labels}"]
    arguments += [f"paths.predictors={tmp_path}", f"paths.outputs={tmp_path}", "allow_small=true"]
    code = f"""
import runpy, sys
sys.argv = {arguments}
runpy.run_module("experiments.train", run_name="__main__")
print("LOADED", sorted({{"torch", "transformers", "lightning", "matplotlib"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stderr
    assert list(tmp_path.glob("question_only/*/manifest.json"))


def test_predictors_are_written_with_prices_and_record(labels, tmp_path):
    settings = replace(SETTINGS, budget=20)
    records = train_with([QuestionOnly(), Mix()], labels=labels, folder=tmp_path, settings=settings)
    assert [record.name for record in records] == ["question_only", "mix"]
    for record in records:
        folder = find(tmp_path, record.name)
        assert read_record(folder) == record
        assert ScalePredictor.load(folder).name == record.name
        assert PriceList.load(folder).default.cost == record.default_cost <= 20
        hybrid = Hybrid.load(folder)
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
    assert (
        "epochs, shares, trees and neighbours were selected too: values and ranking are optimistic" in table
    )


def test_what_is_up_to_date_is_left_alone(labels, tmp_path):
    train_with([Mix()], labels=labels, folder=tmp_path)
    path = find(tmp_path, "mix") / "manifest.json"
    first = path.stat().st_mtime_ns
    train_with([Mix()], labels=labels, folder=tmp_path)
    train_with([Mix()], labels=labels, folder=tmp_path, settings=replace(SETTINGS, seed=1))
    assert path.stat().st_mtime_ns == first
    assert len(list((tmp_path / "mix").glob("*/manifest.json"))) == 2


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted", "a folder", "a pointer"])
def test_a_training_with_a_file_that_does_not_load_is_trained_again(labels, tmp_path, damage):
    """Never up to date for `train` and damaged for `evaluate`: the command that makes it mends it."""
    (record,) = train_with([QuestionOnly()], labels=labels, folder=tmp_path)
    folder = find(tmp_path, "question_only")
    files = sorted(path.name for path in folder.iterdir())
    assert {"config.json", "manifest.json", "prices.json", "weights.safetensors"} <= set(files)
    for name in files:
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage != "deleted":
            kept = {"cut": content[:10], "emptied": b"", "a pointer": POINTER}[damage]
            path.write_bytes(kept)
        with pytest.raises(
            (ValueError, FileNotFoundError), match=name if name != "manifest.json" else folder.name
        ):
            load_trained(folder, record.identity)
        (again,) = train_with([QuestionOnly()], labels=labels, folder=tmp_path)
        assert replace(again, seconds=record.seconds) == record
        assert load_trained(folder, record.identity).record == again
        assert sorted(path.name for path in folder.iterdir()) == files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13000000\n"


def refuse_to_lock(*arguments):
    raise PermissionError(13, "Permission denied", str(arguments[0]))


def test_a_finished_store_is_not_written_to(labels, tmp_path, monkeypatch):
    """As one that is read-only, or of another user: there no lock can be made."""
    (first,) = train_with([Mix()], labels=labels, folder=tmp_path)
    for lock in tmp_path.rglob(".*.lock"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr("experiments.training.trainer.wait_for_lock", refuse_to_lock)
    assert train_with([Mix()], labels=labels, folder=tmp_path) == [first]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(OSError, match=r"mix is to be trained, .* \(Permission denied\).*paths\.predictors="):
        train_with([Mix()], labels=labels, folder=tmp_path, settings=replace(SETTINGS, seed=1))


def test_other_labels_are_another_training(labels, tmp_path):
    relabelled = tmp_path / "labels"
    shutil.copytree(labels, relabelled)
    train_with([Mix()], labels=relabelled, folder=tmp_path)
    manifest = json.loads((relabelled / "manifest.json").read_text())
    for split, num_trainings in (("train", 2), ("test", 2), ("calibration", 3)):
        manifest["splits"][split] = "another digest"
        (relabelled / "manifest.json").write_text(json.dumps(manifest))
        train_with([Mix()], labels=relabelled, folder=tmp_path)
        assert len(list((tmp_path / "mix").glob("*/manifest.json"))) == num_trainings


def test_prices_and_hybrid_come_from_samples_that_the_calibrator_has_not_seen(labels, tmp_path):
    """On the half that it was fitted on, a calibrator flatters."""
    settings = replace(SETTINGS, calibrator=Isotonic())
    train_with([QuestionOnly()], labels=labels, folder=tmp_path, settings=settings)
    folder = find(tmp_path, "question_only")
    calibration = read_labels(labels, "calibration")
    unseen = calibration.select(~calibrator_half(calibration.outcomes.image_id))
    predictor = ScalePredictor.load(folder)
    expected = PriceList.from_calibration(
        predictor.predict(unseen.inputs), unseen.inputs.visual_tokens, unseen.outcomes.score, None, 0.01
    )
    assert PriceList.load(folder) == expected
    outcomes = unseen.outcomes
    hybrid = fit_hybrid(predictor.predict(unseen.inputs), outcomes, outcomes.visual_tokens, None, 0.01)
    saved = Hybrid.load(folder)
    assert saved is not None
    np.testing.assert_array_equal(saved.cost, hybrid.cost)
    whole = PriceList.from_calibration(
        predictor.predict(calibration.inputs),
        calibration.inputs.visual_tokens,
        calibration.outcomes.score,
        None,
        0.01,
    )
    assert whole != expected


def test_two_of_one_name_are_refused(labels, tmp_path):
    with pytest.raises(ValueError, match="two predictors are named 'mix'"):
        train_with([Mix(), Mix()], labels=labels, folder=tmp_path)


@pytest.mark.long
def test_the_command_says_what_is_missing(tmp_path):
    done = run(tmp_path / "nowhere", tmp_path)
    assert done.returncode == 2
    assert "tokenscale label" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_undisturbed(labels, tmp_path):
    """SIGKILL once a checkpoint is there; the second run goes on from it and leaves the same weights."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = run(labels, undisturbed, "predictor.max_epochs=12")
    assert done.returncode == 0, done.stderr
    assert "budgeted oracle" in done.stdout

    process = subprocess.Popen(command(labels, killed, "predictor.max_epochs=12"), start_new_session=True)
    home = killed / "predictors" / "cross_attention"
    while not (checkpoints := list(home.glob("*.unfinished/checkpoints/last.ckpt"))):
        assert process.poll() is None, "it ended before its first checkpoint was seen"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(home.glob("*/config.json"))

    done = run(labels, killed, "predictor.max_epochs=12")
    assert done.returncode == 0, done.stderr
    weights = [
        (find(store / "predictors", "cross_attention") / "weights.safetensors").read_bytes()
        for store in (killed, undisturbed)
    ]
    assert weights[0] == weights[1]
    assert not checkpoints[0].exists()
