"""Every HTML page in headless Chromium: accessibility (axe), console, requests, controls: `make test-slow`.

Needs Node.js, Chromium and two npm packages; without them it is skipped:

    npm install --prefix FOLDER axe-core@4.14 playwright-core@1.65
    NODE_PATH=FOLDER/node_modules make test-slow ARGS="-k in_browser"

CHROMIUM is the path of the browser, PAGES_SHOTS a folder for screenshots.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import read_downloads
from tests.paths import ROOT

SCRIPT = Path(__file__).parent / "check_pages.cjs"
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
HAS_PACKAGES = all(
    any((folder / name).is_dir() for folder in MODULES) for name in ("axe-core", "playwright-core")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        BROWSER is None or shutil.which("node") is None or not HAS_PACKAGES,
        reason="Node.js, Chromium, or axe-core and playwright-core in NODE_PATH are missing",
    ),
]

IMAGES = [
    f"task.num_images.{split}={number}"
    for split, number in (("train", 24), ("calibration", 10), ("test", 10))
]
PREDICTOR = ["predictor=question_only", "baselines={}", "num_resamples=100"]


def run(folder, command, *options):
    """Run a command with its results in `folder`/NAME, and return that folder."""
    number = len(list(folder.glob(f"runs/*_{command}")))
    output = folder / "runs" / f"{number}_{command}"
    paths = [f"paths.outputs={folder}", f"hydra.run.dir={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENSCALE_STORE": str(folder / "store")}
    arguments = [sys.executable, "-m", f"experiments.{command}", *options, *paths]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True)
    return output


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of every kind, made by the commands."""
    folder = tmp_path_factory.mktemp("pages")
    for backbone in ("tiny_m3", "tiny_native"):
        for task in ("scenes", "scenes_shifted") if backbone == "tiny_m3" else ("scenes",):
            run(folder, "label", f"backbone={backbone}", f"task={task}", *IMAGES)
        run(folder, "train", f"backbone={backbone}", *IMAGES, *PREDICTOR[:2])
    failures = run(folder, "failures", "scale=9", *IMAGES)  # few images are answered wrongly at finer scales
    reports = [
        run(folder, "evaluate", f"backbone={backbone}", *IMAGES, *PREDICTOR)
        for backbone in ("tiny_m3", "tiny_native")
    ]
    run(folder, "train", *IMAGES, *PREDICTOR[:2], "seed=1")
    second = run(folder, "evaluate", *IMAGES, *PREDICTOR, "seed=1")
    compared = run(folder, "compare", f"runs=[{reports[0]},{second}]")
    backbones = run(folder, "compare_backbones", "backbones=[tiny_m3,tiny_native]", *IMAGES, *PREDICTOR)
    transfer = ["targets=[scenes_shifted]", "num_recalibration=40", PREDICTOR[0], PREDICTOR[2]]
    transferred = run(folder, "transfer", *transfer)
    return [
        *(report / "report.html" for report in reports),
        failures / "failures.html",
        compared / "compare.html",
        backbones / "backbones.html",
        transferred / "transfer.html",
    ]


def test_pages_in_browser(pages):
    shots = os.environ.get("PAGES_SHOTS")
    options = ["--shots", shots] if shots else []
    done = subprocess.run(
        ["node", str(SCRIPT), *options, *map(str, pages)],
        env={**os.environ, "CHROMIUM": str(BROWSER)},
        check=True,
        capture_output=True,
        text=True,
    )
    results = json.loads(done.stdout)
    assert [result["problems"] for result in results] == [[]] * len(pages)
    for page, result in zip(pages, results, strict=True):
        files = read_downloads(page.read_text(encoding="utf-8"))
        assert result["used"]["files"] == {name: len(content) for name, content in files.items()}
    text = pages[0].read_text(encoding="utf-8")
    assert re.search(r'<a href="\.\./0_failures/failures\.html"', text)
    rows = list(csv.reader(read_downloads(text)["points.csv"].decode().splitlines()))[1:]
    assert len(results[0]["used"]["budgets"]) > 7
    for shown in results[0]["used"]["budgets"]:
        # The dearest point within the budget, as the table writes it; the cheapest if none is.
        points = [row for row in rows if row[0] == shown["policy"]]
        within = [row for row in points if float(row[1]) <= shown["budget"]]
        point = within[-1] if within else points[0]
        assert [shown[key] for key in ("cost", "score", "saved", "options")] == point[2:]
        start = f"Operating point with a mean of {point[1]} " if within else "No operating point is within"
        assert shown["note"].startswith(start)
