"""Finished runs side by side: what is combined, what is refused, what is written."""

import json
from copy import deepcopy

import pytest
from omegaconf import OmegaConf

from experiments.compare import compare_runs
from experiments.evaluation.finished_runs import find_runs, list_entries
from experiments.evaluation.metrics import collect_metrics, write_metrics
from experiments.reporting.compare_tables import build_comparison_tables, subtract
from experiments.reporting.page import Provenance
from experiments.sweeps import ComparisonReport
from tests.experiments.synthetic import make_outcomes
from tests.experiments.test_evaluate import compare
from tests.experiments.test_report import HOSTILE, Page


@pytest.fixture(scope="module")
def metrics():
    calibration, test = make_outcomes("calibration", 40), make_outcomes("test", 50)
    comparison = compare(calibration, test)
    return collect_metrics(comparison, test, task="synthetic", backbone="small", seed=0)


def write_run(folder, metrics, *, seed=0, shift=0.0, overrides=(), name=None):
    """A run whose first predictor is better than that of `metrics` by `shift` on average."""
    content = deepcopy(metrics)
    content["bootstrap"]["seed"] = seed
    first = next(iter(content["predictors"]))
    for key in ("value", "low", "high"):
        content["predictors"][first]["mean_to_mix"][key] += shift
    if name:
        content["predictors"] = {
            name if key == first else key: value for key, value in content["predictors"].items()
        }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)), encoding="utf-8")
    write_metrics(folder / "metrics.json", content)
    return folder


def test_seeds_are_combined_and_settings_kept_apart(tmp_path, metrics):
    """Two seeds at +1 and +3 points: mean +2, standard deviation sqrt(2)."""
    for number, (seed, shift, width) in enumerate([(0, 0.01, 32), (1, 0.03, 32), (0, 0.0, 64)]):
        settings = (
            f"seed={seed}",
            f"predictor.network.width={width}",
            "task=synthetic",
            f"hydra.run.dir={number}",
        )
        write_run(tmp_path / str(number), metrics, seed=seed, shift=shift, overrides=settings)
    entries = list_entries(find_runs([tmp_path]))
    assert [entry.label for entry in entries] == [
        "informed, predictor.network.width=32",
        "informed, predictor.network.width=64",
        "question_only",
    ]
    assert [entry.seeds for entry in entries] == [(0, 1), (0,), (0, 1)]
    alone = metrics["predictors"]["informed"]["mean_to_mix"]
    found = entries[0].find("mean_to_mix")
    assert found is not None
    assert float(found.estimate.value) == pytest.approx(alone["value"] + 0.02)
    assert float(found.estimate.low) == pytest.approx(alone["low"] + 0.02)
    assert found.spread == pytest.approx(0.02 / 2**0.5)

    means = build_comparison_tables(entries)[0]
    assert means.rows[0][1] == "0, 1" and means.rows[0][2].endswith("± 1.4")
    assert "±" not in means.rows[1][2]
    other = entries[1].find("mean_to_mix")
    assert other is not None
    difference = subtract(found, other)
    assert float(difference.value) == pytest.approx(0.02)
    assert difference.low < 0.02 - (alone["value"] - alone["low"])


def test_single_runs_and_folders_of_runs_may_be_mixed(tmp_path, metrics):
    one = write_run(tmp_path / "one", metrics)
    for seed in (3, 11):
        write_run(tmp_path / "sweep" / str(seed), metrics, seed=seed)
    runs = find_runs([one, tmp_path / "sweep", one])
    assert [run.seed for run in runs] == [0, 3, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprints": {"weights": "other"}}, r"differ in fingerprints \(.*weights"),
        ({"task": "another"}, r"differ in task \(synthetic, another\)"),
        ({"split": {"num_samples": 1}}, r"differ in split \(num_samples"),
        ({"budgets": [1, 2]}, "same num_budgets"),
        ({"schema_version": 1}, "schema version 1"),
    ],
)
def test_runs_that_are_not_about_the_same_thing_are_refused(tmp_path, metrics, change, message):
    first = write_run(tmp_path / "first", metrics)
    second = write_run(tmp_path / "second", metrics | change)
    with pytest.raises(ValueError, match=message):
        find_runs([first, second])


def test_folder_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics.json in .* name folders of finished runs"):
        find_runs([tmp_path])


def test_page_and_files_show_every_run_and_text_as_text(tmp_path, metrics, capsys):
    folders = [
        write_run(tmp_path / "plain", metrics),
        write_run(tmp_path / "hostile", metrics, shift=0.01, name=HOSTILE),
    ]
    output = tmp_path / "out"
    compare_runs(folders, output=output, provenance=Provenance(HOSTILE, f"key: {HOSTILE}", "now"))
    assert f"comparison of 2 runs: {output / 'compare.html'}" in capsys.readouterr().out
    page = Page((output / "compare.html").read_text(encoding="utf-8"))
    assert not any("alert(1)" in text for attrs, text in page.scripts if "type" not in attrs)
    assert page.text.count(HOSTILE) >= 6 and "informed" in page.text
    (chart,) = json.loads(page.scripts[0][1])
    names = [trace["name"] for trace in chart["data"] if "name" in trace]
    assert {"informed", "mix of fixed scales", "budgeted oracle", "stable oracle"} <= set(names)
    assert not any("<script" in name for name in names)
    assert {path.name for path in output.iterdir()} == {"compare.html", "front.pdf", "front.svg", "tables"}
    assert {path.suffix for path in (output / "tables").iterdir()} == {".csv", ".md", ".tex"}


def end_sweep(folder):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "overrides": {"task": ["seed=0,1"]}}})
    ComparisonReport().on_multirun_end(config)


def test_sweep_ends_in_a_comparison(tmp_path, metrics):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), metrics, seed=seed)
    end_sweep(tmp_path)
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "2 policies of 2 runs, side by side" in page.text
    assert f"runs={tmp_path}" in page.text


def test_sweep_of_other_things_ends_as_it_is(tmp_path, metrics, caplog):
    end_sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    write_run(tmp_path / "0", metrics)
    write_run(tmp_path / "1", metrics | {"task": "another"})
    end_sweep(tmp_path)
    assert not (tmp_path / "compare.html").exists()
    assert "not laid side by side" in caplog.text and "task (synthetic, another)" in caplog.text
