"""docs/walk.md runs as it stands, and opens at most ten files, none twice."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT

PAGE = ROOT / "docs" / "walk.md"
COLORS = {"red": (214, 39, 40), "green": (44, 160, 60), "blue": (35, 85, 200), "yellow": (245, 220, 50)}


@pytest.mark.long
def test_the_walk_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows, random = [], np.random.default_rng(0)
    for number in range(40):
        color = list(COLORS)[number % 4]
        pixels = np.tile(np.array(COLORS[color], np.uint8), (96, 96, 1))
        pixels[:8] = random.integers(0, 256, (8, 96, 3))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        text = "What color is the background?"
        rows.append({"question_id": number + 1, "image": f"{number}.png", "text": text, "answer": color})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 11
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "walk"})


def test_the_walk_opens_at_most_ten_files_and_none_twice():
    files = re.findall(r"^## \d+\. .*: `([^`]+\.py)`$", PAGE.read_text("utf-8"), re.M)
    assert len(files) == len(set(files)) <= 10
    assert all((ROOT / file).is_file() for file in files)
