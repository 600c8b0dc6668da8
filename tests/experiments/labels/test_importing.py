"""Import of outcomes made elsewhere, and their evaluation."""

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments import run
from experiments.command_line.running import Provenance
from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.comparison import PolicyResult
from experiments.evaluation.costs import count_costs
from experiments.evaluation.guarantee import GuaranteeTerms
from experiments.evaluation.metrics import average_gap_recovered, average_quality, call_share, mean_gap_share
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.importing import import_outcomes
from experiments.reporting.comparison import compare_runs
from experiments.reporting.evaluation import EvaluationPlan, evaluate_predictors, write_evaluation
from experiments.reporting.gallery import Gallery
from experiments.reporting.operating_points import find_default_budget, list_points
from experiments.tasks.imported import Imported, refuse_backbone
from experiments.tasks.outcome_file import OutcomeFile
from experiments.training.trained import TrainingSettings, identify, open_trained
from experiments.training.trainer import TrainingLabels, train_predictors
from m3_backbone.outcomes.labels import read_labels
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import OutcomeTable
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.objectives import LikelihoodDistillation
from predictor.policy.front import choose
from tests.held_out import grant, read_outcomes, read_split

SHARED = Path(__file__).parents[4] / "shared" / "external"
TWO_MODELS: dict[str, Any] = {
    name: {"score": name, "cost": cost} for name, cost in (("gpt-4-1106", 25), ("mixtral-8x7b", 1))
}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def routed(tmp_path_factory) -> Path:
    """300 questions of two kinds: the small model answers the easy ones, the large model all."""
    rows = [
        {
            "question": f"{'easy' if number % 2 else 'hard'} question, number {number}",
            "category": "<b>easy</b>" if number % 2 else "hard",
            "large/v1.score": True,
            "large/v1.cost": 0.02,
            "small.score": number % 2,
            "small.cost": 0.001 + number * 1e-6,
        }
        for number in range(300)
    ]
    folder = tmp_path_factory.mktemp("imported")
    file = OutcomeFile(name="routed", file=write_csv(folder / "routed.csv", rows), cost_name="dollars")
    import_outcomes(file, folder / "labels")
    return folder / "labels"


def test_options_are_the_ladder_in_order_of_their_mean_cost(routed):
    table = read_outcomes(routed)
    assert [str(scale) for scale in table.scales] == ["small", "large/v1"]
    assert table.scales[0] < table.scales[1] and f"{table.scales[1]:>10}" == "  large/v1"
    number = np.array([int(text.rpartition(" ")[2]) for text in table.question])
    assert np.allclose(table.cost[:, 0], 0.001 + number * 1e-6, atol=1e-9)
    assert np.allclose(table.cost[:, 1], 0.02)
    assert (table.score == np.stack([number % 2, np.ones(300)], axis=1)).all()
    assert [read_manifest(routed)["counts"][split] for split in ("train", "calibration", "test")] == [
        len(read_outcomes(routed, split)) for split in ("train", "calibration", "test")
    ]


@pytest.mark.long
def test_evaluation_of_imported_outcomes_names_options_and_their_costs(routed, tmp_path):
    predictors = [
        QuestionOnly(max_words=1, inverse_penalties=(10.0,)),
        NearestNeighbours(features=Features(visual=(), question=True), num_neighbours=(10,)),
    ]
    settings = TrainingSettings(seed=0, validation_fraction=0.2, budget=None, tolerance=0.01)
    train_predictors(predictors, labels=routed, folder=tmp_path / "predictors", settings=settings)
    manifest = read_manifest(routed)
    task = Imported(name="routed", labels=routed)
    evaluation = evaluate_predictors(
        [open_trained(tmp_path / "predictors", p.name, identify(p, manifest, settings)) for p in predictors],
        labels=routed,
        task=task,
        recorder=EvaluationRecorder(tmp_path / "records", "test"),
        plan=EvaluationPlan(bootstrap=Bootstrap(50), guarantee=GuaranteeTerms(num_resplits=0)),
    )
    provenance = Provenance("command", "configuration", "now")
    write_evaluation(evaluation, tmp_path / "report", provenance=provenance, gallery=Gallery(task.image, 2))
    # Choosing small for easy questions and large for hard ones is the best that any choice reaches.
    first = evaluation.findings.comparison.policies[0]
    assert first[mean_gap_share].value == pytest.approx(1, abs=0.05)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "mean number of dollars" in page and "scale large/v1" in page and "visual tokens" not in page
    assert "<b>easy</b>" not in page and "cannot be read" not in page
    fixed = json.loads((tmp_path / "report" / "metrics.json").read_text())["fixed"]
    assert [line["name"] for line in fixed] == ["small", "large/v1"]
    assert fixed[1]["cost"]["value"] == pytest.approx(0.02)
    # The prices of operating points are those with which the predictor spends what they spend.
    trained = open_trained(tmp_path / "predictors", first.name, identify(predictors[0], manifest, settings))
    test, _ = EvaluationRecorder(tmp_path / "records", "test").open_test(routed)
    estimates, stored_cost = trained.predictor.predict(test.inputs), test.inputs.visual_tokens
    default = trained.prices.default
    rows = [row for row in list_points(evaluation.findings) if row.policy == first.name]
    for row in rows:
        price = float(row.options.removeprefix("price="))
        chosen = choose(estimates, stored_cost, price, unit=default.unit)
        cost = test.outcomes.cost[np.arange(len(chosen)), chosen].mean()
        assert cost == pytest.approx(float(row.cost.value))
    nearest = min(rows, key=lambda row: abs(float(row.options.removeprefix("price=")) - default.price))
    assert find_default_budget(first, evaluation.findings) == nearest.budget


@pytest.mark.long
def test_run_trains_and_evaluates_imported_outcomes(routed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ("num_resamples=20", "guarantee.num_resplits=0", "gallery=0", "hydra.run.dir=run")
    place = ("experiment=imported", "task.name=routed", f"paths.labels={routed}")
    monkeypatch.setattr(sys, "argv", ["run", *place, *few])
    run.main()
    begun = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert "labelled" not in begun and "timed" not in begun
    assert begun.index("evaluated") - begun.index("trained") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["fixed"][1]["cost"]["value"] == pytest.approx(0.02)
    assert metrics["cost_name"] == "dollars"

    compare_runs([tmp_path / "run"], output=tmp_path / "compared", provenance=Provenance("", "", ""))
    texts = [
        (tmp_path / "run" / "report.html").read_text().partition("<summary>Configuration")[0],
        (tmp_path / "compared" / "compare.html").read_text(),
        *(path.read_text() for path in tmp_path.glob("*/tables/*.csv")),
    ]
    assert all("mean number of dollars" in text for text in texts[:2]) and "scale small" in texts[1]
    for text in texts:
        assert not re.search(
            r"visual tokens|default tokens|\btokens,|matched mean tokens|[\d>]+ tokens\b|GFLOP", text
        )


def test_a_budget_is_in_the_unit_of_the_file(routed):
    settings = TrainingSettings(seed=0, validation_fraction=0.2, budget=0.01, tolerance=0.01)
    options = read_outcomes(routed).options
    assert options is not None
    assert TrainingLabels(routed, settings).stored_budget == pytest.approx(0.01 / options.unit)
    with pytest.raises(ValueError, match=r"budget=0.0001: .* takes 0\.001\d+ dollars on average"):
        _ = TrainingLabels(routed, replace(settings, budget=0.0001)).stored_budget


def test_likelihoods_and_backbones_are_refused(routed):
    with pytest.raises(ValueError, match="likelihood of the references, which imported outcomes lack"):
        LikelihoodDistillation(2).prepare(read_labels(routed, "train"))
    with pytest.raises(ValueError, match="no backbone that could answer"):
        refuse_backbone()


def test_the_same_file_is_kept_and_another_one_refused(routed, tmp_path):
    source = routed.parent / "routed.csv"
    before = {path: path.stat().st_mtime_ns for path in (routed / "outcomes").iterdir()}
    import_outcomes(OutcomeFile(name="routed", file=source, cost_name="dollars"), routed)
    assert before == {path: path.stat().st_mtime_ns for path in (routed / "outcomes").iterdir()}
    with pytest.raises(ValueError, match=r"data \(cost_name: \"dollars\" there, \"euros\" here\)"):
        import_outcomes(OutcomeFile(name="routed", file=source, cost_name="euros"), routed)


def test_bad_rows_are_skipped_with_their_reasons_and_bad_columns_refused(tmp_path):
    good: dict[str, Any] = {
        "id": 1,
        "question": "a?",
        "image": "a.png",
        "s": 1,
        "c": 2,
        "t": 0.5,
        "split": "train",
    }
    changes: list[dict[str, Any]] = [
        {},
        {"question": ""},
        {"id": 3, "s": 2},
        {"id": 4, "c": 0},
        {"id": 5, "s": "nan"},
        {"id": 6, "split": "dev"},
        {},
        {"id": 8, "split": "test"},
        {"id": 9, "image": "b.png", "question": "two\nlines"},
        {"id": 10, "image": "missing.png"},
    ]
    path = write_csv(tmp_path / "rows.csv", [good | change for change in changes])
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    options: dict[str, Any] = {"one": {"score": "s", "cost": "c"}, "two": {"score": "t", "cost": 7}}
    file = OutcomeFile(
        name="rows", file=path, options=options, columns={"sample_id": "id"}, images=tmp_path
    )  # fmt: skip
    summary = import_outcomes(file, tmp_path / "labels")
    rows = [json.loads(line) for line in (tmp_path / "labels" / "skipped.jsonl").read_text().splitlines()]
    assert {row.get("row", row.get("sample_id")): row["reason"] for row in rows} == {
        2: "no question",
        3: "s is 2 and not between 0 and 1",
        4: "cost is 0 and not positive",
        5: "no s",
        6: "split is 'dev' and none of train, calibration, test, val, validation",
        7: "sample_id 'rows/1' came before",
        8: "image 'a.png' came before with split train",
        "rows/10": "cannot read image 'missing.png': no such file in the image folder",
    }
    assert sum(summary.counts.values()) == 2
    table = read_outcomes(tmp_path / "labels", "train")
    labels = read_split(tmp_path / "labels", "train")
    assert table.cost.tolist() == [[2, 7]] * len(table) and labels.inputs.statistic_names[0] == "image/width"
    with pytest.raises(ValueError, match=r"rows.csv has no column 'x', only 'id', 'question', 'image'"):
        OutcomeFile(name="rows", file=path, options={"one": {"score": "x", "cost": 1}})
    with pytest.raises(
        ValueError, match=r"option 'a\\x1b\[31m' of .*rows\.csv: a name has 1 to 100 printable"
    ):
        OutcomeFile(name="rows", file=path, options={"a\x1b[31m": {"score": "s", "cost": "c"}})
    many: dict[str, dict[str, str | float | int]] = {
        f"o{number}": {"score": "s", "cost": number} for number in range(1, 257)
    }
    with pytest.raises(ValueError, match=r"has 256 options, and at most 255"):
        OutcomeFile(name="rows", file=path, options=many)
    with pytest.raises(ValueError, match=r"rows.csv has no columns NAME.score and NAME.cost, only 'id'"):
        OutcomeFile(name="rows", file=path)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("question,x.score,x.cost\na?,1,1\ncaf\xe9?,1,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv is not UTF-8 \(column 'question'\): save it as UTF-8"):
        list(OutcomeFile(name="t", file=tmp_path / "t.csv").samples("train"))


def test_equal_costs_of_two_options_do_not_coincide(tmp_path):
    rows = pa.table({"question": ["a", "b"], "x.score": [0, 1], "x.cost": [3, 3], "y.score": [1, 0]})
    pq.write_table(rows.append_column("y.cost", pa.array([3.0, 4.0])), tmp_path / "t.parquet")
    file = OutcomeFile(name="t", file=tmp_path / "t.parquet")
    import_outcomes(file, tmp_path / "labels")
    table = OutcomeTable.concat(
        [
            OutcomeTable.read(tmp_path / "labels", split, grant(tmp_path / "labels"))
            for split, count in read_manifest(tmp_path / "labels")["counts"].items()
            if count
        ]
    )
    assert (table.visual_tokens[:, 0] < table.visual_tokens[:, 1]).all()
    assert np.allclose(table.cost[np.argsort(table.question)], [[3, 3], [3, 4]], atol=1e-7)


# --- Real outcomes ------------------------------------------------------------------------------------------


def compute_metrics(cost: np.ndarray, score: np.ndarray, weak: float, strong: float) -> list[float]:
    """AIQ, APGR, CPT(50%) and CPT(80%) of points at costs 1 (score `weak`) to 25 (score `strong`).

    Written from the definitions in RouterBench and RouteLLM, with integrals by fine sampling.
    """
    points = sorted({(1.0, weak), *zip(cost.tolist(), score.tolist(), strict=True)})
    best = {c: max(s for other, s in points if other == c) for c, _ in points}
    costs, scores = np.array(list(best)), np.array(list(best.values()))
    line = lambda at: np.interp(at, costs, scores)  # noqa: E731
    at = np.unique(np.concatenate([np.linspace(1, 25, 240_001), costs]))
    shares = (at - 1) / 24
    recovered = (line(at) - weak) / (strong - weak)
    # The concave hull from left to right: of all later points, the one with the steepest rise.
    hull, position = [0], 0
    while position < len(costs) - 1:
        slopes = (scores[position + 1 :] - scores[position]) / (costs[position + 1 :] - costs[position])
        if slopes.max() <= 0:
            break
        position += 1 + int(slopes.argmax())
        hull.append(position)
    height = np.interp(at, costs[hull], scores[hull])
    thresholds = [float(shares[recovered >= level - 1e-12][0]) for level in (0.5, 0.8)]
    return [np.trapezoid(height, shares), np.trapezoid(recovered, shares), *thresholds]


def check_metrics(result: PolicyResult, estimates: np.ndarray, test: OutcomeTable) -> None:
    """Compare the metrics of a policy with those of its choices at its prices, computed here."""
    estimates, score = estimates.astype(np.float64), test.score.astype(np.float64)
    gain = estimates[:, 1] - estimates[:, 0]
    # At its own price a sample is answered by the cheap model, whatever the rounding.
    chosen = [gain > price * 24 / result.policy.unit + 1e-12 for price in result.policy.price]
    costs = np.array([1 + 24 * strong.mean() for strong in chosen])
    scores = np.array([np.where(strong, score[:, 1], score[:, 0]).mean() for strong in chosen])
    expected = compute_metrics(costs, scores, *score.mean(axis=0))
    reached = [result[call_share, level].value for level in (0.5, 0.8)]
    values = [result[average_quality].value, result[average_gap_recovered].value]
    assert values == pytest.approx(expected[:2], abs=1e-6)
    assert reached == pytest.approx(expected[2:], abs=1e-5)  # the sampling above is that fine


def compare_real(folder: Path, name: str, estimate) -> tuple[PolicyResult, np.ndarray, OutcomeTable]:
    path = SHARED / f"{name}_two_models.parquet"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    columns = {"category": "domain"} if name == "mmlu" else {}
    file = OutcomeFile(name=name, file=path, options=TWO_MODELS, columns=columns)
    import_outcomes(file, folder)
    train, calibration, test = (read_split(folder, split) for split in ("train", "calibration", "test"))
    assert len(train) + len(calibration) + len(test) == pq.read_metadata(path).num_rows
    assert [str(scale) for scale in test.outcomes.scales] == ["mixtral-8x7b", "gpt-4-1106"]
    on_calibration, on_test = estimate(train, calibration), estimate(train, test)
    options = test.outcomes.options
    assert options is not None
    comparison = compare_policies(
        calibration.outcomes,
        test.outcomes,
        [PredictorPolicy("real", on_calibration, on_test)],
        measure=count_costs(options.cost),
        bootstrap=Bootstrap(100),
    )
    return comparison.policies[0], on_test, test.outcomes


def test_metrics_on_real_outcomes_equal_an_independent_computation(tmp_path):
    def estimate_by_length(train, split) -> np.ndarray:
        lengths = [np.array([len(text.split()) for text in part.inputs.question]) for part in (train, split)]
        edges = np.quantile(lengths[0], np.linspace(0, 1, 11)[1:-1])
        bins, own = (np.searchsorted(edges, length) for length in lengths)
        return np.array([train.outcomes.score[bins == bin].mean(axis=0) for bin in range(10)])[own]

    check_metrics(*compare_real(tmp_path / "gsm8k", "gsm8k", estimate_by_length))


@pytest.mark.slow
def test_words_recover_a_fifth_of_the_gap_on_mmlu(tmp_path):
    fitted: list[QuestionOnly] = []

    def estimate(train, split) -> np.ndarray:
        if not fitted:
            fitted.append(
                QuestionOnly(inverse_penalties=(1.0,)).fit(train, read_labels(folder, "calibration"))
            )
        return fitted[0].predict(split.inputs)

    folder = tmp_path / "mmlu"
    result, estimates, test = compare_real(folder, "mmlu", estimate)
    check_metrics(result, estimates, test)
    assert 0.15 < result[mean_gap_share].value < 0.25
