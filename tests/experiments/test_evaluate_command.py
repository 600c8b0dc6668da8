"""Evaluation from folder to report: labels and predictors on disk in, metrics, picture and report out."""

import csv
import io
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.evaluation.guarantee import GuaranteeTerms
from experiments.evaluation.metrics import mean_to_mix, to_mix
from experiments.evaluation.policies import CascadeEntry, CascadePolicy, ScoredSamples, Signal
from experiments.evaluation.sensitive_groups import Deciding
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.resampled import ResampledFolder
from experiments.reporting.evaluation import EvaluationPlan, evaluate_predictors, write_evaluation
from experiments.reporting.failures import FailuresLink, digest_labels, find_failures
from experiments.reporting.findings import write_sentences
from experiments.reporting.gallery import Gallery
from experiments.reporting.operating_points import find_default_budget, list_points, write_options
from experiments.reporting.summary import summarize, write_line, write_summary
from experiments.tasks.base import Task
from experiments.training.trained import TrainingSettings, identify, open_trained
from experiments.training.trainer import train_predictors
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import OutcomeTable
from predictor.cascades.cascade import Cascade
from predictor.cascades.hybrid import Hybrid
from predictor.classical.baselines import BestScalePerTask
from predictor.classical.question_only import QuestionOnly
from predictor.policy.front import choose
from tests.pages import check_downloads, check_structure, read_downloads
from tests.predictor.synthetic import FINGERPRINTS, make_labels, write_labels

pytestmark = pytest.mark.long

SETTINGS = TrainingSettings(seed=0, validation_fraction=0.2)


@dataclass
class Pictures(Task):
    """The images of the synthetic labels: a plain colour for each."""

    name: str = "synthetic"
    fingerprint: str = FINGERPRINTS["data"]
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def samples(self, split):
        return iter(())

    def image(self, image_id):
        return Image.new("RGB", (32, 32), (int(image_id.split("-")[-1]) % 256, 90, 160))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    splits = {"train": 120, "calibration": 60, "test": 60}
    parts = {split: make_labels(num, seed, split=split) for seed, (split, num) in enumerate(splits.items())}
    write_labels(folder / "labels", parts)
    manifest = folder / "labels" / "manifest.json"
    names = {"backbone": "small", "task": "synthetic"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | names), encoding="utf-8")
    train_predictors(
        [QuestionOnly(), BestScalePerTask()],
        labels=folder / "labels",
        folder=folder / "predictors",
        settings=SETTINGS,
    )
    return folder


def find_all(store):
    """Both trained predictors."""
    manifest = read_manifest(store / "labels")
    return [
        open_trained(store / "predictors", each.name, identify(each, manifest, SETTINGS))
        for each in (QuestionOnly(), BestScalePerTask())
    ]


def count_records(store):
    path = store / "evaluations" / "small" / "synthetic.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def read_split(store):
    """The test outcomes of the store."""
    shards = sorted((store / "labels" / "outcomes").glob("*.parquet"))
    tables = [OutcomeTable.from_arrow(pq.read_table(shard)) for shard in shards]
    table = OutcomeTable.concat(tables)
    return table.select([row for row, name in enumerate(table.image_id) if name.startswith("test")])


def evaluate(store, output, *, task=None, failures=None, **plan):
    task = task or Pictures()
    evaluation = evaluate_predictors(
        find_all(store),
        labels=store / "labels",
        task=task,
        recorder=EvaluationRecorder(store / "evaluations", "test"),
        plan=EvaluationPlan(bootstrap=Bootstrap(50), **plan),
    )
    provenance = Provenance("python -m experiments.evaluate", "seed: 0", "now")
    gallery = Gallery(task.image, per_category=2)
    write_evaluation(evaluation, output, provenance=provenance, gallery=gallery, failures=failures)
    return evaluation.findings


@pytest.mark.long
def test_second_evaluation_writes_the_same_bytes(store, tmp_path):
    comparison = evaluate(store, tmp_path / "first").comparison
    evaluate(store, tmp_path / "second")
    for name in ("metrics.json", "draws.safetensors", "front.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    # All that tells the two reports apart is when and how often the test split has been read.
    first, second = ((tmp_path / each / "report.html").read_text() for each in ("first", "second"))
    reads = (
        r"This is the first recorded evaluation on this test split\.|These predictors were evaluated on this "
        r"test split before; 1 evaluation of new predictors is recorded\.|<dt>Test split</dt><dd>.*?</dd>"
    )
    assert re.search(reads, first) and first != second
    assert re.sub(reads, "", first) == re.sub(reads, "", second)
    for name in ("front.pdf", "calibration.svg", "granularity.svg", "tables/merits.tex"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["task"], metrics["backbone"]) == ("synthetic", "small")
    assert metrics["fingerprints"] == FINGERPRINTS
    default = find_all(store)[0].prices.default
    assert comparison.policies[0].default.price == default.price
    assert metrics["predictors"]["question_only"]["default"]["price"] == pytest.approx(
        default.price, abs=1e-6
    )
    assert "small on synthetic" in (tmp_path / "first" / "report.html").read_text(encoding="utf-8")


def test_one_task_leaves_its_best_scale_on_the_mix(store, tmp_path):
    """Estimates that are the same for every sample can at best draw between fixed scales."""
    comparison = evaluate(store, tmp_path).comparison
    per_task = comparison.find("per_task")
    assert (per_task[to_mix].value <= 1e-9).all()
    assert per_task[mean_to_mix].value == pytest.approx(0, abs=0.01)
    assert comparison.find("question_only")[mean_to_mix].low > 0


def test_a_cascade_that_is_called_like_a_predictor_is_told_apart(store, tmp_path):
    comparison = evaluate(store, tmp_path, cascades=[CascadeEntry("per_task", Cascade.fit)]).comparison
    assert [each.name for each in comparison.policies] == [
        "question_only",
        "per_task",
        "per_task (cascade)",
    ]


def test_an_empty_calibration_split_is_refused_before_the_test_split_is_opened(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    path = tmp_path / "store" / "labels" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["calibration"] = 0
    path.write_text(json.dumps(manifest))
    before = count_records(tmp_path / "store")
    with pytest.raises(ValueError, match="no samples of split 'calibration'"):
        evaluate(tmp_path / "store", tmp_path)
    assert count_records(tmp_path / "store") == before


def test_task_of_other_data_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"another task\.name, or configure the task as it was"):
        evaluate(store, tmp_path, task=Pictures(fingerprint="other"))
    assert not list(tmp_path.iterdir())


def test_guarantee_is_reported(store, tmp_path):
    findings = evaluate(store, tmp_path, guarantee=GuaranteeTerms(0.2))
    guarantee = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["guarantee"]
    assert (guarantee["alpha"], guarantee["delta"], guarantee["level"]) == (0.2, 0.1, 0.1)
    found = guarantee["predictors"]["question_only"]
    assert found["num_images"] == found["resplit_check"]["num_images"] == 60
    assert found["price"] > 0 and found["calibration_drop"] < 0.2
    assert found["drop"]["low"] <= found["drop"]["value"] <= found["drop"]["high"]
    printed = "\n".join(write_sentences(findings))
    assert "with probability 0.9, question_only scores at most 20 points below the finest scale" in printed
    assert "all together with at least 0.8" in printed


def test_joint_guarantees_are_certified_at_a_share_of_delta(store, tmp_path):
    findings = evaluate(store, tmp_path, guarantee=GuaranteeTerms(0.2, joint=True))
    guarantee = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["guarantee"]
    assert (guarantee["delta"], guarantee["level"]) == (0.1, 0.05)
    assert "All 2 guarantees hold together with that probability" in "\n".join(write_sentences(findings))


def test_guarantee_that_the_data_do_not_allow_is_called_infeasible(store, tmp_path):
    findings = evaluate(store, tmp_path, guarantee=GuaranteeTerms(0.001))
    guarantee = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["guarantee"]
    found = guarantee["predictors"]["question_only"]
    assert found["price"] is None and found["drop"]["value"] == 0
    assert "is infeasible for question_only: " in "\n".join(write_sentences(findings))
    assert "infeasible" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_cascades_stand_beside_the_predictors(store, tmp_path):
    """They are in tables, metrics and report; where confidence says nothing, a cascade is the mix."""
    cascades = [CascadeEntry("cascade", Cascade.fit), CascadeEntry("hybrid", Hybrid.fit, "question_only")]
    findings = evaluate(store, tmp_path, cascades=cascades)
    comparison = findings.comparison
    assert [each.name for each in comparison.policies] == ["question_only", "per_task", "cascade", "hybrid"]
    assert abs(comparison.find("cascade")[mean_to_mix].value) < 0.02
    assert comparison.find("hybrid")[mean_to_mix].value > 0.02
    table = summarize(findings)
    assert [row[0] for row in table.rows] == [
        "finest scale (36)",
        "question_only",
        "hybrid",
        "mix of fixed scales, equal tokens",
        "oracle, authors' convention",
    ]
    assert table.rows[2][3].startswith("+") and table.rows[0][3:] == table.rows[3][3:] == ("-", "-")
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    # Trained with seed 0, whatever this command was given; what is not trained has none.
    found = {name: (each["seed"], each["starts_from"]) for name, each in metrics["predictors"].items()}
    assert found == {
        "question_only": (0, None),
        "per_task": (0, None),
        "cascade": (None, None),
        "hybrid": (0, "question_only"),
    }
    assert metrics["bootstrap"]["seed"] == 0
    assert "hybrid" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_cascade_by_entropy_stops_where_the_entropy_is_low():
    """With entropies of minus the log of the confidences, it is the cascade by confidence."""
    table = make_labels(60, 0).outcomes
    confidence = np.random.default_rng(0).uniform(0.1, 1, table.score.shape).astype(np.float32)
    samples = ScoredSamples.of(replace(table, confidence=confidence, entropy=-np.log(confidence)))
    by_confidence, by_entropy = (
        CascadePolicy("cascade", Cascade.fit, signal=signal).decide(samples, samples.inputs, 16)
        for signal in get_args(Signal)
    )
    np.testing.assert_allclose(by_entropy.price, by_confidence.price)
    for point in range(len(by_confidence.price)):
        np.testing.assert_array_equal(by_entropy.test.at(point), by_confidence.test.at(point))


def test_a_cascade_by_entropy_is_refused_on_labels_without_it(store, tmp_path):
    cascades = [CascadeEntry("entropy_cascade", Cascade.fit, signal="entropy")]
    with pytest.raises(ValueError, match="these labels lack: label again with `tokenscale label overwrite"):
        evaluate(store, tmp_path, cascades=cascades)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="signal=margin: give one of confidence, entropy"):
        CascadeEntry("cascade", Cascade.fit, signal="margin")  # type: ignore[arg-type]


def test_the_summary_is_short_and_says_what_it_is_about(store, tmp_path):
    findings = evaluate(store, tmp_path)
    lines = write_summary(findings).splitlines()
    assert len(lines) <= 18
    assert lines[0].startswith("240 test questions about 60 images, default prices")
    assert any(line.startswith("At its default price question_only spends") for line in lines)
    # Evaluated for the second time.
    assert lines[-1].startswith("These predictors were evaluated on this test split before; ")
    line = write_line(findings, tmp_path)
    assert line.count("\n") == 0 and line.startswith("question_only: +") and line.endswith(str(tmp_path))


def test_a_cascade_that_starts_from_an_unknown_predictor_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="hybrid starts from 'nobody'"):
        evaluate(store, tmp_path, cascades=[CascadeEntry("hybrid", Hybrid.fit, "nobody")])


def test_results_of_an_earlier_evaluation_in_the_folder_do_not_stay(store, tmp_path):
    (tmp_path / "tables").mkdir()
    stale = [tmp_path / "milliseconds.json", tmp_path / "tables" / "parts_milliseconds.csv"]
    for path in stale:
        path.write_text("{}")
    evaluate(store, tmp_path)
    assert (tmp_path / "tables" / "scores.csv").is_file() and not any(path.exists() for path in stale)


def test_a_group_that_nothing_decides_about_is_refused_before_the_test_split_is_read(store, tmp_path):
    before = count_records(store)
    with pytest.raises(ValueError, match=r"sensitive\.only=sensitive: there are no sampled answers"):
        evaluate(store, tmp_path, deciding=Deciding(only="sensitive"))
    with pytest.raises(ValueError, match=r"sensitive\.scale=36: give one of 1, 9, the scales below"):
        evaluate(store, tmp_path, deciding=Deciding(scale=36))
    assert count_records(store) == before


def test_stale_resampled_answers_are_refused_before_the_test_split_is_read(store, tmp_path):
    stale = ResampledFolder(store / "labels", {**FINGERPRINTS, "prompt": "another"}, {"seed": 0})
    stale.begin(["a"])
    stale.write("test-00000", ["a"], np.zeros((2, 1, 4)))
    before = count_records(store)
    try:
        with pytest.raises(ValueError, match=r"different prompt.*delete it, or resample again"):
            evaluate(store, tmp_path)
    finally:
        (stale.path / "test-00000.safetensors").unlink()
    assert count_records(store) == before


@pytest.mark.long
def test_sensitive_questions_have_a_table_and_can_be_evaluated_alone(store, tmp_path):
    outcomes = read_split(store)
    sampled = ResampledFolder(store / "labels", FINGERPRINTS, {"seed": 0})
    sampled.begin(outcomes.sample_id)
    score = np.zeros((2, len(outcomes), len(outcomes.scales)))
    # The first 40 questions need resolution, the others are right at every scale.
    score[:, :40, -1], score[:, 40:] = 1, 1
    sampled.write("test-00000", list(outcomes.sample_id), score)
    try:
        findings = evaluate(store, tmp_path / "all")
        metrics = json.loads((tmp_path / "all" / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["sensitive"]["sensitive"]["num_samples"] == 40
        assert metrics["sensitive"]["insensitive"]["share"]["value"] == pytest.approx(1 - 40 / len(outcomes))
        assert metrics["sensitive"]["sensitive"]["fixed"][-1]["score"]["value"] == pytest.approx(
            outcomes.score[:40, -1].mean(), abs=1e-6
        )
        assert (tmp_path / "all" / "tables" / "sensitive.csv").is_file()
        assert "Sensitive, insensitive" in (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
        text = " ".join(write_sentences(findings))
        assert "need resolution: they are right by 2 sampled answers at scale 36" in text
        alone = evaluate(store, tmp_path / "alone", deciding=Deciding(only="sensitive"))
        assert alone.comparison.num_samples == 40 and not alone.guarantees
        assert f"Only 40 of {len(outcomes)} test questions are evaluated, the sensitive" in write_summary(
            alone
        )
        np.testing.assert_allclose(alone.comparison.fixed_score.value, outcomes.score[:40].mean(axis=0))
    finally:
        (sampled.path / "test-00000.safetensors").unlink()


def test_backbone_that_decides_needs_labels(store, tmp_path):
    before = count_records(store)
    with pytest.raises(
        ValueError, match=r"sensitive\.downsampled=other: there are no labels of it in .*`token"
    ):
        evaluate(store, tmp_path, deciding=Deciding(downsampled="other"))
    assert count_records(store) == before


@pytest.fixture(scope="module")
def families(store, tmp_path_factory):
    """The labels of the store in folders of three backbones, as a user has them."""
    folder = tmp_path_factory.mktemp("families")
    for name in ("small", "pruned", "unfinished"):
        shutil.copytree(store / "labels", folder / name / "synthetic")
    return folder


def evaluate_beside(store, folder, output, **plan):
    evaluation = evaluate_predictors(
        find_all(store),
        labels=folder / "small" / "synthetic",
        task=Pictures(),
        recorder=EvaluationRecorder(store / "evaluations", "test"),
        plan=EvaluationPlan(bootstrap=Bootstrap(50), **plan),
    )
    provenance = Provenance("python -m experiments.evaluate", "seed: 0", "now")
    write_evaluation(evaluation, output, provenance=provenance, gallery=Gallery(Pictures().image, 0))
    return evaluation.findings


def test_fixed_scales_of_other_backbones_are_in_the_report(store, families, tmp_path):
    before = count_records(store)
    comparison = evaluate_beside(store, families, tmp_path, ladders=["pruned"]).comparison
    assert count_records(store) == before + 2
    (ladder,) = comparison.ladders
    own = comparison.policies[0][mean_to_mix]
    assert float(ladder.difference.mean.value) == pytest.approx(float(own.value))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Mix of another backbone" in page and "mix of pruned" in page
    with (tmp_path / "tables" / "ladders.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == ["mix of pruned"]


@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        (
            "missing",
            None,
            r"ladders=missing: there are no labels of it in .*`tokenscale label backbone=missing",
        ),
        (
            "unfinished",
            {"test": 3},
            "unfinished answered only 3 of the 240 test questions: label the task with",
        ),
    ],
)
def test_other_backbones_without_all_answers_are_refused(store, families, tmp_path, name, counts, message):
    if counts is not None:
        path = families / name / "synthetic" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "counts": {**manifest["counts"], **counts}}))
    before = count_records(store)
    with pytest.raises(ValueError, match=message):
        evaluate_beside(store, families, tmp_path, ladders=[name])
    assert count_records(store) == before


@pytest.fixture(scope="module")
def evaluated(store, tmp_path_factory):
    """Findings and folder of an evaluation with cascades."""
    folder = tmp_path_factory.mktemp("evaluated")
    cascades = [CascadeEntry("cascade", Cascade.fit), CascadeEntry("hybrid", Hybrid.fit, "question_only")]
    link = FailuresLink(None, folder, "tokenscale failures task=x")
    return evaluate(store, folder, cascades=cascades, failures=link), folder


def test_the_report_is_sound_and_its_slider_shows_the_numbers_of_metrics_json(evaluated):
    findings, tmp_path = evaluated
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_structure(text)
    assert "<code>tokenscale failures task=x</code>" in text
    files = read_downloads(text)
    check_downloads(files)
    figures = {
        f"{name}.{kind}" for name in ("front", "granularity", "calibration") for kind in ("pdf", "svg")
    }
    assert {name for name in files if name.endswith(("pdf", "svg"))} == figures
    for name, content in files.items():
        stored = tmp_path / ("" if name in figures else "tables") / name
        assert content.strip() == stored.read_bytes().strip()

    # One row for each operating point, from cheap to expensive: the slider shows the cells of a row.
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    finest = metrics["fixed"][-1]["cost"]["value"]
    expected = []
    for name, policy in metrics["predictors"].items():
        for point in policy["front"]:
            score = point["score"]
            interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
            saved = finest - point["cost"]["value"]
            cells = [name, f"{point['calibration_cost']:.3g}", f"{point['cost']['value']:.3g}"]
            cells += [f"{100 * score['value']:.1f} {interval}", f"{saved:.3g} ({saved / finest:.0%})"]
            expected.append((cells, point["price"]))
    rows = list(csv.reader(io.StringIO(files["points.csv"].decode())))[1:]
    assert [row[:5] for row in rows] == [cells for cells, _ in expected]
    assert len(rows) > 20
    for row, (_, price) in zip(rows, expected, strict=True):
        option = {"hybrid": "escalate=true price=", "cascade": "-"}.get(row[0], "price=")
        assert row[5].startswith(option)
        if row[0] != "cascade":
            # Rounded up, so that no sample gets a finer scale than at the point.
            assert 0 <= float(row[5].removeprefix(option)) - price <= 1.5e-6
    assert findings.units["question_only"] == findings.comparison.policies[0].policy.unit


def test_the_price_of_a_point_makes_the_choices_of_the_point(store, evaluated, tmp_path):
    """At the price that the slider shows, `choose` spends what the point spends."""
    findings, _ = evaluated
    trained = find_all(store)[0]
    test, _ = EvaluationRecorder(tmp_path, "test").open_test(store / "labels")
    estimates = trained.predictor.predict(test.inputs)
    tokens = test.inputs.visual_tokens
    rows = [row for row in list_points(findings) if row.policy == trained.name]
    for row in rows:
        price = float(row.options.removeprefix("price="))
        chosen = choose(estimates, tokens, price, unit=trained.prices.default.unit)
        assert tokens[np.arange(len(tokens)), chosen].mean() == pytest.approx(float(row.cost.value))
    assert [row.budget for row in rows] == sorted(row.budget for row in rows)
    default = trained.prices.default
    nearest = min(rows, key=lambda row: abs(float(row.options.removeprefix("price=")) - default.price))
    assert find_default_budget(findings.comparison.policies[0], findings) == nearest.budget


def test_prices_of_other_units_are_converted_and_rounded_up(evaluated):
    """A point at price p per unit u of the evaluation is at p * v / u per unit v of training."""
    findings, _ = evaluated
    result = findings.comparison.policies[0]
    other = replace(findings, units={result.name: 3 * result.policy.unit})
    assert write_options(result, 0.1234561, other) == "price=0.370369"
    assert write_options(result, 0.0, other) == "price=0"


def test_the_report_links_to_the_latest_failures_of_its_labels(store, tmp_path):
    fingerprints = read_manifest(store / "labels")["fingerprints"]
    head = '<meta name="tokenscale-labels" content="{}">'
    for number, (name, digest) in enumerate(
        [("first", digest_labels(fingerprints)), ("a & b", digest_labels(fingerprints)), ("other", "0" * 16)]
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "failures.html").write_text(head.format(digest))
        os.utime(folder / "failures.html", (number, number))
    output = tmp_path / "runs" / "new"
    page = find_failures([tmp_path / "runs", tmp_path / "nowhere"], fingerprints)
    assert page == (tmp_path / "runs" / "a & b" / "failures.html").resolve()
    assert find_failures([tmp_path], fingerprints) is None
    link = FailuresLink(page, output, "command")
    assert link.path == "../a%20%26%20b/failures.html" and link.uri.endswith(
        "/runs/a%20%26%20b/failures.html"
    )
    evaluate(store, output, failures=link)
    text = (output / "report.html").read_text(encoding="utf-8")
    assert f'<a href="{link.path}" id="failures-link" data-folder="new" data-uri="{link.uri}">' in text
