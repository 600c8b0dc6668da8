"""The main job end to end, small: a second run does nothing again, and `latest` shows the last one."""

import json
import sys

import pytest

from experiments import run
from experiments.run import point_link

SMALL = ("task.num_images={train:12,calibration:6,test:6}", "task.questions_per_image=3")


@pytest.fixture
def run_main(tmp_path, monkeypatch):
    """`run_main(output_folder)` runs the shortened main job in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run_main(folder: str) -> None:
        monkeypatch.setattr(
            sys, "argv", ["run", "experiment=embedded_short", f"hydra.run.dir={folder}", *SMALL]
        )
        run.main()

    return run_main


def test_second_run_keeps_labels_and_predictors_and_gives_the_same_metrics(run_main, tmp_path, capsys):
    run_main("outputs/first")
    assert capsys.readouterr().out.splitlines()[-1].startswith("report: outputs/latest/report.html")
    made = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/short/store/**/*") if path.is_file()
    }
    assert {path.suffix for path in made} >= {".parquet", ".safetensors", ".json"}

    run_main("elsewhere/second")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    latest = tmp_path / "outputs" / "latest"
    assert latest.resolve() == tmp_path / "elsewhere" / "second"
    for name in ("report.html", "metrics.json", "front.png"):
        assert (latest / name).stat().st_size > 0
    first, second = (
        json.loads((tmp_path / folder / "metrics.json").read_text())
        for folder in ("outputs/first", "elsewhere/second")
    )
    assert first == second


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
