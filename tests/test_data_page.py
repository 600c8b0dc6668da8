"""The code blocks of docs/data.md, on small files of the forms that they are for."""

import re
from pathlib import Path

from experiments.tasks.base import SPLITS
from experiments.tasks.outcome_file import OutcomeFile

PAGE = Path(__file__).parents[1] / "docs" / "data.md"


def run_block(number: int) -> None:
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[number]
    exec(compile(block, PAGE.name, "exec"), {})


def test_outcomes_of_routellm_become_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "responses").mkdir()
    for domain in ("anatomy", "virology"):
        text = (
            f'prompt,mixtral-8x7b-instruct-v0.1,gpt-4-1106-preview\n"{domain}?\nA. 1\nAnswer:",False,True\n'
        )
        (tmp_path / "responses" / f"mmlu_{domain}.csv").write_text(text)
    run_block(0)
    file = OutcomeFile(
        name="mmlu",
        file="mmlu.parquet",
        columns={"question": "prompt", "category": "domain"},
        options={
            "gpt-4": {"score": "gpt-4-1106-preview", "cost": 25},
            "mixtral-8x7b": {"score": "mixtral-8x7b-instruct-v0.1", "cost": 1},
        },
    )
    samples = [sample for split in SPLITS for sample in file.samples(split)]
    assert {str(sample.attributes["kind"]) for sample in samples} == {"anatomy", "virology"}
    assert file.ladder == ["mixtral-8x7b", "gpt-4"] and file.find_rows(samples)[0].score == (1, 0)


def test_matrices_become_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.csv").write_text("question\na?\nb?\n")
    (tmp_path / "quality.csv").write_text("dear,cheap\n1,0\n1,1\n")
    (tmp_path / "cost.csv").write_text("cheap,dear\n0.25,3\n0.5,2\n")
    run_block(1)
    file = OutcomeFile(name="all", file="all.parquet")
    assert file.ladder == ["cheap", "dear"] and file.cost_unit == 1e-8
