"""Commands beside each other, and in surroundings that decide nothing: folders, locks, terminal, cluster."""

import importlib
import io
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import LightningEnvironment

from experiments.command_line.entry_point import replace_unprintable
from experiments.command_line.script import find_config_dir
from experiments.labels import files as label_locks
from experiments.labels.files import hold, make_exclusively, wait_for_lock
from experiments.labels.folder import KeptInputs, LabelFolder
from experiments.results.run_folders import check_link
from predictor.learned import make_quiet_trainer

SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NAME": "label",
    "SLURM_JOB_ID": "7",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "n1",
}


@pytest.fixture
def call(monkeypatch, capsys):
    """`call("label", "seed=1")` is `python -m experiments.label seed=1`: its exit status, and its errors."""

    def call(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"somewhere/experiments/{name}.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"experiments.{name}").main()
        return int(str(ended.value.code)), capsys.readouterr().err

    return call


def occupy(folder, suffix):
    """Make the folders that a command of this minute would take."""
    now = datetime.now()
    for seconds in range(60):
        (folder / f"{now + timedelta(seconds=seconds):%Y-%m-%d_%H-%M-%S}_{suffix}").mkdir(parents=True)


def test_folders_are_made_exclusively(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_exclusively, [tmp_path / "runs" / "now"] * 8))
    assert sorted(path.name for path in made) == ["now", *(f"now-{number}" for number in range(2, 9))]


def test_a_run_of_the_same_second_gets_a_folder_of_its_own(call, tmp_path):
    occupy(tmp_path / "runs", "compare")
    status, _ = call("compare", f"paths.outputs={tmp_path}", "runs=nowhere")
    assert status == 2
    (own,) = (tmp_path / "runs").glob("*-2")
    assert (own / ".hydra" / "overrides.yaml").is_file()
    assert [path for path in (tmp_path / "runs").glob("*/*") if path.parent != own] == []


def test_a_sweep_of_the_same_second_gets_a_folder_of_its_own(call, tmp_path):
    occupy(tmp_path / "it's here" / "multirun", "compare")
    status, _ = call("compare", "-m", f'paths.outputs="{tmp_path}/it\'s here"', "runs=nowhere,elsewhere")
    assert status == 2
    (own,) = (tmp_path / "it's here" / "multirun").glob("*-2")
    assert {"0", "multirun.yaml"} <= {path.name for path in own.iterdir()}
    assert (own / "0" / ".hydra" / "overrides.yaml").is_file()


def test_a_folder_that_is_named_is_used_as_it_is(call, tmp_path):
    (tmp_path / "mine").mkdir()
    call("compare", f"hydra.run.dir={tmp_path / 'mine'}", "runs=nowhere")
    assert (tmp_path / "mine" / ".hydra").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (("paths.outputs={file}",), "paths.outputs=FOLDER"),
        (("hydra.run.dir={file}/x",), "hydra.run.dir=FOLDER"),
        (("-m", "paths.outputs={file}"), "paths.outputs=FOLDER"),
    ],
)
def test_results_that_cannot_be_written_are_one_line(call, tmp_path, arguments, way_out):
    file = tmp_path / "file"
    file.touch()
    status, error = call("compare", *(each.format(file=file) for each in arguments), "runs=nowhere")
    assert status == 2
    assert error.startswith(f"error: results cannot be written to {file}") and way_out in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("task.name=a b",), ("-m", "task.seed=1,2")])
def test_an_interrupted_command_says_what_is_lost_and_what_to_type(call, tmp_path, monkeypatch, arguments):
    def interrupt(**settings):
        stopped = KeyboardInterrupt()
        stopped.add_note("The unfinished file is lost, at most 7 samples.")
        raise stopped

    monkeypatch.setattr("experiments.labels.labelling.label", interrupt)
    places = f"paths.outputs={tmp_path}"
    status, error = call("label", *arguments, places, "overwrite=true")
    given = " ".join(f"'{each}'" if " " in each else each for each in (*arguments, places))
    assert status == 130
    assert error.splitlines()[-1] == (
        "Interrupted. The unfinished file is lost, at most 7 samples. Finished files are kept; run "
        f"`python -m experiments.label {given}` again to resume."
    )


def test_an_interrupted_script_is_resumed_with_the_script(call, tmp_path, monkeypatch):
    def interrupt(**settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.labels.labelling.label", interrupt)
    monkeypatch.setenv("TOKENSCALE_STARTED_BY_SCRIPT", "1")
    places = f"paths.outputs={tmp_path}"
    status, error = call("label", places)
    assert status == 130
    assert error.splitlines()[-1].endswith(f"run `tokenscale label {places}` again to resume.")


@pytest.mark.parametrize("place", ["entry_point.find_malformed", "callbacks.take_folder"])
def test_an_interrupt_before_the_work_begins_says_what_to_type(call, tmp_path, monkeypatch, place):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"experiments.command_line.{place}", interrupt)
    places = f"paths.outputs={tmp_path}"
    status, error = call("label", "task.seed=3", places, "overwrite=true")
    assert status == 130
    assert error.splitlines()[-1] == (
        "Interrupted. Finished files are kept; run "
        f"`python -m experiments.label task.seed=3 {places}` again to resume."
    )


def test_a_command_that_is_called_from_another_one_leaves_its_name(tmp_path, monkeypatch, call):
    """What is composed to find mistakes is not what Hydra runs."""
    names = []

    def look(**settings):
        names.append(HydraConfig.get().job.name)
        raise ValueError("enough")

    monkeypatch.setattr("experiments.labels.configured.label", look)
    for arguments in ((), ("-m", "task.seed=1,2")):
        assert call("label", f"paths.outputs={tmp_path}", *arguments)[0] == 2
    assert set(names) == {"label"}


def test_what_the_terminal_lacks_is_replaced(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    replace_unprintable()
    print("\N{MINUS SIGN}1 \N{LESS-THAN OR EQUAL TO} é", flush=True)
    assert written.getvalue() == "?1 ? é\n".encode("cp1252")


def test_who_waits_for_a_lock_says_for_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(label_locks, "QUIET_SECONDS", 0.05)
    path, entered, done = tmp_path / ".lock", threading.Event(), threading.Event()

    def hold_it():
        with wait_for_lock(path, "trains mlp"):
            entered.set()
            while "waiting" not in caplog.text:
                done.wait(0.01)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold_it)
        entered.wait()
        with wait_for_lock(path, "trains mlp"):
            assert holding.result() is None
    assert "waiting: process " in caplog.text and " trains mlp" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_labels_in_use_are_refused_with_the_way_out(tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match=r"another process is labelling into .*paths\.labels=FOLDER"),
        hold(tmp_path),
    ):
        pass


def test_the_place_of_the_latest_link_is_checked_before_any_work(call, tmp_path, monkeypatch):
    def label_nothing(config, **arguments):
        raise AssertionError("work has begun")

    monkeypatch.setattr("experiments.labels.configured.label_configured", label_nothing)
    (tmp_path / "latest").mkdir()
    status, error = call("run", f"paths.outputs={tmp_path}")
    assert status == 2 and "latest is not a symbolic link: move it" in error
    (tmp_path / "file").touch()
    status, error = call("run", f"paths.outputs={tmp_path}", f"latest={tmp_path}/file/latest")
    assert status == 2 and "set latest=PATH to another place" in error


def test_checking_the_link_changes_nothing(tmp_path):
    check_link(tmp_path / "latest", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [SLURM, {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_a_trainer_of_one_process_is_one_wherever_it_runs(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        configured = {name: compose("train", [f"trainer={name}"]).trainer for name in ("cpu", "gpu", "ddp")}
    for trainer in (instantiate(configured["cpu"]), make_quiet_trainer()):
        environment = trainer._accelerator_connector.cluster_environment
        assert isinstance(environment, LightningEnvironment)
        assert trainer.world_size == 1 and trainer.is_global_zero
    assert configured["gpu"].plugins == configured["cpu"].plugins
    assert configured["ddp"].plugins is None


def test_a_file_where_the_labels_belong_is_said_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    reason = r"as a file is in place of a folder: .*paths\.labels=FOLDER$"
    for path in (tmp_path / "file", tmp_path / "file" / "labels"):
        folder = LabelFolder(path, fingerprints={}, scales=(1,), kept=KeptInputs((1,)))
        with pytest.raises(OSError, match=reason), folder.locked():
            pass
