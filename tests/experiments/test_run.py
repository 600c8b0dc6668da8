"""The main job end to end, small: what is up to date stays, equal seeds give equal metrics."""

import json
import sys
from typing import Any

import pytest

from experiments import run
from experiments.results.run_folders import point_link

SMALL = ("task.num_images={train:12,calibration:6,test:6}", "task.questions_per_image=3", "allow_small=true")


@pytest.fixture
def run_main(tmp_path, monkeypatch):
    """`run_main(folder, store)` runs the shortened main job in `tmp_path` and gives its metrics."""
    monkeypatch.chdir(tmp_path)

    def run_main(folder: str, store: str) -> dict[str, Any]:
        places = (f"hydra.run.dir={folder}", f"paths.store={store}")
        monkeypatch.setattr(sys, "argv", ["run", "experiment=embedded_short", *places, *SMALL])
        run.main()
        metrics: dict[str, Any] = json.loads((tmp_path / folder / "metrics.json").read_text())
        return metrics

    return run_main


@pytest.mark.long
def test_main_job(run_main, tmp_path, capsys):
    first = run_main("outputs/first", "store")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    begun = [line.split()[0] for line in lines if line]
    steps = begun.index("labelled")
    assert begun[steps : steps + 4] == ["labelled", "trained", "timed", "evaluated"]
    assert len(begun) - steps <= 25
    assert f"report: {tmp_path / 'outputs' / 'first' / 'report.html'}" in lines
    assert lines[-1].startswith("next: tokenscale publish ") and "predictor.max_epochs=3" in lines[-1]
    made = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.glob("store/**/*")
        if path.suffix in {".parquet", ".safetensors", ".json"}
    }
    assert {path.relative_to(tmp_path).parts[1] for path in made} == {
        "labels",
        "predictors",
        "latency",
    }

    again = run_main("elsewhere/again", "store")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert again == first
    latest = tmp_path / "outputs" / "latest"
    assert latest.resolve() == tmp_path / "elsewhere" / "again"
    for name in ("report.html", "metrics.json", "front.png"):
        assert (latest / name).stat().st_size > 0

    assert run_main("outputs/from_scratch", "another_store") == first


@pytest.mark.slow
def test_timing_is_left_out_where_it_is_not_asked_for(tmp_path, monkeypatch, caplog):
    """As on a machine that evaluates what another one labelled, and need not load the backbone."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        "experiment=embedded_short",
        "hydra.run.dir=run",
        "paths.store=store",
        "latency.num_images=0",
    ]
    monkeypatch.setattr(sys, "argv", ["run", *arguments, *SMALL])
    run.main()
    assert not (tmp_path / "store" / "latency").exists()
    assert not (tmp_path / "run" / "milliseconds.json").exists()
    assert "flops" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_link_is_replaced_and_stays_relative(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        point_link(tmp_path / "latest", tmp_path / "runs" / name)
        assert (tmp_path / "latest").readlink().as_posix() == f"runs/{name}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "runs"]


def test_folder_in_the_place_of_the_link_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(FileExistsError, match="move it"):
        point_link(tmp_path / "latest", tmp_path)
