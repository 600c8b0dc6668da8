"""lmms-eval's own evaluation of given answers; runs in lmms-eval's environment.

    python given_answers.py REQUEST.json RESPONSE.json

The request lists tasks: name, data folder, configuration of the data, and answers by row. The response
has, for each task, what a chat model is asked in each row, lmms-eval's log of each row, and its results.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import evaluate
from lmms_eval.tasks import TaskManager

REASONING = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'


class GivenAnswers(lmms):
    """A model whose answers are given, which keeps what it was asked."""

    is_simple = False

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: dict[int, dict[str, Any]] = {}

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for request in requests:
            _, doc_to_messages, _, number, task, split = request.args
            parts = [
                part
                for message in doc_to_messages(self.task_dict[task][split][number])
                for part in message["content"]
            ]
            images = [part["url"] for part in parts if part["type"] == "image"]
            self.asked[number] = {
                "text": "\n".join(part["text"] for part in parts if part["type"] == "text"),
                "images": [hashlib.sha256(image.convert("RGB").tobytes()).hexdigest() for image in images],
            }
            answers.append(self.answers[number])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


def run(manager: TaskManager, row: dict[str, Any], scratch: str) -> dict[str, Any]:
    """Evaluate the answers to one task."""
    changes = {key: row[key] for key in ("dataset_path", "dataset_name", "dataset_kwargs")}
    tasks = manager.load_task_or_group([{"task": row["name"], **changes}], task_type="chat")
    model = GivenAnswers(row["answers"])
    for name, task in tasks.items():
        model.task_dict[name] = task.dataset
        task.set_config(key="num_fewshot", value=0)
        task.args = argparse.Namespace(output_path=scratch)
    arguments = argparse.Namespace(process_with_media=False, reasoning_tags=REASONING, output_path=scratch)
    results = evaluate(
        lm=model, task_dict=tasks, log_samples=True, cli_args=arguments, bootstrap_iters=0, verbosity="ERROR"
    )
    samples = sorted(results["samples"][row["name"]], key=lambda sample: sample["doc_id"])
    return {"asked": model.asked, "samples": samples, "results": results["results"][row["name"]]}


def main() -> None:
    request, response = map(Path, sys.argv[1:])
    rows = json.loads(request.read_text())
    manager = TaskManager(model_name="tokenscale")
    results = {row["name"]: run(manager, row, str(response.parent)) for row in rows}
    response.write_text(json.dumps(results, default=str))


if __name__ == "__main__":
    main()
