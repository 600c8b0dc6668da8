"""Export of labels as a data set folder, and its import."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from experiments import export
from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import list_cost_measures
from experiments.evaluation.metric_table import Family
from experiments.evaluation.policies import CascadePolicy, PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.export import check_target, read_exported, write_outcomes
from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.importing import import_outcomes
from experiments.labels.labelling import label
from experiments.reporting.data_card import render_card, tabulate_needs, tabulate_scores, write_card
from experiments.tasks.base import SPLITS
from experiments.tasks.outcome_file import OutcomeFile
from experiments.tasks.scenes import Scenes
from m3_backbone.features import ImageFeatures
from m3_backbone.llava.backbone import LlavaBackbone
from predictor.cascades.cascade import Cascade
from predictor.classical.question_only import QuestionOnly
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.fake_hub import open_hub
from tests.held_out import read_split
from tests.label_folders import write_label_folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "labels"
    shards: dict[str, Any] = {}
    for split, number in (("train", 60), ("calibration", 40), ("test", 50)):
        table = make_outcomes(split, number)
        shards[split] = (
            split,
            table,
            {name: ImageFeatures({}, {}) for name in dict.fromkeys(table.image_id)},
        )
    names = {"backbone": "synthetic", "task": "made|up", "data": {}}
    write_label_folder(folder, shards, torch.zeros(4, 2), names)
    return folder


@pytest.fixture(scope="module")
def exported(labels, tmp_path_factory):
    return read_exported(
        labels, list(SPLITS), EvaluationRecorder(tmp_path_factory.mktemp("records"), "export")
    )


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("export") / "data"
    write_outcomes(exported, target, matrices=True, images=None)
    write_card(exported, target, licence=None, title=None, has_images=False)
    return target


def compare(folder: Path) -> Any:
    """The metric table of a predictor trained on a label folder, and of a cascade."""
    train, calibration, test = (read_split(folder, split) for split in SPLITS)
    predictor = QuestionOnly(max_words=1, inverse_penalties=(1.0,)).fit(train, calibration)
    on_calibration, on_test = (predictor.predict(part.inputs) for part in (calibration, test))
    return compare_policies(
        calibration.outcomes,
        test.outcomes,
        [PredictorPolicy("words", on_calibration, on_test), CascadePolicy("cascade", Cascade.fit)],
        measure=list_cost_measures(calibration.outcomes, {"words": predictor}, calibration.inputs)[0],
        bootstrap=Bootstrap(100),
    ).metrics


def test_an_import_of_the_export_has_the_same_metric_table(labels, folder, tmp_path):
    file = OutcomeFile(name="made|up", file=folder / "outcomes.parquet", cost_name="visual tokens")
    import_outcomes(file, tmp_path / "again")
    first, second = compare(labels), compare(tmp_path / "again")
    # Exported tables have no likelihoods of references, from which these are computed.
    first = {key: first[key] for key in first if key.metric.family is not Family.REACHABLE}
    assert list(first) == list(second) and len(list(first)) > 50
    for key in first:
        for bound in ("value", "low", "high"):
            assert np.allclose(getattr(first[key], bound), getattr(second[key], bound), equal_nan=True), key
    table = read_split(tmp_path / "again", "test").outcomes
    before = read_split(labels, "test").outcomes
    assert table.answer == before.answer and list(table.kind) == list(before.kind)


def test_pandas_alone_reads_the_tables(labels, folder):
    table = pd.read_parquet(folder / "outcomes.parquet")
    test = read_split(labels, "test").outcomes
    own = table[table.split == "test"]
    names = ("1", "9", "36", "144")
    assert (own[[f"{name}.score" for name in names]].to_numpy() == test.score).all()
    assert (own[[f"{name}.cost" for name in names]].to_numpy() == test.visual_tokens).all()
    quality = pd.read_parquet(folder / "quality.parquet")
    assert list(quality) == ["sample_id", "split", *names]
    assert (quality[quality.split == "test"][list(names)].to_numpy() == test.score).all()
    assert pd.read_parquet(folder / "cost.parquet")["144"].unique().tolist() == [144]


def test_the_lines_of_the_card_run(labels, folder, monkeypatch):
    monkeypatch.chdir(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    printed = re.fullmatch(r"score (\S+)\ncost 1.0\n", output.getvalue())
    score = read_split(labels, "test").outcomes.score[:, 0].mean()
    assert printed is not None and float(printed[1]) == pytest.approx(score, abs=1e-6)


def test_the_card_has_header_counts_scores_and_needs(labels, folder):
    _, header, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    content = yaml.safe_load(header)
    assert (
        content["license"] == "other" and content["configs"][0]["data_files"][0]["path"] == "outcomes.parquet"
    )
    assert content["tokenscale"]["scales"] == ["1", "9", "36", "144"]
    assert content["tokenscale"]["fingerprints"]["weights"] == "0" * 16
    assert "| test | 200 | 50 |" in body and r"made\|up" in body
    test = read_split(labels, "test").outcomes
    assert f"| 36 | 36 | {100 * test.score[:, 2].mean():.1f} [" in tabulate_scores(test)
    assert "| 36 | 36 |" in body
    needed = np.where((test.score == 1).any(axis=1), (test.score == 1).argmax(axis=1), 4)
    counts = np.bincount(needed, minlength=5)
    for label_of_row, count in zip(("1", "9", "36", "144", "none"), counts, strict=True):
        assert f"| {label_of_row} | {count} | {count / 200:.1%} |" in tabulate_needs(test)


def test_texts_of_users_cannot_leave_their_place(exported):
    title = 'a"\n---\n<script>'
    card = render_card(exported, licence="cc-by-4.0\nx: y", title=title, has_images=False)
    header = yaml.safe_load(re.split(r"^---$", card, flags=re.MULTILINE)[1])
    assert (header["license"], header["pretty_name"]) == ("cc-by-4.0\nx: y", title)
    assert "<script>" not in card.replace(json.dumps(title), "")


def test_images_are_copied_when_asked(tmp_path):
    settings: Any = {
        "num_images": {"train": 2, "calibration": 0, "test": 0},
        "questions_per_image": 2,
        "image_size": 96,
    }
    task = Scenes(**settings)
    label(task=task, backbone=LlavaBackbone("tiny_m3"), folder=tmp_path / "labels", num_workers=0)
    exported = read_exported(tmp_path / "labels", ["train"], EvaluationRecorder(tmp_path / "records", "test"))
    write_outcomes(exported, tmp_path / "data", matrices=False, images=task)
    table = pd.read_parquet(tmp_path / "data" / "outcomes.parquet")
    assert len(table) == 4 and table.image.nunique() == 2
    for image_id, name in zip(table.image_id, table.image, strict=True):
        with Image.open(tmp_path / "data" / name) as image:
            assert image.tobytes() == task.image(image_id).tobytes()
    assert not (tmp_path / "records").exists()  # the test split was not opened
    file = OutcomeFile(name="scenes", file=tmp_path / "data" / "outcomes.parquet", images=tmp_path / "data")
    import_outcomes(file, tmp_path / "again")
    assert read_split(tmp_path / "again", "train").inputs.statistic_names[0] == "image/width"
    with pytest.raises(ValueError, match="were made from other data"):
        other = Scenes(num_images={"train": 2, "calibration": 0, "test": 0}, image_size=64)
        write_outcomes(exported, tmp_path / "other", matrices=False, images=other)
    assert not (tmp_path / "other").exists()
    # The same images under the same ids, with noise, into the same folder.
    noisy = Scenes(**settings, corruption="noise")
    label(task=noisy, backbone=LlavaBackbone("tiny_m3"), folder=tmp_path / "noisy", num_workers=0)
    (tmp_path / "data" / "quality.parquet").write_text("of an earlier export")
    exported = read_exported(tmp_path / "noisy", ["train"], EvaluationRecorder(tmp_path / "records", "test"))
    write_outcomes(exported, tmp_path / "data", matrices=False, images=noisy)
    replaced = pd.read_parquet(tmp_path / "data" / "outcomes.parquet")
    assert not set(replaced.image) & set(table.image)
    with Image.open(tmp_path / "data" / replaced.image[0]) as image:
        assert image.tobytes() == noisy.image(replaced.image_id[0]).tobytes()
    assert len(list((tmp_path / "data" / "images").iterdir())) == 2
    assert not (tmp_path / "data" / "quality.parquet").exists()


def test_an_earlier_export_is_kept_unless_replaced(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has outcomes.parquet, .* already: .*overwrite=true"):
        check_target(folder, overwrite=False)
    check_target(folder, overwrite=True)
    check_target(tmp_path / "new", overwrite=False)


def run_export(labels, folder, monkeypatch, *overrides):
    place = (f"labels={labels}", f"folder={folder}", "splits=[train,calibration]", "repo=someone/outcomes")
    monkeypatch.setattr(sys, "argv", ["export", *place, *overrides])
    export.main()


def test_an_upload_is_private_and_has_only_the_files_of_the_export(labels, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "private.txt").write_text("mine")
    with open_hub(monkeypatch) as hub:
        run_export(labels, tmp_path / "data", monkeypatch)
        run_export(labels, tmp_path / "data", monkeypatch, "overwrite=true", "private=false")
    path, repository = hub.asked[0]
    assert path == "/api/repos/create" and repository["type"] == "dataset"
    assert hub.are_private == [True, False]
    assert hub.committed == {"README.md", "outcomes.parquet"} and hub.tokens == {"Bearer hf_secret"}
    printed = capfd.readouterr()
    assert "on the hub: " in printed.out and "hf_secret" not in printed.out + printed.err


@pytest.mark.parametrize("is_open", [True, False])
def test_a_failed_upload_keeps_the_folder_and_says_what_to_do(labels, tmp_path, monkeypatch, capfd, is_open):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with open_hub(monkeypatch, refuses=True) as hub:
        if not is_open:
            hub.close()
        with pytest.raises(SystemExit):
            run_export(labels, tmp_path / "data", monkeypatch)
    error = capfd.readouterr().err
    assert re.search(r"data is written, but cannot be uploaded to someone/outcomes \(.*overwrite=true", error)
    assert "hf auth login" in error and "hf_secret" not in error and "Traceback" not in error
    assert pd.read_parquet(tmp_path / "data" / "outcomes.parquet").split.nunique() == 2


def test_a_wrong_name_of_a_repository_is_refused_first(labels, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_export(labels, tmp_path / "data", monkeypatch, "repo=https://huggingface.co/someone/outcomes")
    assert "repo=https://huggingface.co/someone/outcomes: give USER/NAME" in capfd.readouterr().err
    assert not (tmp_path / "data").exists()
