"""The exercise of docs/new_task.md, as it stands there: one Python file, one YAML, no other file."""

import importlib
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from experiments import tasks
from experiments.command_line.script import find_config_dir
from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS, Task
from experiments.tasks.scoring import METRICS
from m3_backbone.llava.backbone import LlavaBackbone
from tests.held_out import read_outcomes
from tests.pages import write_blocks
from tests.paths import ROOT

PAGE = ROOT / "docs" / "new_task.md"


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Both files in a folder of their own, found there as if they were in their places."""
    write_blocks(PAGE, tmp_path)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "experiments" / "tasks")])
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        search_path = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        config = compose("label", ["task=digits", search_path])
    yield instantiate(config.task, _convert_="all")
    for name in ("digits", "near_digits"):
        sys.modules.pop(f"experiments.tasks.{name}", None)


def test_it_is_a_task_whose_splits_share_no_image(task):
    assert isinstance(task, Task)
    samples = {split: list(task.samples(split)) for split in SPLITS}
    assert sum(map(len, samples.values())) == 1797
    images = [{sample.image_id for sample in each} for each in samples.values()]
    assert len(set.union(*images)) == 1797
    assert all(sample.metric in METRICS for each in samples.values() for sample in each)


@pytest.mark.long
def test_the_embedded_backbone_reads_its_digits(task, tmp_path):
    """The very handwriting of `scenes`, if larger: far better than the tenth that guessing gets."""
    backbone = LlavaBackbone("tiny_m3", name="tiny_m3", dtype="float32")
    summary = label(task=task, backbone=backbone, folder=tmp_path / "labels", limit=dict.fromkeys(SPLITS, 40))
    assert summary.counts == dict.fromkeys(SPLITS, 40)
    assert read_outcomes(tmp_path / "labels", "test").score[:, -1].mean() > 0.5


@pytest.mark.long
def test_a_task_brings_its_own_score(task, tmp_path):
    """Answers near the right digit count in part, in the labels and through `Task.score` alike."""
    near = importlib.import_module("experiments.tasks.near_digits").NearDigits()
    sample = next(near.samples("test"))
    digit = int(sample.references[0])
    answers = (str(digit), f" {digit + 3}", "none")
    assert [near.score(sample, text) for text in answers] == pytest.approx([1, 2 / 3, 0])
    assert [task.score(next(task.samples("test")), text) for text in (str(digit), str(digit + 1))] == [1, 0]
    backbone = LlavaBackbone("tiny_m3", name="tiny_m3", dtype="float32")
    label(task=near, backbone=backbone, folder=tmp_path / "labels", limit=dict.fromkeys(SPLITS, 20))
    outcomes = read_outcomes(tmp_path / "labels", "test")
    assert set(outcomes.metric) == {"near_digit"}
    expected = [
        [near.score(sample, answer) for answer in answers]
        for sample, answers in zip(near.samples("test"), outcomes.answer, strict=False)
    ]
    assert np.allclose(outcomes.score, expected) and ((outcomes.score > 0) & (outcomes.score < 1)).any()
