"""A paper: steps from a list, run once each, their tables and figures in one place."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.command_line.overrides import compose, find_wrong_argument
from experiments.command_line.running import Provenance
from experiments.command_line.script import find_config_dir
from experiments.paper.running import StepState, read_done, run_steps, write_command
from experiments.paper.steps import Step, read_steps, select_steps
from experiments.reporting.numbers import format_duration
from experiments.reporting.page import save_figure
from experiments.reporting.paper import collect, find_run, write_paper
from experiments.reporting.tables import Table, write_tables


def test_steps_are_checked():
    steps = read_steps({"a": {"command": "label"}, "b": {"command": "run", "needs": ["a"], "title": "B"}})
    assert steps == [Step("a", "label"), Step("b", "run", needs=("a",), title="B")]
    with pytest.raises(ValueError, match=r"list_of_steps\.a\.command=lable: give one of .*label"):
        read_steps({"a": {"command": "lable"}})
    with pytest.raises(ValueError, match=r"list_of_steps\.a\.needs=b: there is no such earlier step"):
        read_steps({"a": {"command": "label", "needs": ["b"]}, "b": {"command": "label"}})


def test_chosen_steps_bring_what_they_need():
    steps = [Step("a", "label"), Step("b", "train", needs=("a",)), Step("c", "run", needs=("b",))]
    assert [step.name for step in select_steps([*steps, Step("d", "run")], ["c"])] == ["a", "b", "c"]
    assert select_steps(steps, None) == steps
    with pytest.raises(ValueError, match="steps: there is no step 'e', give one of a, b, c"):
        select_steps(steps, ["e"])


@pytest.mark.long
def test_command_has_the_settings_that_it_knows(tmp_path):
    step = Step("a", "train", ("-m", "seed=0,1"))
    settings = ["num_resamples=100", "max_epochs=2", "task.num_images={train: 60, calibration: 20, test: 30}"]
    words = write_command(step, tmp_path, settings, tmp_path / "records")
    # Training resamples nothing.
    assert words[:3] == ["tokenscale", "train", "-m"] and words[-3:] == [*settings[1:], "seed=0,1"]
    assert f"paths.store={tmp_path / 'store'}" in words


@pytest.mark.long
def test_done_steps_are_not_run_again_and_failed_ones_stop_those_that_need_them(tmp_path):
    steps = [
        Step("prompt", "status", ("folder=conf",)),
        Step("after", "status", needs=("prompt",)),
    ]
    arguments = {"settings": [], "evaluations": tmp_path / "records"}
    # Results that a step read before it ran again do not count.
    stale = tmp_path / "steps" / "after" / "done.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps({"command": write_command(steps[1], tmp_path, **arguments), "seconds": 1.0}))
    states = run_steps(steps, tmp_path, all_steps=steps, **arguments)
    assert not stale.exists()
    assert states["prompt"].status == "failed" and "it holds no labels and no runs" in states["prompt"].reason
    assert states["after"] == StepState("skipped", reason="it needs prompt, which is not done")

    done = tmp_path / "steps" / "prompt" / "done.json"
    words = write_command(steps[0], tmp_path, **arguments)
    done.write_text(json.dumps({"command": words, "seconds": 75.0}))
    stale.write_text("{}")
    state = run_steps(steps[:1], tmp_path, all_steps=steps, **arguments)["prompt"]
    assert stale.exists()
    assert state.was_done and state.seconds == 75 and state.command.endswith("folder=conf")
    # Another command line is another step. What needs it is to be run again, also if it runs alone.
    done.write_text(json.dumps({"command": [*words, "verify=true"], "seconds": 75.0}))
    assert read_done(done, words) is None
    run_steps(steps[:1], tmp_path, all_steps=steps, **arguments)
    assert not stale.exists()


def test_results_are_collected_on_a_page_that_shows_what_is_missing(tmp_path):
    from matplotlib.figure import Figure

    step = Step("main", "run", title="The main <run>", tables=("scores", "luck"), figures=("front",))
    runs = tmp_path / "steps" / "main" / "runs"
    for name in ("2026-01-01_00-00-00_run", "2026-01-02_00-00-00_run"):
        write_tables(runs / name / "tables", [Table("Scores", ("policy", "score"), ((name, "1"),), "scores")])
        save_figure(Figure(), runs / name / "front")
    assert find_run(tmp_path / "steps" / "main").name == "2026-01-02_00-00-00_run"
    result = collect(tmp_path, step)
    assert result.tables[0].rows == (("2026-01-02_00-00-00_run", "1"),) and result.missing == ["table luck"]
    assert sorted(path.name for path in tmp_path.glob("*/main-*")) == [
        "main-front.pdf",
        "main-front.svg",
        "main-scores.csv",
        "main-scores.tex",
    ]
    states = {"main": StepState("done", 61.0, "tokenscale run")}
    page = write_paper(tmp_path, [step], states, Provenance("tokenscale paper", "", "now"))
    text = page.read_text("utf-8")
    assert "The main &lt;run&gt;" in text and "The run has no table luck." in text and "1 min 1 s" in text


@pytest.mark.parametrize("seconds, text", [(7.4, "7 s"), (60, "1 min 0 s"), (3661, "1 h 1 min")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.long
def test_every_step_of_the_committed_list_is_a_valid_command():
    """The steps of `paper=short` are run by the continuous integration."""
    conf = find_config_dir()
    config = compose(conf, "paper", ["paper=embedded"])
    entries: Any = OmegaConf.to_container(config.list_of_steps, resolve=True)
    for step in read_steps(entries):
        words = write_command(step, Path("folder"), list(config.settings), Path("records"))
        assert find_wrong_argument(conf, step.command, words[2:]) is None, step.name
