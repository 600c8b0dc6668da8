"""docs/tutorial.ipynb runs as it stands on a short label folder, and so does the code of docs/tutorial.md."""

import json
import re

import matplotlib
import pytest

from experiments.labels.labelling import label
from experiments.tasks.scenes import Scenes
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.labels import read_labels
from predictor.classical.question_only import QuestionOnly
from predictor.splitting import split_validation
from tests.paths import ROOT

CELLS = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """The predictor that `tokenscale run` trains is replaced by one that is trained in a second."""
    store = tmp_path / "store"
    labels = store / "labels" / "tiny_m3" / "scenes"
    backbone = LlavaBackbone("tiny_m3", dtype="float32", attn_implementation="sdpa")
    task = Scenes(num_images={"train": 12, "calibration": 8, "test": 8}, questions_per_image=3)
    label(task=task, backbone=backbone, folder=labels)
    train = read_labels(labels, "train")
    trained = QuestionOnly().fit(*split_validation(train, 0.3, seed=0))
    trained.save(store / "predictors" / "tiny_m3" / "scenes" / "cross_attention" / "0123456789ab")
    monkeypatch.setenv("TOKENSCALE_STORE", str(store))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    # Budgets of the example are those of the full run.
    source = "\n".join("".join(cell["source"]) for cell in CODE).replace("(2, 6, 30)", "(144,)")
    exec(compile(source, "tutorial.ipynb", "exec"), {"__name__": "tutorial"})
    printed = capsys.readouterr().out
    assert f"{len(train)} training samples" in printed and "chosen: scale " in printed
    assert (tmp_path / "tutorial_model" / "config.json").is_file()


def test_outputs_of_the_notebook_are_stored_and_small():
    outputs = [output for cell in CODE for output in cell["outputs"]]
    text = "".join(line for output in outputs for line in output.get("text", []))
    assert "scale 144: mean score 0.9" in text and "chosen: scale 36" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (ROOT / "docs" / "tutorial.ipynb").stat().st_size < 150_000
    assert not re.search(r"/(tmp|home|root|work)/", json.dumps(CELLS))


def test_the_code_of_the_page_draws_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text("utf-8"), re.M | re.S
    )
    exec(compile(block, "tutorial.md", "exec"), {"__name__": "tutorial"})
    question = capsys.readouterr().out.strip()
    assert (tmp_path / "scene.png").is_file()
    assert question in (ROOT / "docs/tutorial.md").read_text("utf-8")  # the one that the page asks
