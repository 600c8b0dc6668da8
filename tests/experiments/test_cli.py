"""Every entry point and every option of every config group, without running any of them."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.cli import find_config_dir
from experiments.config import entry_point

CONF = find_config_dir()
ENTRY_POINTS = sorted(path.stem for path in CONF.glob("*.yaml"))
GROUPS = ("backbone", "task", "predictor", "trainer", "experiment")
OPTIONS = sorted((path.parent.name, path.stem) for group in GROUPS for path in CONF.glob(f"{group}/*.yaml"))


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
        importlib.import_module(f"experiments.{name}{'.__main__' if name == 'parity' else ''}").main()

    return call


def test_every_promised_command_is_there():
    assert {"label", "train", "latency", "evaluate", "run", "answer", "parity", "train_backbone"} <= set(
        ENTRY_POINTS
    )


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_point_shows_its_configuration(name, call, capsys):
    call(name, "--cfg", "job")
    assert OmegaConf.create(capsys.readouterr().out)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_point_helps(name, call, capsys):
    with pytest.raises(SystemExit) as exit:
        call(name, "--help")
    assert exit.value.code == 0
    assert "== Config ==" in capsys.readouterr().out


@pytest.mark.parametrize("name", ENTRY_POINTS)
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


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_its_targets_exist(group, option):
    targets = list(find_targets(compose_run(f"{group}={option}")))
    assert targets
    for target in targets:
        assert callable(get_object(target)), target


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
