"""Tasks of lmms-eval by the worker's protocol, on small tasks with lmms-eval's interface.

`make lmms-test` runs lmms-eval itself.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from experiments.command_line.script import find_config_dir
from experiments.labels.labelling import label
from experiments.settings.check import check_settings
from experiments.tasks.base import SPLITS, Sample
from experiments.tasks.lmms_eval.process import LmmsEvalError
from experiments.tasks.lmms_eval.task import LmmsEval
from m3_backbone.llava.backbone import LlavaBackbone
from tests.experiments.test_settings import read_config
from tests.held_out import read_outcomes
from tests.paths import FIXTURES, ROOT

FAKE = FIXTURES / "fake_lmms_eval"
COLORS = ["red", "green", "blue", "black", "white"]


@pytest.fixture(autouse=True)
def fake_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKE))


@pytest.fixture
def open_task():
    """Opens tasks, and ends their processes."""
    tasks = []

    def open_one(name: str, **arguments: Any) -> LmmsEval:
        given: dict[str, Any] = {"python": sys.executable, "timeout": 30.0, **arguments}
        tasks.append(LmmsEval(name=name, **given))
        return tasks[-1]

    yield open_one
    for task in tasks:
        task.close()


def list_samples(task: LmmsEval) -> list[Sample]:
    return [sample for split in SPLITS for sample in task.samples(split)]


def test_samples_images_and_scores(open_task):
    task = open_task("clusters", category="about.kind")
    samples = list_samples(task)
    assert len(samples) == 40
    assert task.skipped == []
    by_id = {sample.sample_id: sample for sample in samples}
    sample = by_id["clusters/row-6"]
    assert (sample.image_id, sample.question, sample.references) == ("picture-2", "How wide is it?", ("22",))
    assert (sample.metric, sample.attributes) == ("exact", {"kind": "width"})
    image = task.image("picture-2")
    assert image.size == (22, 10)
    assert image.getpixel((0, 0)) == (0, 0, 255)
    # The scorer changes its document: a score must not depend on the scores before it.
    assert [task.score(sample, answer) for answer in ("22", "21", " 22 ", "22")] == [1, 0, 1, 1]
    # The command line of lmms-eval removes this, too.
    assert task.score(sample, "<think>2 + 20</think>22") == 1
    counts = {split: {sample.image_id for sample in task.samples(split)} for split in SPLITS}
    assert {split: len(images) for split, images in counts.items()} == {
        "train": 12,
        "calibration": 2,
        "test": 6,
    }
    assert task.divided_by == "fractions"
    assert not task.official_split.is_whole


@pytest.mark.parametrize("name", ["plain", "same_cluster"])
def test_without_a_cluster_for_each_image_a_digest_of_the_pixels_is_its_id(name, open_task):
    task = open_task(name)
    image_ids = {sample.image_id for sample in list_samples(task)}
    assert len(image_ids) == 20
    assert all(len(image_id) == 16 and int(image_id, 16) >= 0 for image_id in image_ids)
    assert len({task.image(image_id).size for image_id in image_ids}) == 20


def test_splits_of_the_task_are_the_division(open_task):
    task = open_task("three_splits")
    widths = {
        split: sorted({task.image(sample.image_id).width - 20 for sample in task.samples(split)})
        for split in SPLITS
    }
    # Images 4, 5 and 7 are in two splits: test keeps them, then validation.
    assert widths == {"train": [0, 1, 2, 3], "calibration": [4, 5, 6], "test": [7, 8, 9, 10, 11]}
    reasons = [row["reason"] for row in task.skipped if "split" in row and "too" in row["reason"]]
    assert reasons.count("its image is in test too") == 2
    assert reasons.count("its image is in calibration too") == 3
    assert task.official_split.is_whole
    assert task.division["splits"] == {"test": "test", "calibration": "dev", "train": "train"}


def test_calibration_is_taken_out_of_train(open_task):
    task = open_task("two_splits", fractions={"train": 0.5, "calibration": 0.25, "test": 0.25})
    counts = {split: len({sample.image_id for sample in task.samples(split)}) for split in SPLITS}
    assert counts == {"train": 5, "calibration": 3, "test": 4}


def test_splits_may_be_named(open_task):
    task = open_task("three_splits", splits={"train": "train", "test": "dev"})
    sample = next(task.samples("test"))
    assert sample.sample_id.startswith("three_splits/dev/row-")


def test_rows_that_cannot_be_used_are_skipped_with_their_reason(open_task):
    task = open_task("unusual")
    (sample,) = list_samples(task)
    assert sample.sample_id == "unusual/row-1"
    assert [(row["row"], row["reason"]) for row in task.skipped] == [
        (2, "2 images, and the backbone takes one a question"),
        (3, "no images, and the backbone takes one a question"),
        (4, "it has a part of type video, and the backbone takes images"),
        (5, "the question is empty"),
        (6, "question has 30,000 characters (at most 20,000)"),
        (7, "it has no reference answer"),
        (8, "KeyError: 'color'"),
    ]


REFUSED = [
    ("nowhere", {}, "task nowhere: lmms-eval 0.0 has no such task"),
    ("cluster", {}, "has no such task: there are clusters, same_cluster"),
    ("colors", {}, "task colors: it is a group of tasks: give the name of one of them"),
    ("choices", {}, "its output_type is multiple_choice, and only generate_until has answers"),
    ("clusters", {"metric": "f1"}, "it has no metric f1: give task.metric as one of exact, loss"),
    ("clusters", {"metric": "loss"}, "its metric loss is a loss"),
    ("clusters", {"filter": "x"}, "it has no filter x: give task.filter as one of none, lowercase"),
    ("judged", {}, "its metric exact asks a judge model (openai): choose another task.metric"),
    ("percent", {}, "40 x exact is 100 times task.max_score, and a score lies in [0, 1]: give its largest"),
    ("several", {}, "no row can be used: 40 x 2 images, and the backbone takes one a question"),
    ("later", {}, "no row can be used: 40 x exact is no score of a sample but dict"),
    ("rules", {}, "its metric exact asks a judge model (requests)"),
    ("stateful", {"aggregate_each": True}, "40 x the aggregate of exact differs from call to call: choose"),
    ("connected", {}, "40 x exact wanted to connect to judge.example.org: does it ask a judge?"),
    ("clusters", {"splits": {"test": "nope"}}, "no split of its data is evaluated"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_unsuitable_tasks_are_refused_in_one_line(name, arguments, message, open_task):
    with pytest.raises(ValueError) as caught:
        _ = open_task(name, **arguments).fingerprint
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_data_are_one_sentence(open_task, tmp_path):
    (tmp_path / "missing").mkdir()
    task = open_task("clusters", data_path=tmp_path / "missing")
    with pytest.raises(ValueError, match="clusters: lmms-eval cannot load it: ConnectionError: no data set"):
        _ = task.fingerprint
    with pytest.raises(NotADirectoryError, match=r"task\.data_path=.*/nowhere: no such folder"):
        open_task("clusters", data_path=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("python", "message"),
    [("nowhere/python", "no such file: give the Python of an environment"), (__file__, "cannot be run")],
)
def test_wrong_python(python, message, open_task):
    with pytest.raises(LmmsEvalError, match=message):
        _ = open_task("clusters", python=python).fingerprint


def test_python_without_lmms_eval(open_task, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(LmmsEvalError, match="clusters: ModuleNotFoundError: No module named 'lmms_eval'"):
        _ = open_task("clusters").fingerprint


def test_scores_of_aggregates_percentages_and_filters(open_task):
    later = open_task("later", aggregate_each=True)
    sample = next(later.samples("train"))
    assert [later.score(sample, answer) for answer in (sample.references[0], "?")] == [1, 0]
    percent = open_task("percent", max_score=100)
    sample = next(percent.samples("train"))
    assert [percent.score(sample, answer) for answer in (sample.references[0], "?")] == [1, 0]
    plain = open_task("plain", filter="lowercase")
    sample = next(plain.samples("train"))
    assert plain.score(sample, sample.references[0].upper()) == 1


def test_without_the_judge_unreadable_answers_are_wrong(open_task, caplog):
    task = open_task("rules", judge_free=True)
    sample = next(task.samples("train"))
    assert [task.score(sample, answer) for answer in (sample.references[0], "red or blue", "it depends")] == [
        1,
        0,
        0,
    ]
    assert caplog.text.count(f"such as that of {sample.sample_id}: they count as wrong") == 1


def test_a_judge_without_a_key_gives_no_score(open_task):
    task = open_task("keyless", judge_free=True)
    sample = next(task.samples("train"))
    assert [task.score(sample, answer) for answer in (sample.references[0], "it depends")] == [1, 0]


def test_a_score_that_draws_is_the_same_for_all_answers_of_a_sample(open_task):
    task = open_task("drawn")
    first, second = list_samples(task)[:2]
    draws = [task.score(sample, answer) for sample in (first, second, first) for answer in ("a", "b")]
    assert draws[0] == draws[1] == draws[4] == draws[5] != draws[2] == draws[3]


def test_a_crash_and_a_time_out_are_one_sentence(open_task):
    task = open_task("plain")
    sample = next(task.samples("train"))
    with pytest.raises(LmmsEvalError, match="process ended; its last lines: something / terrible happened"):
        task.score(sample, "crash")
    assert task.score(sample, sample.references[0]) == 1  # by another process
    task.close()
    task = open_task("plain", timeout=2.0)
    sample = next(task.samples("train"))
    with pytest.raises(LmmsEvalError, match=r"no answer within 2 seconds: raise task\.timeout"):
        task.score(sample, "sleep")


def test_fingerprint_follows_content_and_settings_but_not_places(open_task, tmp_path):
    fingerprints = {
        open_task("plain", **arguments).fingerprint
        for arguments in (
            {},
            {"data_path": tmp_path},
            {"seed": 3},
            {"filter": "lowercase"},
            {"category": "about.kind"},
        )
    }
    assert len(fingerprints) == 3
    content = open_task("plain").content
    assert content["lmms_eval"] == "0.0"
    assert content["config"]["process_results"] == "score_plain"
    assert "somewhere" not in str(content)


def test_copies_in_other_processes_have_workers_of_their_own(open_task):
    task = open_task("clusters")
    samples = list_samples(task)
    copy: LmmsEval = pickle.loads(pickle.dumps(task))
    assert list_samples(copy) == samples
    assert copy.score(samples[0], samples[0].references[0]) == 1
    copy.close()
    child = os.fork()
    if child == 0:
        os._exit(0 if task.score(samples[0], samples[0].references[0]) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert task.score(samples[0], samples[0].references[0]) == 1


def test_a_worker_ends_with_a_killed_process():
    settings = LmmsEval(name="clusters", python=sys.executable)._settings
    program = (
        "import sys, time\n"
        "from experiments.tasks.lmms_eval.process import WorkerProcess\n"
        f"worker = WorkerProcess(sys.executable, {settings!r}, start_seconds=30, seconds=30)\n"
        "worker.describe()\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "(zombie)" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on")


def test_labels_of_a_task(open_task, tmp_path):
    fixture = FIXTURES / "official_m3" / "llava15" / "checkpoint"
    backbone = LlavaBackbone(fixture, dtype="float32", device="cpu", max_new_tokens=2)
    task = open_task("clusters")
    label(task=task, backbone=backbone, folder=tmp_path / "labels", limit=dict.fromkeys(SPLITS, 2))
    table = read_outcomes(tmp_path / "labels", "train")
    assert len(table.sample_id) == 4
    samples = {sample.sample_id: sample for sample in task.samples("train")}
    for row, sample_id in enumerate(table.sample_id):
        scores = [task.score(samples[sample_id], answer) for answer in table.answer[row]]
        assert table.score[row].tolist() == scores


PRESETS = sorted(
    path.stem
    for path in find_config_dir().glob("task/*.yaml")
    if path.stem == "lmms_eval" or "- lmms_eval" in path.read_text()
)


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_tasks(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = ["task.name=any"] if preset == "lmms_eval" else []
    config = check_settings("label", read_config("label", f"task={preset}", *name))
    task = instantiate(config.task, _convert_="all")
    assert isinstance(task, LmmsEval)
