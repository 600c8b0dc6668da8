"""`tokenscale status`: blocks of labels and jobs in every state, and the commands that do the rest."""

import json
import os
import sys
import time
from typing import Any

import pytest

from experiments import status
from experiments.labels.files import RESAMPLED
from experiments.labels.labelling import label
from experiments.labels.records import GRACE, WORK, WorkRecord, read_record, recording, replace_part
from experiments.labels.resampled import ResampledFolder
from experiments.labels.resampling import DrawnAnswers, resample_answers
from experiments.labels.status import read_label_status
from experiments.reporting.status import format_jobs, format_work, join_names
from experiments.results.jobs import list_jobs
from experiments.tasks.easy_vqa import EasyVqa
from m3_backbone.llava.backbone import LlavaBackbone
from tests.experiments.labels.label_process import CHECKPOINT
from tests.held_out import read_outcomes

COMMAND = "tokenscale label task=easy_vqa shard=0/2 paths.labels=labels"


class Failing(EasyVqa):
    """A task that cannot score the answers about one image."""

    def __init__(self, image_id):
        super().__init__()
        self.image_id = image_id

    def score(self, sample, answer):
        if sample.image_id == self.image_id:
            raise ValueError("no score\x1b[31m for this")
        return super().score(sample, answer)


def make(folder, *, task=None, shard=None, launcher=()):
    backbone = LlavaBackbone(CHECKPOINT, device="cpu", max_new_tokens=1)
    record = WorkRecord.begin(command=COMMAND, launcher=list(launcher))
    label(
        task=task or EasyVqa(),
        backbone=backbone,
        folder=folder,
        limit={"train": 4, "calibration": 1, "test": 1},
        shard_size=10,
        num_workers=0,
        shard=shard,
        record=record,
    )


def count(folder):
    (labels,) = read_label_status(folder)
    return labels, dict(labels.count())


@pytest.mark.long
def test_parts_come_one_after_the_other(tmp_path):
    folder = tmp_path / "labels"
    make(folder, shard="0/2")
    labels, states = count(folder)
    assert not labels.is_complete and set(states) == {"done", "missing"}
    assert [(part.part, part.state) for part in labels.parts] == [("0/2", "done"), ("1/2", "not begun")]
    assert {block.part for block in labels.blocks if block.state == "missing"} == {"1/2"}
    assert labels.commands == [COMMAND.replace("shard=0/2 ", "") + " shard=1/2"]
    text = format_work(labels)
    assert f"not complete: {states['done']} done, {states['missing']} missing" in text
    assert f"run again: {labels.commands[0]}" in text
    make(folder, shard="1/2")
    labels, states = count(folder)
    assert labels.is_complete and set(states) == {"done"} and not labels.commands
    # Of what is left of a damaged folder, the missing file is named.
    name = labels.blocks[0].name
    path = folder / "features" / f"{name}.parquet"
    content = path.read_bytes()
    path.write_bytes(b"x" + content[1:])
    assert read_label_status(folder)[0].is_complete
    (verified,) = read_label_status(folder, verify=True)
    assert [block.name for block in verified.blocks if block.state == "failed"] == [name]
    assert verified.commands
    path.unlink()
    assert not read_label_status(folder)[0].is_complete


@pytest.mark.long
def test_what_failed_has_its_reason(tmp_path):
    folder = tmp_path / "labels"
    images = [sample.image_id for sample in EasyVqa().samples("train")]
    last = list(dict.fromkeys(images))[3]
    with pytest.raises(ValueError, match="no score"):
        make(folder, task=Failing(last), launcher=["hydra/launcher=submitit_slurm"], shard="0/1")
    labels, states = count(folder)
    (failed,) = (block for block in labels.blocks if block.state == "failed")
    assert failed.detail.endswith(": no score [31m for this")
    assert (labels.parts[0].state, states["done"], states["missing"]) == ("failed", 1, 2)
    assert labels.commands == [COMMAND]
    make(folder, shard="0/1")
    assert count(folder)[0].is_complete
    assert not list((folder / WORK).glob("block-*"))


def test_jobs_of_a_sweep_are_swept_again(tmp_path):
    folder = tmp_path / "labels"
    make(folder, shard="0/3", launcher=["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=600"])
    labels, _ = count(folder)
    assert labels.commands == [
        "tokenscale label -m task=easy_vqa paths.labels=labels shard=1/3,2/3 "
        "hydra/launcher=submitit_slurm hydra.launcher.timeout_min=600"
    ]
    assert replace_part(COMMAND, "1/2").endswith("paths.labels=labels shard=1/2")


def test_sampled_answers_have_a_state_of_their_own(tmp_path):
    folder = tmp_path / "labels"
    make(folder)
    backbone = LlavaBackbone(CHECKPOINT, device="cpu", max_new_tokens=1)
    test = read_outcomes(folder, "test")
    variation = DrawnAnswers()
    resample_answers(
        backbone,
        EasyVqa(),
        test,
        ResampledFolder(folder, test.fingerprints, variation.identity),
        variation,
        num_runs=2,
        record=WorkRecord.begin(command="tokenscale resample"),
    )
    labels, sampled = read_label_status(folder)
    assert labels.is_complete and sampled.is_complete and sampled.count() == {"done": 1}
    next((folder / RESAMPLED).glob("*.safetensors")).unlink()
    _, sampled = read_label_status(folder)
    assert not sampled.is_complete and sampled.commands == ["tokenscale resample"]
    (folder / RESAMPLED).rename(folder / f"{RESAMPLED}_train")
    _, sampled = read_label_status(folder)
    assert sampled.work == "sampled answers of train" and not sampled.is_complete


def write_record(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WorkRecord.begin(command="tokenscale label").model_copy(update=content).model_dump_json())


def read(path):
    record = read_record(path)
    assert record is not None
    return record


def test_a_process_without_a_heartbeat_counts_as_killed(tmp_path):
    path = tmp_path / "part-0-of-1.json"
    write_record(path, host="elsewhere")
    assert read(path).state == "running"
    long_ago = time.time() - GRACE - 600
    os.utime(path, (long_ago, long_ago))
    record = read(path)
    assert (record.state, record.reason) == ("killed", "no sign of life for 12 minutes")
    # On this machine, the system knows at once.
    write_record(path, process=2**22 + 1)
    assert read(path).state == "killed"
    with recording(path, WorkRecord.begin()):
        assert read(path).state == "running"
    assert read(path).state == "done"


@pytest.mark.parametrize("content", ["", "[]", '{"state": "tired"}', '{"process": "1"}', "\x00"])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    path = tmp_path / "job.json"
    path.write_text(content)
    assert read_record(path) is None


def write_sweep(folder):
    """A sweep of six jobs as Hydra leaves it: done, killed, failed, running, without a record, not begun."""
    hydra = {
        "job": {"config_name": "train"},
        "sweep": {"subdir": "${hydra.job.num}"},
        "overrides": {"task": ["seed=0,1,2", "predictor=mlp,blend", "max_epochs=3"]},
    }
    folder.mkdir()
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra}))
    states: list[dict[str, Any]] = [
        {"state": "done"},
        {"process": 2**22 + 1},
        {"state": "failed", "reason": "no labels"},
        {"host": "elsewhere"},
    ]
    for number, content in enumerate(states):
        command = f"tokenscale train number={number}"
        write_record(folder / str(number) / ".hydra" / "job.json", command=command, **content)
    (folder / "4" / ".hydra").mkdir(parents=True)


def test_jobs_of_a_sweep(tmp_path):
    folder = tmp_path / "sweep"
    write_sweep(folder)
    jobs = list_jobs(folder)
    assert [job.state for job in jobs] == ["done", "killed", "failed", "running", "unknown", "missing"]
    assert jobs[1].overrides == "seed=0 predictor=blend" and jobs[5].overrides == "seed=2 predictor=blend"
    assert jobs[1].command == "tokenscale train number=1" and not jobs[3].command
    assert jobs[5].command.endswith(f"train seed=2 predictor=blend max_epochs=3 hydra.run.dir={folder / '5'}")
    assert jobs == list_jobs(tmp_path)
    text = format_jobs(jobs)
    assert (
        f"failed {folder / '2'}: process " in text
        and ": no labels" in text
        and "1 done, 1 failed, 1 killed" in text
    )
    (folder / "multirun.yaml").write_text("hydra: 3")
    with pytest.raises(ValueError, match=r"multirun.yaml is damaged .*: run that sweep again"):
        list_jobs(folder)


def test_names_in_a_row_are_a_range():
    assert join_names(["00001", "00003", "00004", "00005", "00007", "00008"]) == (
        "00001, 00003 to 00005, 00007, 00008"
    )
    assert (
        join_names(["test-00000", "test-00001", "test-00002", "other"]) == "test-00000 to test-00002, other"
    )


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["status", *arguments])
    try:
        status.main()
    except SystemExit as exit:
        return exit.code
    return 0


def test_exit_status_says_whether_all_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "sweep")
    assert call(monkeypatch, f"folder={tmp_path / 'sweep'}", "print_json=true") == 1
    content = json.loads(capsys.readouterr().out)
    assert not content["complete"] and len(content["jobs"]) == 6
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    write_record(tmp_path / "run" / ".hydra" / "job.json", state="done")
    assert call(monkeypatch, f"folder={tmp_path / 'run'}") == 0
    assert "1 done" in capsys.readouterr().out
    assert call(monkeypatch, f"folder={tmp_path / 'nowhere'}") == 2
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, f"folder={tmp_path / 'empty'}") == 2
    assert "holds no labels and no runs" in capsys.readouterr().err
