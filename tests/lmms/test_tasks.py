"""Tasks of lmms-eval against its own evaluation, answer by answer, on small data in their real format.

`make lmms-test` runs these with lmms-eval's environment (`TOKENSCALE_LMMS_PYTHON`).
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from experiments.tasks.base import SPLITS, Sample
from experiments.tasks.lmms_eval.task import LmmsEval
from tests.experiments.test_settings import read_config
from tests.lmms import data
from tests.paths import ROOT

pytestmark = [pytest.mark.lmms, pytest.mark.timeout(3600)]
PYTHON = os.environ.get("TOKENSCALE_LMMS_PYTHON", str(ROOT / ".venv-lmms/bin/python"))
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Case:
    """A preset, or a task of lmms-eval; its data, answers in turn, and what they show.

    `metric` is that of lmms-eval's log, `factor` its value for a score of 1; `skipped` are the rows that
    cannot be samples, and `question` is that of the first row.
    """

    preset: str
    write: Callable[[Path], Path]
    answers: tuple[str, ...]
    metric: str
    question: str
    overrides: tuple[str, ...] = ()
    config: str | None = None
    factor: float = 1.0
    skipped: tuple[int, ...] = ()


CASES = {
    "open answer": Case(
        "textvqa_lmms",
        data.write_textvqa,
        ("stop", "STOP sign.", "Seven", "<think>a sign</think>7", "go", "no idea", "The stop", "stop, go"),
        "exact_match",
        "What does sign 0 say?" + SHORT,
    ),
    "ANLS": Case(
        "docvqa_lmms",
        partial(data.write_documents, name="docvqa", config="DocVQA"),
        ("$1,250", "january 8  1993", "$1250", "1/8/1993", "nothing of the kind", "1/8/93 ", ""),
        "anls",
        "What is the date on page 0?" + SHORT,
        config="DocVQA",
    ),
    "relaxed accuracy": Case(
        "chartqa_lmms",
        data.write_chartqa,
        ("104.9", "japan", "12.3%", "0.55", "95.1", "Japan.", "0.12", "1/2", "106", "JAPAN"),
        "relaxed_overall",
        "What is bar 0?\nAnswer the question with a single word.",
    ),
    "multiple choice": Case(
        "ai2d",
        data.write_ai2d,
        ("A", "B. leaf", "c", "The answer is D", "A.", "C", "b"),
        "exact_match",
        "What does label 0 stand for?\nA. root\nB. leaf\nC. stem\nD. flower" + LETTER,
    ),
    "yes or no": Case(
        "pope_lmms",
        data.write_pope,
        ("no", "Yes", "Yes.", "no, there is none", " No ", "yes"),
        "pope_accuracy",
        "Is there a cat in image 0?" + SHORT,
    ),
    "infovqa": Case(
        "infovqa",
        partial(data.write_documents, name="infovqa", config="InfographicVQA"),
        ("$1,250", "january 8  1993", "$1250"),
        "anls",
        "What is the date on page 0?" + SHORT,
        config="InfographicVQA",
    ),
    "ocrbench": Case(
        "ocrbench",
        data.write_ocrbench,
        ("a + b = c", "It says Center.", "a+b", "CENTR E", "b"),
        "ocrbench_accuracy",
        "What is written in the image?",
        factor=0.01,  # lmms-eval divides by the 1,000 questions of the benchmark; here there are 10
    ),
    "vstar_bench": Case(
        "vstar_bench",
        data.write_vstar_bench,
        ("A", "(B)", "Answer: C", "d", "The bag is red"),
        "vstar_overall_acc",
        "What color is bag 0?\nA. red\nB. green\nC. blue\nD. black" + LETTER,
        factor=100,
    ),
    "mmstar": Case(
        "mmstar",
        data.write_mmstar,
        ("A", "(B)", "Answer: C", "D", "one"),
        "average",
        "Which option?\nOptions: A: one, B: two, C: three, D: 0" + LETTER[:-1],
    ),
    "mmbench": Case(
        "mmbench",
        data.write_mmbench,
        ("A", "A", "B. cat", "dog", "I do not know"),
        "gpt_eval_score",
        "",
        config="en",
        factor=100,
        skipped=(2, 4, 6, 8, 10, 12),
    ),
    "seedbench": Case(
        "seedbench",
        data.write_seedbench,
        ("A", "b", "C. three", "one"),
        "seed_image",
        "How many towels are there in 0?\nA. one\nB. two\nC. three\nD. four" + LETTER,
        skipped=(10,),
    ),
    "mmmu": Case(
        "mmmu",
        data.write_mmmu,
        ("A", "(B)", "the third of all the options here", "D", "42", "42.0", "A"),
        "mmmu_acc",
        "",
        skipped=(4,),
    ),
    "hrbench4k": Case(
        "hrbench4k",
        data.write_hrbench,
        ("A", "(B)", "A. 1", "C", "B"),
        "average",
        "What is the number on sign 0?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer the option letter directly.",
        ("task.judge_free=true",),
        "hrbench_version_split",
    ),
    "realworldqa": Case(
        "realworldqa",
        data.write_realworldqa,
        ("3", "B", "C. Straight", "Left", "A"),
        "exact_match",
        "Which way does car 0 turn?\nA. Left\nB. Right\nC. Straight",
    ),
    "gqa": Case(
        "gqa_lmms",
        data.write_gqa,
        ("no", "Yes", "Yes.", "no, it is not", "NO "),
        "exact_match",
        "Is sign 0 left of the door?" + SHORT,
        config="testdev_balanced_instructions",
    ),
    "scienceqa": Case(
        "scienceqa_lmms",
        data.write_scienceqa,
        ("A", "b", "C. stem", "The answer is A", "B."),
        "exact_match",
        "Context: Look at the plant.\nWhich part is 0?\nA. root\nB. leaf\nC. stem" + LETTER,
        config="ScienceQA-IMG",
    ),
    "vizwiz": Case(
        "vizwiz_lmms",
        data.write_vizwiz,
        ("soup", "Tomato soup.", "unanswerable", "a can"),
        "exact_match",
        "What is can 0?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
    ),
    "vmcbench": Case(
        "vmcbench",
        data.write_vmcbench,
        ("A", "(B)", "C.", "A", "D"),
        "average",
        "",
    ),
    "numbers and texts of choices": Case(
        "mathvista",
        data.write_mathvista,
        ("7", "10", "8", "123"),
        "llm_as_judge_eval",
        "",
        ("task.judge_free=true",),
        factor=100,
    ),
    "mathvista_cot": Case(
        "mathvista_cot",
        data.write_mathvista,
        ("<answer>7</answer>", "<think>ten</think><answer>B</answer>", "It shows 7", "B", "\\boxed{7}"),
        "acc_score",
        "",
    ),
}


def make_task(case: Case, folder: Path) -> LmmsEval:
    overrides = [f"task={case.preset}", f"task.python={PYTHON}", f"task.data_path={folder}", *case.overrides]
    task = instantiate(read_config("label", *overrides).task, _convert_="all")
    assert isinstance(task, LmmsEval)
    return task


def answer_rows(case: Case, number: int) -> list[str]:
    return [case.answers[row % len(case.answers)] for row in range(number)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {name: case.write(root / name.replace(" ", "_")) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def evaluations(folders, tmp_path_factory):
    """lmms-eval's own evaluation of the answers to all tasks."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows: list[dict[str, Any]] = []
    for name, case in CASES.items():
        task = make_task(case, folders[name])
        rows.append(
            {
                "name": task._settings["name"],
                "dataset_path": str(folders[name]),
                "dataset_name": case.config,
                "dataset_kwargs": {},
                "answers": answer_rows(case, 100),
            }
        )
    (folder / "request.json").write_text(json.dumps(rows))
    script = Path(__file__).with_name("given_answers.py")
    command = [PYTHON, str(script), str(folder / "request.json"), str(folder / "response.json")]
    # MathVista's scorer needs a key when it is imported, but asks no judge about these answers.
    environment = {"OPENAI_API_KEY": "none", **os.environ}
    subprocess.run(command, cwd=folders["gqa"].parents[1], env=environment, check=True)
    return json.loads((folder / "response.json").read_text())


def list_rows(task: LmmsEval) -> dict[int, Sample]:
    """Samples by the number of their row, from 0."""
    samples = [sample for split in SPLITS for sample in task.samples(split)]
    return {int(sample.sample_id.rpartition("-")[2]) - 1: sample for sample in samples}


@pytest.mark.parametrize("name", CASES)
def test_samples_and_scores_are_those_of_lmms_eval(name, folders, evaluations, monkeypatch):
    monkeypatch.chdir(folders["gqa"].parents[1])  # GQA's images are found from here
    case = CASES[name]
    task = make_task(case, folders[name])
    evaluation = evaluations[task._settings["name"]]
    samples = list_rows(task)
    assert [row["row"] for row in task.skipped] == list(case.skipped)
    assert len(samples) + len(case.skipped) == len(evaluation["samples"])
    if case.question:
        assert samples[0].question == case.question
    scores: list[float] = []
    for row, sample in sorted(samples.items()):
        asked, logged = evaluation["asked"][str(row)], evaluation["samples"][row]
        assert sample.question == asked["text"]
        image = task.image(sample.image_id)
        assert [hashlib.sha256(image.tobytes()).hexdigest()] == asked["images"]
        scores.append(task.score(sample, case.answers[row % len(case.answers)]))
        value = logged[case.metric]
        if not isinstance(value, dict) or "score" in value:
            assert scores[-1] == (value["score"] if isinstance(value, dict) else value)
    assert 0 < sum(scores) < len(scores)
    if not case.skipped:
        # The mean of the scores is lmms-eval's own figure, unless that weights sub-categories.
        result = evaluation["results"][f"{case.metric},{task._worker.describe()['filter']}"]
        assert sum(scores) / len(scores) == pytest.approx(result / case.factor, abs=1e-5)
    task.close()


def test_answers_that_only_a_judge_reads_are_wrong(folders):
    """lmms-eval takes the choice that is most similar to nothing, here the right one, if the judge fails."""
    name = "numbers and texts of choices"
    task = make_task(CASES[name], folders[name])
    sample = list_rows(task)[1]
    assert [task.score(sample, answer) for answer in ("10", "B", "I do not know")] == [1, 0, 0]
    task.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=hrbench4k"], "its metric average asks a judge model"),
        (["task=mathvista"], "asks a judge model"),
        (["task=charxiv"], "its metric reasoning_acc asks a judge model"),
        (["task=lmms_eval", "task.name=mmbench_en_dev"], "its metric gpt_eval_score asks a judge model"),
        (["task=lmms_eval", "task.name=seedbench_ppl"], "its output_type is multiple_choice"),
        (["task=lmms_eval", "task.name=textvqa"], "it is a group of tasks"),
    ],
)
def test_tasks_that_cannot_be_labelled_are_refused_before_any_data_are_loaded(overrides, message):
    task = instantiate(read_config("label", *overrides, f"task.python={PYTHON}").task, _convert_="all")
    with pytest.raises(ValueError, match=message):
        _ = task.fingerprint


def test_missing_data_are_one_sentence(tmp_path):
    overrides = ["task=realworldqa", f"task.python={PYTHON}", f"task.data_path={tmp_path}"]
    task = instantiate(read_config("label", *overrides).task, _convert_="all")
    with pytest.raises(ValueError, match="task realworldqa: lmms-eval cannot load it: ") as caught:
        _ = task.fingerprint
    assert "\n" not in str(caught.value)
