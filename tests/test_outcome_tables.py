"""The outcome tables in docs/outcomes: their cards state what the tables hold and what made them."""

import contextlib
import io
import re

import pytest
import yaml
from hydra.utils import instantiate

from experiments.command_line.overrides import compose
from experiments.command_line.script import find_config_dir
from experiments.tasks.outcome_file import OutcomeFile
from tests.paths import ROOT

TABLES = ROOT / "docs" / "outcomes"


@pytest.mark.parametrize("backbone", ["tiny_m3", "tiny_native"])
def test_the_lines_of_the_card_give_the_score_that_it_states(backbone, monkeypatch):
    monkeypatch.chdir(TABLES / f"{backbone}_scenes")
    _, header, body = (TABLES / f"{backbone}_scenes" / "README.md").read_text("utf-8").split("---\n", 2)
    (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    for position, scale in enumerate((1, 9, 36, 144)):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code.replace("np.zeros(", f"{position} + np.zeros("), "README.md", "exec"), {})
        score, cost = re.findall(r"[\d.]+", output.getvalue())
        scores = body.partition("## Scores")[2].partition("Split calibration:")[2]
        stated = re.search(rf"^\| {scale} \| {scale} \| ([\d.]+) \[", scores, re.M)
        assert stated is not None and f"{100 * float(score):.1f}" == stated[1] and float(cost) == scale

    config = compose(find_config_dir(), "label", [f"backbone={backbone}"])
    model, task = (instantiate(part, _convert_="all") for part in (config.backbone, config.task))
    stated_fingerprints = yaml.safe_load(header)["tokenscale"]["fingerprints"]
    assert stated_fingerprints == {**model.fingerprints, "data": task.fingerprint}


def test_an_import_divides_the_images_anew():
    path = TABLES / "tiny_native_scenes" / "outcomes.parquet"
    file = OutcomeFile(name="scenes", file=path, columns={"split": None})
    assert file.divided_by == "fractions"
    images = [
        {sample.image_id for sample in file.samples(split)} for split in ("train", "calibration", "test")
    ]
    assert min(map(len, images)) > 50 and sum(map(len, images)) == len(set.union(*images)) == 290
    with pytest.raises(ValueError, match=r"columns\.question=null: predictors read the question"):
        OutcomeFile(name="scenes", file=path, columns={"question": None})
