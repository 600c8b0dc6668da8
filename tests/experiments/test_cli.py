"""Every entry point and every option of every config group, without running any of them."""

import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.command_line.entry_point import entry_point
from experiments.command_line.help import list_options, split_docstring
from experiments.command_line.next_commands import format_next
from experiments.command_line.overrides import (
    find_malformed,
    find_wrong_argument,
    quote_free_text,
    rename_settings,
)
from experiments.command_line.script import find_config_dir, format_commands
from experiments.settings.check import check_settings
from tests.paths import ROOT

CONF = find_config_dir()
ENTRY_POINTS = sorted(path.stem for path in CONF.glob("*.yaml"))
GROUPS = ("backbone", "task", "predictor", "trainer", "experiment")
OPTIONS = sorted((path.parent.name, path.stem) for group in GROUPS for path in CONF.glob(f"{group}/*.yaml"))

HEAVY = {"torch", "transformers", "lightning", "matplotlib", "plotly", "pandas", "sklearn", "scipy"}


def compose_command(name: str) -> DictConfig:
    """The configuration of a command with that of Hydra."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(name, return_hydra_config=True)


def compose_run(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("run", overrides=list(overrides))


def find_targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a configuration, at any depth."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node["_target_"]
        for key in node:
            yield from find_targets(node._get_node(key))
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from find_targets(node._get_node(index))


@pytest.fixture
def call(monkeypatch):
    """`call("label", "seed=1")` is `python -m experiments.label seed=1` in this process."""

    def call(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"experiments.{name}", *arguments])
        module = f"{name}.__main__" if name in ("paper", "parity") else name
        importlib.import_module(f"experiments.{module}").main()

    return call


def test_every_promised_command_is_there():
    assert {"label", "train", "latency", "evaluate", "run", "answer", "parity", "train_backbone"} <= set(
        ENTRY_POINTS
    )


def test_a_command_shows_its_configuration(call, capsys):
    call("label", "--cfg", "job")
    assert OmegaConf.create(capsys.readouterr().out).keys() == compose_command("label").keys() - {"hydra"}


@pytest.mark.long
def test_help_shows_every_option_and_imports_nothing_heavy(tmp_path):
    """Every option with its default and its meaning; as a script and with `python -m`."""
    code = f"""
import contextlib, pathlib, runpy, sys
from experiments.command_line.script import main
for name in {ENTRY_POINTS}:
    sys.argv = ["tokenscale", name, "--help"]
    with open(pathlib.Path({str(tmp_path)!r}, name), "w") as file, contextlib.redirect_stdout(file):
        try:
            main()
        except SystemExit as ended:
            assert not ended.code
sys.argv = ["tokenscale", "--help"]
main()
print("HEAVY", sorted({HEAVY} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["HEAVY []"], done.stderr
    for name in ENTRY_POINTS:
        text = (tmp_path / name).read_text()
        assert f"tokenscale {name} --cfg job" in text and str(CONF / f"{name}.yaml") in text, name
        config = compose_command(name)
        options = list_options(name, config)
        for option in options:
            assert option.meaning and f"  {option.name}={option.value}" in text, (name, option.name)
        shown = {part for option in options for part in re.split(r"[@.]", option.name)}
        assert config.keys() - {"hydra"} <= shown, name


def test_help_shows_the_given_values_and_names_wrong_ones(call, capsys):
    with pytest.raises(SystemExit):
        call("label", "task=easy_vqa", "limit.train=7", "-h")
    text = capsys.readouterr().out
    assert "  task=easy_vqa " in text and "  limit.train=7 " in text
    with pytest.raises(SystemExit, match="2"):
        call("label", "nosuch=1", "--help")
    assert "nosuch=1: no such setting" in capsys.readouterr().err


def test_former_names_of_settings_are_understood(call, capsys):
    call("evaluate", "risk.alpha=0.07", "--cfg", "job")
    assert OmegaConf.create(capsys.readouterr().out).guarantee.alpha == 0.07
    call("answer", "climb=true", "--cfg", "job")
    assert OmegaConf.create(capsys.readouterr().out).escalate is True
    assert rename_settings(["task.risk=1", "climber=1", "~risk.alpha"]) == [
        "task.risk=1",
        "climber=1",
        "~guarantee.alpha",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["label", "--help"]])
def test_closed_output_ends_a_command_without_a_traceback(arguments):
    """As in `tokenscale --help | head -1`, with a reader that is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from experiments.command_line.script import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_commands_are_listed_with_a_line_each():
    lines = format_commands().splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(ENTRY_POINTS)
    assert max(map(len, lines)) <= 110


@pytest.mark.long
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_examples_of_the_help_are_accepted(name):
    examples = [line.partition("  #")[0].strip() for line in split_docstring(name)[1]]
    assert len(examples) == 3
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command.replace("-", "_")) == ("tokenscale", name)
        arguments = quote_free_text(arguments)
        if "-m" in arguments or "CHECKPOINT" in example:
            assert find_wrong_argument(CONF, name, arguments) is None
        else:
            assert find_malformed(CONF, arguments) is None
            with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
                check_settings(name, compose(name, arguments))


@pytest.mark.parametrize("name", ["label", pytest.param("parity", id="a package")])
def test_unknown_option_names_the_culprit(name, call, capsys):
    with pytest.raises(SystemExit) as exit:
        call(name, "nosuch=1")
    assert exit.value.code != 0
    assert "nosuch" in capsys.readouterr().err


def test_unknown_group_option_lists_the_known_ones(call, capsys):
    with pytest.raises(SystemExit):
        call("run", "task=nosuch")
    message = capsys.readouterr().err
    assert "task/nosuch" in message
    assert "scenes" in message


@pytest.mark.long
def test_options_compose_and_their_targets_exist():
    """One option of each group at a time; an experiment has options of the other groups, so it is alone."""
    in_group = {group: [option for of_group, option in OPTIONS if of_group == group] for group in GROUPS}
    experiments = [[f"experiment={option}"] for option in in_group.pop("experiment")]
    together = itertools.zip_longest(*([f"{group}={name}" for name in in_group[group]] for group in in_group))
    for options in [*experiments, *([option for option in row if option] for row in together)]:
        config = compose_run(*options)
        for target in find_targets(config):
            assert callable(get_object(target)), (options, target)
        for group, _, option in (text.partition("=") for text in options):
            assert group == "experiment" or list(find_targets(config[group])), (group, option)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_overlay_opens_with_command_time_and_result(option):
    lines = (CONF / "experiment" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"  # Hydra looks for it nowhere else
    assert [line.split(": ")[0] for line in lines[1:4]] == ["# Command", "# Time", "# Result"]
    assert f"experiment={option}" in lines[1]


@pytest.mark.parametrize("name", ["label", "train", "evaluate"])
def test_run_has_the_settings_of_its_steps(name):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        step = compose(name)
    chain = compose_run()
    assert {key: chain._get_node(key) for key in step} == {key: step._get_node(key) for key in step}


def run_failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @entry_point("bench_evaluation")
    def main(config: DictConfig) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["experiments.bench_evaluation"])
    main()


def test_a_trainer_that_the_machine_lacks_is_a_mistake(monkeypatch, capsys):
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    with pytest.raises(SystemExit) as exit:
        run_failing(MisconfigurationException("No supported gpu backend found!"), monkeypatch)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "No supported gpu backend found! trainer=cpu runs anywhere" in message


def test_mistake_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_failing(ValueError("scale 7 is not on the ladder"), monkeypatch)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: scale 7 is not on the ladder\n"


def test_the_next_commands_are_about_the_same_labels_and_predictor(monkeypatch):
    def suggest(*overrides):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose("run", list(overrides), return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
        return format_next("answer", "publish").splitlines()

    answer, publish = suggest("task=easy_vqa", "predictor.name=mine", "gallery=0", "seed=3")
    shared = "task=easy_vqa predictor.name=mine seed=3"
    assert answer == f"next: tokenscale answer {shared} image=FILE 'question=what is it?'"
    assert publish == f"next: tokenscale publish {shared} folder=FOLDER"
    assert suggest("experiment=embedded_short") == suggest("max_epochs=3") == []


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (("task=easy_vqa", "predictor=mlp", "gallery=0", "seed=3"), "task=easy_vqa"),
        (
            ("experiment=embedded_short", "seed=3"),
            "task.num_images.train=60 task.num_images.calibration=20 task.num_images.test=30 "
            "paths.store=outputs/short",
        ),
        ((), ""),
    ],
)
def test_failures_are_those_of_the_same_labels(monkeypatch, overrides, options):
    monkeypatch.delenv("TOKENSCALE_STORE", raising=False)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("run", list(overrides), return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    line = format_next("failures", config=check_settings("run", compose_run(*overrides)))
    assert line == f"next: tokenscale failures {options}".strip()


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (
            ("experiment=embedded_short", "seed=3"),
            "seed=3 task.num_images.train=60 task.num_images.calibration=20 task.num_images.test=30 "
            "paths.store=outputs/short predictor.max_epochs=3",
        ),
        (("experiment=published_7b", "trainer=cpu"), "backbone=m3_llava_7b task=textvqa"),
        (("predictor=mlp", "max_epochs=3"), "predictor=mlp predictor.max_epochs=3"),
        (("calibrator=temperature", "budget=20", "+predictor@baselines.a=mlp"), ""),
    ],
)
def test_the_next_commands_select_the_predictor_of_an_experiment(monkeypatch, overrides, options):
    monkeypatch.delenv("TOKENSCALE_STORE", raising=False)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("run", list(overrides), return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    checked = check_settings("run", compose_run(*overrides))
    (line,) = format_next("publish", config=checked).splitlines()
    assert line == " ".join(f"next: tokenscale publish {options} folder=FOLDER".split())
