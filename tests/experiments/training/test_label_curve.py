"""Trainings on part of the labels, soft targets, and the label curve, on synthetic labels."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.command_line.running import Provenance
from experiments.evaluation.label_curve import collect
from experiments.labels.resampled import ResampledFolder
from experiments.reporting.label_curve import write_label_curve
from experiments.training.label_curve import CurveLabels, CurveTraining, measure_curve, plan_subsets
from experiments.training.subset import SUBSET, Subset
from experiments.training.trained import TrainingSettings, find_trained, identify, open_trained
from experiments.training.trainer import TrainingLabels, train_predictors
from m3_backbone.outcomes.manifest import read_manifest
from predictor.classical.question_only import QuestionOnly
from predictor.splitting import order_images
from tests.predictor.synthetic import FINGERPRINTS, make_labels, write_labels

NUM_RUNS = 4


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Labels of 60 training images; 40 of them have sampled answers, with a mean score of 1/4 or 3/4."""
    folder = tmp_path_factory.mktemp("store") / "labels"
    train = make_labels(60, seed=0)
    write_labels(folder, {"train": train, "calibration": make_labels(20, seed=1, split="calibration")})
    sampled = train.select(np.arange(160)).outcomes
    runs = np.repeat(sampled.score[None], NUM_RUNS, axis=0)
    runs[0] = 1 - runs[0]
    answers = ResampledFolder(folder, FINGERPRINTS, {"seed": 0}, split="train")
    answers.begin(sampled.sample_id)
    answers.write("train-00000", sampled.sample_id.tolist(), runs.astype(np.float64))
    return folder


def settings(**subset):
    return TrainingSettings(seed=0, validation_fraction=0.2, subset=Subset(**subset))


def read_parts(labels, seed=0, **subset):
    return TrainingLabels(labels, TrainingSettings(seed, 0.2, subset=Subset(**subset))).parts


def list_samples(parts):
    return {sample for part in parts for sample in part.outcomes.sample_id}


def test_a_result_belongs_to_the_settings_of_the_trainer(labels, tmp_path):
    def train(**trainer):
        return CurveTraining(QuestionOnly(), Subset(), 0, labels, tmp_path, 0.2, 0.15, trainer=trainer)

    assert train().path == train().path != train(limit_train_batches=1).path


def test_a_smaller_part_of_the_labels_is_in_a_larger_one(labels):
    sizes = [8, 20, 60]
    samples = [list_samples(read_parts(labels, num_images=size)) for size in sizes]
    assert [len(part) for part in samples] == [4 * size for size in sizes]
    assert samples[0] < samples[1] < samples[2]
    two, three = (list_samples(read_parts(labels, num_images=20, questions_per_image=n)) for n in (2, 3))
    assert (len(two), len(three)) == (40, 60) and two < three < samples[1]
    assert list_samples(read_parts(labels, seed=1, num_images=8)) != samples[0]
    with pytest.raises(ValueError, match=r"labels.num_images=61, but 60 images can be trained on"):
        read_parts(labels, num_images=61)


def test_soft_targets_are_means_of_sampled_answers_and_results_stay_greedy(labels):
    source = TrainingLabels(labels, TrainingSettings(0, 0.2, subset=Subset(soft=True)))
    soft, greedy = source.parts, source.measured_parts
    assert sum(map(len, soft)) == 160  # samples without sampled answers are not used
    for targets, outcomes in zip(soft, greedy, strict=True):
        assert list(targets.outcomes.sample_id) == list(outcomes.outcomes.sample_id)
        assert np.array_equal(targets.outcomes.score, np.where(outcomes.outcomes.score == 1, 0.75, 0.25))
        assert set(np.unique(outcomes.outcomes.score)) == {0.0, 1.0}


def test_soft_targets_without_sampled_answers_are_refused_with_the_command(tmp_path):
    write_labels(tmp_path / "labels", {"train": make_labels(20, seed=0)})
    with pytest.raises(FileNotFoundError, match="tokenscale resample split=train"):
        read_parts(tmp_path / "labels", soft=True)


def test_a_predictor_of_part_of_the_labels_is_never_taken_for_one_of_all(labels, tmp_path):
    manifest = read_manifest(labels)
    identities = []
    for part in ({"num_images": 20}, {"questions_per_image": 2}, {"soft": True}):
        train_predictors([QuestionOnly()], labels=labels, folder=tmp_path, settings=settings(**part))
        identities.append(identify(QuestionOnly(), manifest, settings(**part), labels))
    trained = [open_trained(tmp_path, "question_only", identity) for identity in identities]
    assert [part.record.num_train for part in trained] == [64, 96, 128]
    whole = identify(QuestionOnly(), manifest, settings(), labels)
    assert SUBSET not in whole
    with pytest.raises(FileNotFoundError, match="other subset"):
        open_trained(tmp_path, "question_only", whole)
    with pytest.raises(FileNotFoundError, match="other subset"):
        find_trained(tmp_path, QuestionOnly(), labels, seed=0)
    folder = trained[0].folder
    assert find_trained(tmp_path, QuestionOnly(), labels, seed=0, folder=str(folder)).folder == folder


def make_trainings(labels, results, seeds=(0, 1)):
    subsets = plan_subsets(
        labels,
        num_images=[8, 16, 24, None],
        questions_per_image=[None],
        soft=[False],
        seeds=seeds,
        validation_fraction=0.2,
    )
    return [
        CurveTraining(QuestionOnly(inverse_penalties=(1.0,)), subset, seed, labels, results, 0.2, 0.25)
        for seed in seeds
        for subset in subsets
    ]


def test_no_image_of_the_validation_part_is_trained_on(labels):
    images = set()
    for seed in (0, 1):
        part = CurveLabels.divide(labels, 0.2, seed, soft=False)
        trained, measured = (set(split.outcomes.image_id) for split in (part.pool, part.validation))
        assert not trained & measured and (len(trained), len(measured)) == (48, 12)
        assert measured == set(order_images(np.array([*trained, *measured]), seed)[-12:])
        images.add(frozenset(measured))
        soft = CurveLabels.divide(labels, 0.2, seed, soft=True)
        assert set(soft.validation.outcomes.image_id) == measured
        assert set(soft.pool.outcomes.image_id) < trained
    assert len(images) == 2


def test_a_curve_resumes_and_measures_damaged_results_again(labels, tmp_path, capsys, caplog):
    trainings = make_trainings(labels, tmp_path)
    first, failures = measure_curve(trainings[:3], 1)
    assert not failures and [result.num_images for result in first] == [8, 16, 24]
    files = {training.path: training.path.stat().st_mtime_ns for training in trainings[:3]}
    trainings[0].path.write_text(trainings[0].path.read_text().replace('"num_images": 8', '"num_images": 9'))
    second, _ = measure_curve(make_trainings(labels, tmp_path), 1)
    assert "is damaged" in caplog.text and len(second) == 8
    kept = [path for path, time in files.items() if path.stat().st_mtime_ns == time]
    assert kept == [training.path for training in trainings[1:3]]
    assert [replace(result, seconds=0) for result in second[:3]] == [
        replace(result, seconds=0) for result in first
    ]
    assert [result.num_images for result in second] == [8, 16, 24, 48] * 2
    assert "label curve: 2 of 8 trainings" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_give_the_same_numbers(labels, tmp_path):
    results = [
        measure_curve(make_trainings(labels, tmp_path / str(number), seeds=(0,)), number)[0]
        for number in (1, 2)
    ]
    assert [result.share for result in results[0]] == [result.share for result in results[1]]


def test_a_training_that_fails_is_named_and_the_others_go_on(labels, tmp_path):
    trainings = make_trainings(labels, tmp_path, seeds=(0,))
    trainings[1] = replace(trainings[1], subset=Subset(1))
    results, failures = measure_curve(trainings, 1)
    assert len(results) == 3
    assert len(failures) == 1 and failures[0].startswith("question_only, 1 images, seed 0: 1 training images")


def test_too_many_images_are_refused_before_anything_is_trained(labels):
    arguments: dict[str, Any] = {"questions_per_image": [None], "seeds": [0], "validation_fraction": 0.2}
    with pytest.raises(ValueError, match=r"num_images=49, but .* has 48 images to train on besides"):
        plan_subsets(labels, num_images=[8, 49], soft=[False], **arguments)
    with pytest.raises(ValueError, match="with sampled answers"):
        plan_subsets(labels, num_images=[48], soft=[True], **arguments)


def test_the_files_of_a_curve(labels, tmp_path):
    """JSON, CSV and page have the numbers of the trainings, and names are escaped."""
    subsets = plan_subsets(
        labels, num_images=[8, 12, 16, 24], questions_per_image=[None], soft=[False, True], seeds=[0, 1],
        validation_fraction=0.2,
    )  # fmt: skip
    predictor = QuestionOnly(name="<b>q", max_words=1, inverse_penalties=(1.0,))
    trainings = [
        CurveTraining(predictor, subset, seed, labels, tmp_path / "results", 0.2, 0.25)
        for seed in (0, 1)
        for subset in subsets
    ]
    measurements, _ = measure_curve(trainings, 1)
    curve = collect(measurements, task="scenes", backbone="tiny", confidence=0.95, num_validation_images=12)
    provenance = Provenance("tokenscale label_curve", "a: 1", "today")
    text = write_label_curve(curve, tmp_path / "out", ["one <i>failure"], provenance=provenance)
    content = json.loads((tmp_path / "out" / "label_curve.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "measurements.csv").read_text().splitlines()))
    assert len(rows) == len(measurements) == 16
    first = content["curves"][0]
    shares = [float(row["share"]) for row in rows if row["num_images"] == "8" and row["soft"] == "False"]
    assert first["value"][0] == pytest.approx(np.mean(shares), abs=1e-6)
    (soft, *_) = content["soft"]
    assert soft["num_images"] == 8 and soft["num_answers"] == 8 * 4 * NUM_RUNS
    assert soft["equal_answers"] is None  # 128 answers: more than the 96 of 24 images with greedy outcomes
    page = Path(tmp_path / "out" / "label_curve.html").read_text()
    assert "&lt;b&gt;q" in page and "<b>q" not in page and "<i>failure" not in page
    assert "not trained: one <i>failure" in text and "48 images" not in text
