"""`python -m lmms_eval --model tokenscale` on scenes, against the adaptive model itself.

`make lmms-test` runs these with lmms-eval's environment (`TOKENSCALE_LMMS_PYTHON`).
"""

import json
import math
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from experiments.labels.labelling import label
from experiments.tasks.base import SPLITS
from experiments.tasks.lmms_eval.task import LmmsEval
from experiments.tasks.scenes import Scenes
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.labels import read_labels
from predictor.adaptive.model import AdaptiveVLM
from predictor.cascades.hybrid import Hybrid
from predictor.classical.question_only import QuestionOnly
from predictor.policy.pricing import PriceList
from tests.lmms import data
from tests.lmms.test_tasks import PYTHON

pytestmark = [pytest.mark.lmms, pytest.mark.timeout(3600)]
TASKS = Path(__file__).with_name("scenes_task")


@pytest.fixture(scope="module")
def scenes():
    return Scenes(
        name="scenes",
        seed=1,
        num_images={"train": 40, "calibration": 20, "test": 20},
        questions_per_image=8,
        image_size=192,
    )


@pytest.fixture(scope="module")
def model_folder(scenes, tmp_path_factory):
    """An adaptive model of the embedded backbone, saved."""
    root = tmp_path_factory.mktemp("model")
    backbone = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    label(
        task=scenes,
        backbone=backbone,
        folder=root / "labels",
        limit={"train": 40, "calibration": 20, "test": 0},
    )
    train, calibration = (read_labels(root / "labels", split) for split in ("train", "calibration"))
    predictor = QuestionOnly().fit(train, calibration)
    estimates, outcomes = predictor.predict(calibration.inputs), calibration.outcomes
    prices = PriceList.from_calibration(estimates, outcomes.visual_tokens, outcomes.score)
    hybrid = Hybrid.fit(outcomes.confidence, outcomes.score, outcomes.visual_tokens, estimates)
    AdaptiveVLM(backbone, predictor, prices, hybrid).save_pretrained(root / "saved")
    return root / "saved"


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """A folder with the test scenes as a Parquet file, which the task reads from the working directory."""
    root = tmp_path_factory.mktemp("scenes")
    rows = [
        {
            "image": scenes.image(sample.image_id),
            "image_id": sample.image_id,
            "question": sample.question,
            "answer": sample.references[0],
        }
        for sample in scenes.samples("test")
    ]
    data.write(root / "data" / "scenes.parquet", rows)
    (root / "data" / "scenes.parquet").rename(root / "scenes.parquet")
    return root


def evaluate(folder: Path, arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results of lmms-eval, and its log of the samples in order."""
    command = [PYTHON, "-m", "lmms_eval", "--model", "tokenscale", "--model_args", arguments]
    command += ["--tasks", "scenes_local", "--include_path", str(TASKS), "--batch_size", "16"]
    command += ["--log_samples", "--output_path", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (folder / "out").rglob("*results.json")
    (samples,) = (folder / "out").rglob("*samples_scenes_local.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    content = json.loads(results.read_text())["results"]["scenes_local"]
    for path in (results, samples):
        path.unlink()
    return content, sorted(rows, key=lambda row: row["doc_id"])


def clustered_error(scores: list[float], clusters: list[str]) -> float:
    """Standard error of a mean of clustered scores: with the sum of squares of the sums over clusters."""
    mean = sum(scores) / len(scores)
    sums: dict[str, float] = defaultdict(float)
    for score, cluster in zip(scores, clusters, strict=True):
        sums[cluster] += score - mean
    return math.sqrt(sum(total**2 for total in sums.values())) / len(scores)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [("budget=30", {"budget": 30}), ("escalate=true", {"escalate": True}), ("scale=36", {"scale": 36})],
)
def test_scores_are_ours_to_the_last_digit(arguments, options, scenes, model_folder, folder):
    results, rows = evaluate(folder, f"pretrained={model_folder},{arguments}")
    model = AdaptiveVLM.from_pretrained(model_folder, device="cpu")
    samples = list(scenes.samples("test"))
    images = [scenes.image(sample.image_id) for sample in samples]
    questions = [sample.question for sample in samples]
    if "scale" in options:
        encoded = model.encode(images)
        texts = [answer.text for answer in model.backbone.answer(encoded, questions, 36)]
        costs = [36] * len(samples)
    else:
        answers = model.answer(images, questions, **options)
        texts, costs = [answer.text for answer in answers], [answer.cost for answer in answers]
    scores = [scenes.score(sample, text) for sample, text in zip(samples, texts, strict=True)]
    assert results["exact,none"] == sum(scores) / len(scores)
    assert [row["exact"]["score"] for row in rows] == scores
    assert [row["token_counts"][0]["visual_tokens"] for row in rows] == costs
    assert all(row["token_counts"][0]["output_tokens"] >= 1 for row in rows)
    assert all(row["token_counts"][0]["scale"] in model.backbone.scales for row in rows)
    clustered = clustered_error(scores, [sample.image_id for sample in samples])
    count = len(scores)
    # lmms-eval takes the variance of single scores with n - 1, the products within clusters with n.
    variance = sum((score - sum(scores) / count) ** 2 for score in scores)
    assert results["exact_stderr_clustered,none"] == pytest.approx(
        math.sqrt(clustered**2 + variance / count / (count - 1) - variance / count**2), rel=1e-9
    )


def test_wrong_arguments_end_lmms_eval_with_our_sentence(model_folder, folder):
    command = [PYTHON, "-m", "lmms_eval", "--model", "tokenscale", "--tasks", "scenes_local"]
    command += ["--include_path", str(TASKS), "--model_args", f"pretrained={model_folder},bugdet=30"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "ValueError: model tokenscale has no argument bugdet: give pretrained, one of price" in done.stderr


def test_scenes_come_back_as_a_task(scenes, folder, monkeypatch):
    monkeypatch.chdir(folder)
    task = LmmsEval(name="scenes_local", python=PYTHON, include_path=TASKS)
    samples = {
        int(sample.sample_id.rpartition("-")[2]) - 1: sample
        for split in SPLITS
        for sample in task.samples(split)
    }
    expected = list(scenes.samples("test"))
    assert len(samples) == len(expected)
    for number, ours in enumerate(expected):
        sample = samples[number]
        # `cluster_key` names the images one to one.
        assert (sample.image_id, sample.question, sample.references) == (
            ours.image_id,
            ours.question,
            ours.references,
        )
        for answer in (ours.references[0], f" {ours.references[0].upper()}.", "nothing"):
            assert task.score(sample, answer) == scenes.score(ours, answer)
    for image_id in {sample.image_id for sample in expected}:
        assert task.image(image_id).tobytes() == scenes.image(image_id).tobytes()
    task.close()
