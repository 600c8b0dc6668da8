"""Command `compare_backbones`, from labels and trained predictors of two backbones to its page."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.compare_backbones import main
from experiments.evaluation.backbones import compare_backbones
from experiments.evaluation.fronts import Grid
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.backbones import write_sentences
from experiments.train import main as train
from tests.experiments.evaluation.test_backbones import make_backbone
from tests.pages import check_downloads, check_structure, read_downloads
from tests.predictor.synthetic import make_labels, write_labels

PREDICTOR = ("predictor=question_only", "~predictor@baselines.per_task", "~predictor@baselines.question_only")


@pytest.fixture
def call(monkeypatch):
    def call(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command.__module__, *arguments])
        command()

    return call


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Labels of the same images by two backbones, and of other images by a third one."""
    folder = tmp_path_factory.mktemp("store")
    sizes = {"train": 40, "calibration": 12, "test": 30}
    for name in ("one", "two", "other"):
        parts = {split: make_labels(size, size, split=split) for split, size in sizes.items()}
        if name == "other":
            parts = {split: with_other_data(labels) for split, labels in parts.items()}
        write_labels(folder / "labels" / name / "scenes", parts)
    return folder


def with_other_data(labels):
    fingerprints = {**labels.outcomes.fingerprints, "data": "others"}
    return replace(labels, outcomes=replace(labels.outcomes, fingerprints=fingerprints))


@pytest.mark.long
def test_page_and_numbers_of_two_backbones(store, tmp_path, call, capsys):
    paths = [f"paths.store={store}", f"paths.outputs={tmp_path}"]
    for name in ("one", "two"):
        call(train, *PREDICTOR, f"backbone.name={name}", *paths)
    capsys.readouterr()
    call(main, *PREDICTOR, "backbones=[one,two]", "num_resamples=20", *paths)
    output = capsys.readouterr().out
    (page,) = tmp_path.glob("runs/*/backbones.html")
    results = json.loads((page.parent / "backbones.json").read_text())
    (tokens,) = (results["measures"][key] for key in ("tokens",))
    assert [test["mean"]["value"] for test in tokens["differences"]] == [0] * 4
    fixed = tokens["backbones"]["one"]["fixed"]["score"]["value"]
    assert f"{100 * fixed[0]:.1f}" in (page.parent / "tables" / "fixed_tokens.md").read_text()
    assert re.search(
        r"At equal tokens \(.* to 36\), with question_only as the predictor, two scores ", output
    )
    assert f"report: {page}" in output
    text = page.read_text()
    assert (
        re.findall(r"https?://(?!www.w3.org)[^\s\"'<]+", re.sub(r"<script.*?</script>", "", text, flags=re.S))
        == []
    )
    check_structure(text)
    check_downloads(read_downloads(text))
    assert "One training (seed) of question_only" in text
    assert {path.name for path in page.parent.glob("front_*")} >= {"front_tokens.pdf", "front_tokens.svg"}
    # Each backbone's test split is opened under a record.
    assert len(list((tmp_path / "evaluations").glob("*/*.jsonl"))) >= 1


@pytest.mark.long
def test_fixed_scales_need_no_predictors(store, tmp_path, call, capsys):
    paths = [f"paths.store={store}", f"paths.outputs={tmp_path}"]
    call(main, "backbones=[one,two]", "fixed_only=true", "num_resamples=20", *paths)
    assert re.search(
        r"At equal tokens \(.*\), with a mix of fixed scales, two scores ", capsys.readouterr().out
    )
    (page,) = tmp_path.glob("runs/*/backbones.html")
    tokens = json.loads((page.parent / "backbones.json").read_text())["measures"]["tokens"]
    scores = tokens["backbones"]["one"]["fixed"]["score"]["value"]
    assert [test["score"]["value"] for test in tokens["fixed_differences"]] == scores
    assert {test["difference"]["value"] for test in tokens["fixed_differences"]} == {0}
    assert "| two " in (page.parent / "tables" / "equal_tokens.md").read_text()
    assert "dashed lines are the mix of its fixed scales with a 95% bootstrap band" in page.read_text()


def test_few_test_images_allow_no_finding():
    score = np.array([[0, 1, 1], [1, 1, 1]])
    backbones = [make_backbone(name, score, num_images=28) for name in ("one", "two")]
    assert write_sentences(compare_backbones(backbones, Grid(9), Bootstrap(40))) == [
        "No finding: 28 test images are too few to compare one with two."
    ]


def test_labels_of_different_data_are_refused_before_the_test_split_is_opened(store, tmp_path, call, capsys):
    paths = [f"paths.store={store}", f"paths.outputs={tmp_path}"]
    for name in ("one", "other"):
        call(train, *PREDICTOR, f"backbone.name={name}", *paths)
    with pytest.raises(SystemExit):
        call(main, *PREDICTOR, "backbones=[one,other]", *paths)
    assert "one and other were labelled on different data" in capsys.readouterr().err
    assert not (tmp_path / "evaluations").exists()
