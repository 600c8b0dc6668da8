"""GPUs of a node are divided among the processes that label on it; none of it needs a GPU."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from experiments.command_line.running import is_one_after_another
from experiments.command_line.script import find_config_dir
from experiments.labels.devices import (
    LAUNCHED_WITH,
    VISIBLE,
    Place,
    find_place,
    remember_visible,
    take_devices,
)
from experiments.labels.engines import RayEngine
from experiments.labels.records import WORK, read_records
from experiments.labels.status import read_label_status
from experiments.tasks.base import SPLITS
from tests.experiments.labels.label_process import start
from tests.held_out import read_outcomes

SUBMITIT = {"SUBMITIT_EXECUTOR": "local"}


@pytest.mark.parametrize(
    ("count", "devices", "shares"),
    [
        (2, "0,1", ["0", "1"]),
        (2, "4,5,6,7", ["4,5", "6,7"]),
        (3, "0,1,2,3", ["0", "1", "2,3"]),
        (4, "2,3", ["2", "3", "2", "3"]),
        (2, "GPU-aa,GPU-bb", ["GPU-aa", "GPU-bb"]),
        (2, "0", ["0", "0"]),
        (1, "0,1", ["0,1"]),
    ],
)
def test_every_process_has_its_share_and_no_other_s(count, devices, shares):
    names = devices.split(",")
    taken = [Place(index, count).share(names) for index in range(count)]
    assert [",".join(share) for share in taken] == shares
    if len(names) >= count:
        assert [device for share in taken for device in share] == names


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        # By hand, by joblib, or by submitit on one machine: the parts of the work share it.
        ({}, Place(3, 8)),
        ({**SUBMITIT, "SUBMITIT_LOCAL_LOCALID": "0", "SLURM_LOCALID": "0"}, Place(3, 8)),
        # A script of one Slurm task that starts several processes.
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}, Place(3, 8)),
        # Jobs of an array have GPUs of their own, also those of hydra/launcher=submitit_slurm.
        (
            {"SUBMITIT_EXECUTOR": "slurm", "SLURM_LOCALID": "0", "SLURM_ARRAY_TASK_ID": "3"},
            Place(0, 1),
        ),
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, Place(1, 4)),
        ({"SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "8,4(x3)", "SLURM_NODEID": "2"}, Place(1, 4)),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, Place(2, 4)),
    ],
)
def test_the_place_of_a_process_comes_from_what_started_it(environment, place):
    assert find_place(environment, (3, 8)) == place


def test_a_rank_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="LOCAL_RANK is 'x' and not a number"):
        find_place({"LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("visible", "shard", "num_gpus", "after", "share"),
    [
        (None, (1, 2), 4, "2,3", ["2", "3"]),
        (None, (0, 1), 2, None, ["0", "1"]),
        (None, (1, 2), 0, None, []),
        ("6,7", (1, 2), 99, "7", ["7"]),
        ("6,-1,7", (0, 1), 99, "6,-1,7", ["6"]),
        ("", (1, 2), 99, "", []),
    ],
)
def test_other_gpus_are_hidden(visible, shard, num_gpus, after, share):
    environment = {} if visible is None else {VISIBLE: visible}
    taken = take_devices(shard, environment=environment, count=lambda: num_gpus)
    # CUDA ignores what follows -1.
    assert taken == share
    assert environment.get(VISIBLE) == after


@pytest.mark.parametrize(("launched_with", "after"), [(None, "1"), ("4,5", "5"), ("", "")])
def test_submitit_on_one_machine_does_not_hide_the_gpus(launched_with, after):
    """Its launcher sets CUDA_VISIBLE_DEVICES to nothing unless it is told a number of GPUs."""
    launching = {} if launched_with is None else {VISIBLE: launched_with}
    remember_visible(launching)
    job = {**launching, **SUBMITIT, VISIBLE: ""}
    take_devices((1, 2), environment=job, count=lambda: 2)
    assert job[VISIBLE] == after
    told = {**launching, **SUBMITIT, VISIBLE: "0,1,2,3"}
    take_devices((1, 2), environment=told, count=lambda: 2)
    assert told[VISIBLE] == "2,3" and LAUNCHED_WITH in told


@pytest.mark.parametrize(("launcher", "is_alone"), [("basic", True), ("submitit_local", False)])
def test_jobs_that_run_one_after_another_share_nothing(launcher, is_alone):
    with initialize_config_dir(version_base="1.3", config_dir=str(find_config_dir())):
        config = compose("label", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    with read_write(config), open_dict(config.hydra):
        config.hydra.mode = RunMode.MULTIRUN
    HydraConfig.instance().set_config(config)
    assert is_one_after_another() == is_alone


def test_ray_starts_an_actor_for_each_gpu():
    assert RayEngine()._count_actors(8) == 8
    assert RayEngine(num_gpus=0.5)._count_actors(2) == 4
    assert RayEngine(num_gpus=2)._count_actors(5) == 2
    assert RayEngine(num_gpus=0)._count_actors(0) == 1
    with pytest.raises(
        ValueError, match=r"engine.num_gpus=1: there are 0 GPUs for Ray: set engine.num_gpus=0"
    ):
        RayEngine(init={"num_gpus": 0})._init_arguments()
    assert RayEngine(init={"num_gpus": 40})._init_arguments()["num_cpus"] >= 42


def compare(folder: Path, plain: Path) -> None:
    for split in SPLITS:
        assert read_outcomes(folder, split).to_arrow().equals(read_outcomes(plain, split).to_arrow())


def read_status(folder: Path) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.status", f"folder={folder}", "print_json=true"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks the system whether a process lives")
def test_one_of_two_jobs_on_two_devices_is_killed_and_run_again(tmp_path, monkeypatch):
    """Two jobs of submitit with a device each make the table of one process, also if one is killed."""
    monkeypatch.setenv(VISIBLE, "0,1")
    folder, rng = tmp_path / "jobs" / "labels", random.Random()
    options = [
        *("shard=0/2,1/2", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"),
        *("shard_size=5", "-m"),
    ]
    sweep = start(folder, *options)
    most = rng.randint(1, 3)
    while True:
        parts = read_records(folder / WORK, "part-*.json")
        if len(list(folder.glob("outcomes/*.parquet"))) >= most and len(parts) == 2:
            break
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.01)
    assert {record.gpus for record in parts.values()} == {"0", "1"}
    victim = rng.choice([record for record in parts.values() if record.state == "running"])
    os.kill(victim.process, signal.SIGKILL)
    sweep.communicate(timeout=240)

    def is_running() -> bool:
        (status,) = read_label_status(folder)
        return any(part.state == "running" for part in status.parts)

    while is_running():
        time.sleep(0.1)
    returncode, status = read_status(folder)
    assert returncode == 1 and not status["complete"]
    states = {part["part"]: part["state"] for part in status["work"][0]["parts"]}
    assert states[victim.part] == "killed"
    (command,) = status["work"][0]["commands"]
    assert f"shard={victim.part} hydra/launcher=submitit_local" in command
    words = shlex.split(command)[3:]
    again = subprocess.run(
        [sys.executable, "-m", "experiments.label", *words],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert again.returncode == 0, again.stderr
    assert read_status(folder)[0] == 0
    plain = start(tmp_path / "plain", "shard_size=5")
    assert plain.wait(timeout=240) == 0
    compare(folder, tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_actors_have_a_device_each(tmp_path):
    """Ray is told of two GPUs, and shows each of its actors one of them."""
    pytest.importorskip("ray")
    folder = tmp_path / "by_ray"
    process = start(folder, "engine=ray", "+engine.init.num_gpus=2", "num_workers=0", "shard_size=3")
    seen = set()
    while process.poll() is None:
        for record in read_records(folder / WORK, "block-*.json").values():
            seen.add((record.process, record.gpus))
        time.sleep(0.005)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(seen) == 2 and {gpus for _, gpus in seen} == {"0", "1"}
    plain = start(tmp_path / "plain", "shard_size=3")
    assert plain.wait(timeout=240) == 0
    compare(folder, tmp_path / "plain")
