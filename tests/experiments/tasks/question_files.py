"""Question files for the tests of `llava_jsonl`, and the task that reads them."""

import json
from pathlib import Path
from typing import Any

from experiments.tasks.base import SPLITS, Sample
from experiments.tasks.llava_jsonl import LlavaJsonl

GOOD = {
    "question_id": 7,
    "image": "a.png",
    "text": "What is this?\nShort.",
    "answer": "a cat",
    "category": "animals",
}


def write_lines(path: Path, lines: list[Any]) -> Path:
    """A JSONL file; texts and bytes go in as they are."""
    raw = [
        line
        if isinstance(line, bytes)
        else line.encode()
        if isinstance(line, str)
        else json.dumps(line).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def make_task(folder: Path, lines: list[Any], **arguments: Any) -> LlavaJsonl:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    questions = write_lines(folder / "questions.jsonl", lines)
    defaults: dict[str, Any] = {"name": "mine", "questions": questions, "images": images, "metric": "exact"}
    return LlavaJsonl(**(defaults | arguments))


def read_all(task: LlavaJsonl) -> list[Sample]:
    return [sample for split in SPLITS for sample in task.samples(split)]
