"""Finished runs side by side: what is combined, what is refused, what is written."""

import json
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file, save_file

from experiments.command_line.callbacks import ComparisonReport
from experiments.command_line.running import Provenance
from experiments.evaluation.metric_table import MOST_BAND_RESAMPLES, Family, Key, Predictor
from experiments.evaluation.metrics import (
    METRICS,
    default_score,
    mean_gap_share,
    mean_to_mix,
    score_at_budgets,
    to_mix,
)
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.comparison import (
    MOST_PRINTED_ROWS,
    build_comparison_tables,
    compare_runs,
    write_notes,
)
from experiments.reporting.front_plot import MOST_DRAWN
from experiments.reporting.run_costs import tabulate_run_costs
from experiments.reporting.run_findings import find_seed_banners, write_finding
from experiments.results.entries import Entry, Pair, find_p_values, list_entries, list_pairs
from experiments.results.metrics_json import collect_metrics, write_metrics
from experiments.results.resamples import (
    RESAMPLES,
    collect_resamples,
    name_tensor,
    read_resamples,
    write_resamples,
)
from experiments.results.run_folders import Run, find_runs
from m3_backbone.outcomes.manifest import unseal
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.experiments.evaluation.test_evaluate import compare
from tests.experiments.reporting.test_report import HOSTILE, Page
from tests.pages import check_downloads, check_structure, read_downloads

HEADLINE = ("predictors", "informed", "mean_to_mix")
Found = TypeVar("Found")


def sure(found: Found | None) -> Found:
    assert found is not None
    return found


def collect(comparison, test, **changes):
    seeds = {result.name: 0 for result in comparison.policies}
    metrics = collect_metrics(comparison, test, task="synthetic", backbone="small", seeds=seeds)
    return metrics | changes, collect_resamples(comparison)


@pytest.fixture(scope="module")
def found():
    """Metrics and draws of one evaluation."""
    calibration, test = make_outcomes("calibration", 40), make_outcomes("test", 50)
    return collect(compare(calibration, test), test)


def write_results(folder, found, *, seed=0, shift=0.0, overrides=(), config=None, name=None):
    """A run whose first predictor is better than that of `found` by `shift` on average."""
    metrics, draws = deepcopy(found)
    first = next(iter(metrics["predictors"]))
    metrics["predictors"][first]["mean_to_mix"]["value"] += shift
    draws[name_tensor("predictors", first, "mean_to_mix")] += np.float32(shift)
    for figures in metrics["predictors"].values():
        figures["seed"] = seed
    if name:
        figures = metrics["predictors"]
        metrics["predictors"] = {name if key == first else key: value for key, value in figures.items()}
        draws = {
            key.replace(name_tensor("predictors", first, ""), name_tensor("predictors", name, "")): value
            for key, value in draws.items()
        }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)), encoding="utf-8")
    if config is not None:
        (folder / ".hydra" / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    write_metrics(folder / "metrics.json", metrics)
    write_resamples(folder, draws)
    return folder


def test_a_setting_that_is_also_the_default_distinguishes_nothing(tmp_path, found):
    """Of three widths, two are 64: one as given, one by default. The backbone is the same in all."""
    width, backbone = "predictor.network.width", {"_target_": "B", "name": "${seed}"}
    for number, given in enumerate([(f"{width}=64", "backbone=tiny"), ("seed=1",), (f"{width}=32",)]):
        config = {"predictor": {"network": {"width": 32 if number == 2 else 64}}, "backbone": backbone}
        folder = tmp_path / str(number)
        write_results(folder, found, seed=number % 2, overrides=given, config=config)
    entries = list_entries(find_runs([tmp_path]))
    assert [(entry.label, entry.seeds) for entry in entries[:2]] == [
        (f"{entries[0].name}, {width}=64", (0, 1)),
        (f"{entries[0].name}, {width}=32", (0,)),
    ]


def test_seeds_are_combined_and_settings_kept_apart(tmp_path, found):
    """Two seeds at +1 and +3 points: mean +2, standard deviation sqrt(2)."""
    for number, (seed, shift, width) in enumerate([(0, 0.01, 32), (1, 0.03, 32), (0, 0.0, 64)]):
        settings = (
            f"seed={seed}",
            f"predictor.network.width={width}",
            "task=synthetic",
            f"hydra.run.dir={number}",
        )
        write_results(tmp_path / str(number), found, seed=seed, shift=shift, overrides=settings)
    entries = list_entries(find_runs([tmp_path]))
    assert [entry.label for entry in entries] == [
        "informed, predictor.network.width=32",
        "informed, predictor.network.width=64",
        "question_only",
    ]
    assert [entry.seeds for entry in entries] == [(0, 1), (0,), (0, 1)]
    alone, drawn = found[0]["predictors"]["informed"]["mean_to_mix"], found[1]["/".join(HEADLINE)]
    both = sure(entries[0].find(mean_to_mix))
    assert float(both.estimate.value) == pytest.approx(alone["value"] + 0.02)
    assert both.spread == pytest.approx(0.02 / 2**0.5)
    # Of two seeds one is drawn: every resample is that of one of them.
    shifts = both.bootstrapped.resamples - drawn
    assert set(shifts.round(4)) == {0.01, 0.03}
    assert both.estimate.low == pytest.approx(np.quantile(both.bootstrapped.resamples, 0.025))

    means, differences, *_ = build_comparison_tables(entries)
    assert means.rows[0][1] == "0, 1" and means.header[2:4] == ("to mix", "sd")
    assert [row[3] for row in means.rows] == ["1.4", "", "0.0"]
    # Less the same predictor without a shift, images cancel: what is left is the shift of one seed or other.
    assert differences.rows[0][1] == "+2.0 [+1.0, +3.0]"


def test_interval_of_a_single_seed_is_that_of_its_own_report(tmp_path, found):
    write_results(tmp_path / "one", found)
    entries = list_entries(find_runs([tmp_path]))
    for entry in entries:
        own = found[0]["predictors"][entry.name]
        single = [
            metric for metric in METRICS if metric.is_compared and metric.family is not Family.AT_BUDGETS
        ]
        assert len(single) == 11
        for metric in single:
            expected = own
            for step in metric.path.split("/"):
                expected = expected[step]
            estimate = sure(entry.find(metric)).estimate
            assert [float(estimate.low), float(estimate.high)] == pytest.approx(
                [expected["low"], expected["high"]], rel=2e-6, abs=2e-6
            )
        for metric in (score_at_budgets, to_mix):
            band = entry.at_budgets(metric)
            for bound in ("low", "high"):
                expected = [at[metric.name][bound] for at in own["at_budgets"]]
                assert getattr(band, bound) == pytest.approx(expected, rel=2e-6, abs=2e-6)
            assert (band.low <= band.value + 1e-9).all() and (band.value <= band.high + 1e-9).all()
    assert "sd" not in build_comparison_tables(entries)[0].header


def test_bands_rest_on_the_first_resamples_and_all_budgets(tmp_path):
    """More resamples than are kept of the bands: each bound is the quantile of the first 2,000."""
    calibration, test = make_outcomes("calibration", 8), make_outcomes("test", 8)
    num_resamples = MOST_BAND_RESAMPLES + 50
    comparison = compare(calibration, test, bootstrap=Bootstrap(num_resamples))
    run = Run(write_results(tmp_path / "run", collect(comparison, test)), {}, {})
    draws = read_resamples(run.folder, num_resamples)
    drawn = draws[name_tensor("predictors", "informed", "at_budgets", "to_mix")]
    assert drawn.shape == (MOST_BAND_RESAMPLES, len(comparison.budgets)) and drawn.dtype == np.float32
    assert draws[name_tensor("predictors", "informed", "mean_to_mix")].shape == (num_resamples,)
    band = list_entries(find_runs([run.folder]))[0].at_budgets(to_mix)
    assert band.low == pytest.approx(np.quantile(drawn.astype(np.float64), 0.025, axis=0))
    # A file with as many rows of the bands as of the figures is not what an evaluation writes.
    with pytest.raises(ValueError, match=f"not {MOST_BAND_RESAMPLES} resamples"):
        read_resamples(run.folder, MOST_BAND_RESAMPLES)


def test_names_of_predictors_cannot_be_taken_for_paths(tmp_path, found):
    """A predictor `x` with a figure `mean_to_mix`, and one that is called `x/mean_to_mix`."""
    assert name_tensor("predictors", "x/y", "z") != name_tensor("predictors", "x", "y", "z")
    names = ("x", "x/mean_to_mix", "predictors/x", "at_budgets", "100% ü", "x%2Fmean_to_mix")
    for order, name in enumerate(names):
        write_results(tmp_path / str(order), found, shift=0.01 * order, name=name)
    entries = list_entries(find_runs([tmp_path]))
    shown = {entry.name: sure(entry.find(mean_to_mix)).bootstrapped.resamples.mean() for entry in entries}
    base = shown.pop("x")
    del shown["question_only"]
    assert {name: round(float(mean - base), 4) for name, mean in shown.items()} == {
        name: 0.01 * order for order, name in enumerate(names) if order
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two predictors on the same samples, each with two seeds that blur differently what it knows."""
    calibration, test = make_outcomes("calibration", 60), make_outcomes("test", 80)
    folder, comparisons = tmp_path_factory.mktemp("runs"), {}
    for name, blur in (("keen", 0.15), ("dull", 0.6)):
        for seed in (0, 1):
            rng = np.random.default_rng([seed, len(name)])

            def estimate(table, rng=rng, blur=blur):
                return np.clip(estimate_outcomes(table) + rng.normal(0, blur, table.score.shape), 0, 1)

            comparison = compare(
                calibration,
                test,
                estimators={name: estimate, "question_only": lambda t: estimate_outcomes(t, see_image=False)},
                bootstrap=Bootstrap(200),
            )
            comparisons[name, seed] = comparison
            write_results(folder / f"{name}-{seed}", collect(comparison, test), seed=seed)
    return folder, comparisons


def test_paired_difference_by_the_slow_way(trained):
    """Each resample literally: one seed of two, the same for both, and the same images."""
    folder, comparisons = trained
    entries = list_entries(find_runs([folder]))
    keen, dull, reference = (
        next(e for e in entries if e.name == n) for n in ("keen", "dull", "question_only")
    )
    assert entries[0] in (keen, dull) and [len(entry.runs) for entry in entries] == [2, 2, 2]
    figures = {key: comparison.find(key[0]) for key, comparison in comparisons.items()}
    drawn = {
        key: comparison.metrics.resamples[Key(Predictor(key[0]), mean_to_mix)]
        for key, comparison in comparisons.items()
    }
    chosen = np.random.default_rng([0, 0, 1]).integers(2, size=(200, 1))[:, 0]
    slow = [drawn["keen", seed][k] - drawn["dull", seed][k] for k, seed in enumerate(chosen)]
    value = np.mean(
        [figures["keen", s][mean_to_mix].value - figures["dull", s][mean_to_mix].value for s in (0, 1)]
    )
    pair = Pair(keen, dull)
    estimate = sure(pair.estimate(mean_to_mix))
    assert float(estimate.value) == pytest.approx(value, abs=2e-6)
    assert [float(estimate.low), float(estimate.high)] == pytest.approx(
        np.quantile(slow, [0.025, 0.975]).tolist(), abs=2e-6
    )
    below = sum(each <= 0 for each in slow)
    assert find_p_values([pair])[0] == pytest.approx([2 * (1 + below) / 201] * 2)
    assert estimate.low > 0
    # Pairing is worth something: the same two as if they had been asked about other images.
    one, other = (sure(entry.find(mean_to_mix)).bootstrapped.resamples for entry in (keen, dull))
    apart = np.quantile(one - other[::-1], [0.025, 0.975])
    assert estimate.high - estimate.low < apart[1] - apart[0]

    p_values = find_p_values([Pair(keen, dull), Pair(keen, reference), Pair(dull, reference)])
    smallest = min(p for p, _ in p_values)
    assert min(adjusted for _, adjusted in p_values) == pytest.approx(min(1, 3 * smallest))


def test_the_same_policy_does_not_differ_from_itself(tmp_path, found):
    for seed in (0, 1):
        write_results(tmp_path / f"one-{seed}", found, seed=seed, shift=0.02 * seed, name="one")
        write_results(tmp_path / f"two-{seed}", found, seed=seed, shift=0.02 * seed, name="two")
    one, two, *_ = list_entries(find_runs([tmp_path]))
    pair = Pair(one, two)
    for metric in (mean_to_mix, default_score, mean_gap_share):
        estimate = sure(pair.estimate(metric))
        assert [float(each) for each in (estimate.value, estimate.low, estimate.high)] == [0, 0, 0]
    assert find_p_values([pair]) == [(1, 1)]
    alone = sure(one.find(mean_to_mix)).estimate
    assert alone.low < alone.high


def test_all_pairs_of_few_and_of_many_the_first_and_the_reference(found):
    names = ["a", "b", "c", "question_only", "d", "e", "f"]
    run = Run(Path(), found[0], found[1])
    entries = [Entry(name, name, [run]) for name in names]
    few = [(pair.first.name, pair.second.name) for pair in list_pairs(entries[:4])]
    assert few == [(a, b) for i, a in enumerate(names[:4]) for b in names[i + 1 : 4]]
    many = [(pair.first.name, pair.second.name) for pair in list_pairs(entries)]
    others = names[1:]
    assert many == [("a", name) for name in others] + [
        (name, "question_only") for name in others if name != "question_only"
    ]


def test_a_cascade_belongs_to_the_predictor_that_it_starts_from(tmp_path, found):
    """Climbing from two predictors makes two policies, though both are called by the same name."""
    metrics, draws = deepcopy(found)
    metrics["predictors"]["question_only"]["starts_from"] = "informed"
    for width in (32, 64):
        write_results(tmp_path / str(width), (metrics, draws), overrides=[f"width={width}"])
    labels = [entry.label for entry in list_entries(find_runs([tmp_path]))]
    assert labels == [
        f"{name}, width={w}" for name in ("informed", "question_only of informed") for w in (32, 64)
    ]


def test_a_second_run_of_a_seed_with_the_same_result_counts_once(tmp_path, found):
    for number, (seed, shift) in enumerate([(0, 0.01), (0, 0.01), (1, 0.03)]):
        write_results(tmp_path / str(number), found, seed=seed, shift=shift, overrides=[f"seed={seed}"])
    runs = find_runs([tmp_path])
    entries = list_entries(runs)
    assert [(entry.label, entry.seeds) for entry in entries] == [
        ("informed", (0, 1)),
        ("question_only", (0, 1)),
    ]
    assert write_notes(entries, runs) == [
        "informed: run 2 (1) repeats the result of another run with the same seed and settings; each seed "
        "counts once."
    ]


@pytest.mark.long
def test_a_second_run_of_a_seed_with_another_result_is_shown(tmp_path, found):
    """Three results of seed 0, the third of them twice, and one of seed 1."""
    for number, (seed, shift) in enumerate([(0, 0.01), (0, 0.05), (1, 0.03), (0, 0.09), (0, 0.09)]):
        write_results(tmp_path / str(number), found, seed=seed, shift=shift, overrides=[f"seed={seed}"])
    runs = find_runs([tmp_path])
    entries = list_entries(runs)
    own = found[0]["predictors"]["informed"]["mean_to_mix"]["value"]
    shown = [
        (entry.label, entry.seeds, round(float(sure(entry.find(mean_to_mix)).estimate.value) - own, 6))
        for entry in entries
    ]
    assert shown[:3] == [
        ("informed", (0, 1), 0.02),
        ("informed (2)", (0,), 0.05),
        ("informed (3)", (0,), 0.09),
    ]
    assert [label for label, *_ in shown[3:]] == ["question_only"]
    second, third, repeated = write_notes(entries, runs)
    assert second.startswith("informed (2): run 2 (1) has another result than run 1 (0) with the same seed")
    assert third.startswith("informed (3): run 5 (4) repeats the result of another run")
    assert repeated.startswith("informed (3): run 4 (3) has another result than run 2 (1)")
    output = tmp_path / "out"
    compare_runs([tmp_path], output=output, provenance=Provenance("command", "", "now"))
    assert second in Page((output / "compare.html").read_text(encoding="utf-8")).text


def test_baselines_with_other_results_are_told_apart_by_the_settings_of_their_runs(tmp_path, found):
    """Epochs change the baseline too: its name alone would make one policy of two."""
    for epochs in (3, 60):
        for seed in (0, 1):
            metrics, draws = deepcopy(found)
            draws[name_tensor("predictors", "question_only", "mean_to_mix")] += np.float32(epochs / 1000)
            settings = [f"seed={seed}", f"trainer.max_epochs={epochs}"]
            write_results(tmp_path / f"{epochs}-{seed}", (metrics, draws), seed=seed, overrides=settings)
    runs = find_runs([tmp_path])
    entries = list_entries(runs)
    assert [(entry.label, entry.seeds) for entry in entries] == [
        (f"{name}, trainer.max_epochs={epochs}", (0, 1))
        for name in ("informed", "question_only")
        for epochs in (3, 60)
    ]
    assert write_notes(entries, runs) == []


def test_a_baseline_that_differs_from_the_run_about_it_is_shown(tmp_path, found):
    """One run is about `question_only`; another has it as a baseline, with the same or another result."""
    metrics, draws = deepcopy(found)
    metrics["predictors"] = dict(reversed(metrics["predictors"].items()))
    write_results(tmp_path / "1", (metrics, draws))
    write_results(tmp_path / "2", found)
    assert [entry.label for entry in list_entries(find_runs([tmp_path]))] == ["question_only", "informed"]
    metrics, draws = deepcopy(found)
    draws[name_tensor("predictors", "question_only", "default", "score")] += np.float32(0.01)
    write_results(tmp_path / "3", (metrics, draws))
    runs = find_runs([tmp_path])
    entries = list_entries(runs)
    assert [entry.label for entry in entries] == ["question_only", "question_only (2)", "informed"]
    (note,) = [note for note in write_notes(entries, runs) if note.startswith("question_only")]
    assert note.startswith("question_only (2): run 3 (3) has another result than run 1 (1)")


def test_p_values_at_the_floor_are_shown_as_below_it(tmp_path, found):
    """60 resamples, 3 differences: no p-value below 2/61 = 0.0328, and 6/61 = 0.0984 after Holm."""
    for name, shift in (("a", 0.0), ("b", 0.5)):
        write_results(tmp_path / name, found, shift=shift, name=name)
    differences = build_comparison_tables(list_entries(find_runs([tmp_path])))[1]
    assert (
        "60 resamples resolve no p-value below 0.033, and after Holm's correction for 3 tests none below "
        in (differences.caption)
    )
    rows = {row[0]: row[2:4] for row in differences.rows}
    assert rows["a - b"] == rows["b - question_only"] == ("< 0.033", "< 0.099")


@pytest.mark.long
def test_many_policies_stay_readable(tmp_path, found, capsys):
    """The page has them all, the drawing as many as can be told apart, the terminal the first rows."""
    names = [f"policy {number:02d}" for number in range(MOST_PRINTED_ROWS + 5)]
    for number, name in enumerate(names):
        write_results(tmp_path / f"{number:02d}", found, shift=0.001 * number, name=name)
    output = tmp_path / "out"
    compare_runs([tmp_path], output=output, provenance=Provenance("command", "", "now"))
    # One more policy than runs: the baseline that they share.
    assert "... 6 more in tables/means.md" in capsys.readouterr().out
    assert len((output / "tables" / "means.csv").read_text().splitlines()) == len(names) + 2
    page = Page((output / "compare.html").read_text(encoding="utf-8"))
    assert f"Only the first {MOST_DRAWN} policies are plotted" in page.text and names[-1] in page.text
    drawn = {trace.get("name") for trace in json.loads(page.scripts[0][1])[0]["data"]}
    assert names[MOST_DRAWN - 1] in drawn and names[MOST_DRAWN] not in drawn


@pytest.mark.parametrize("harm", ["missing", "cut", "of other resamples"])
def test_run_without_whole_draws_is_to_be_evaluated_again(tmp_path, found, harm):
    write_results(tmp_path / "whole", found)
    folder = write_results(tmp_path / "harmed", found)
    path = folder / RESAMPLES
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        write_resamples(folder, {name: drawn[:-1] for name, drawn in read_resamples(folder, 60).items()})
    with pytest.raises(ValueError, match=r"harmed.*draws.safetensors.*: evaluate that run again"):
        find_runs([tmp_path])


def test_a_changed_number_in_the_draws_is_refused_by_name(tmp_path, found):
    path = write_results(tmp_path / "run", found) / RESAMPLES
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"run/draws.safetensors is not whole \(its content does not have the"
    ):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "metrics.json",
            lambda text: text.replace(b'"seed": 0', b'"seed": 1', 1),
            "does not have the digest",
        ),
        ("metrics.json", lambda text: text[:-30], "Unterminated string"),
        ("metrics.json", lambda text: text.replace(b"small", b"sm\xa0ll"), "can't decode byte"),
        ("metrics.json", lambda text: b"[" * 100_000, "recursion"),
        ("metrics.json", lambda text: b"[1]", "no JSON object"),
        ("metrics.json", lambda text: b'{"schema_version": 5}', "'task' is missing"),
        (".hydra/overrides.yaml", lambda text: b"[a, {", "while parsing"),
        (".hydra/overrides.yaml", lambda text: b"a: 1", "no list"),
        (".hydra/overrides.yaml", lambda text: b"['\xff']", "can't decode byte"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_in_one_line(tmp_path, found, name, change, reason):
    path = write_results(tmp_path / "run", found) / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        find_runs([tmp_path])
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged (") and message.endswith(": evaluate that run again")
    assert reason in message and len(message.splitlines()) == 1


def test_runs_of_the_same_schema_without_digests_are_read(tmp_path, found):
    folder = write_results(tmp_path / "run", found)
    metrics = unseal(json.loads((folder / "metrics.json").read_text("utf-8")))
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    save_file(load_file(folder / RESAMPLES), folder / RESAMPLES)
    (run,) = find_runs([folder])
    assert run.metrics == metrics and set(run.resamples) == set(found[1])


def test_a_run_with_the_former_name_of_the_guarantee_is_read(tmp_path, found):
    folder = write_results(tmp_path / "run", found)
    metrics = unseal(json.loads((folder / "metrics.json").read_text("utf-8")))
    metrics["risk"] = {"alpha": 0.02, "predictors": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    resamples = dict(found[1])
    first = next(iter(resamples.values()))
    write_resamples(folder, {**resamples, "risk/predictors/a/drop": first})
    (run,) = find_runs([folder])
    assert run.metrics["guarantee"] == metrics["risk"] and "risk" not in run.metrics
    np.testing.assert_array_equal(run.resamples["guarantee/predictors/a/drop"], first)


def test_single_runs_and_folders_of_runs_may_be_mixed(tmp_path, found):
    one = write_results(tmp_path / "one", found)
    for seed in (3, 11):
        write_results(tmp_path / "sweep" / str(seed), found, seed=seed)
    runs = find_runs([one, tmp_path / "sweep", one])
    assert [run.seed for run in runs] == [0, 3, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprints": {"weights": "other"}}, r"differ in fingerprints \(.*weights"),
        ({"task": "another"}, r"differ in task \(synthetic, another\)"),
        ({"split": {"num_samples": 1}}, r"differ in split \(num_samples"),
        ({"budgets": [1, 2]}, "same num_budgets"),
        ({"bootstrap": {"num_resamples": 60, "confidence": 0.95, "seed": 1}}, "and bootstrap_seed"),
        ({"schema_version": 1}, "schema version 1"),
        ({"schema_version": 4}, "schema version 4, this tokenscale reads 5: evaluate that run again"),
    ],
)
def test_runs_that_are_not_about_the_same_thing_are_refused(tmp_path, found, change, message):
    first = write_results(tmp_path / "first", found)
    second = write_results(tmp_path / "second", (found[0] | change, found[1]))
    with pytest.raises(ValueError, match=message):
        find_runs([first, second])


def test_folder_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics.json in .* name folders of finished runs"):
        find_runs([tmp_path])


def test_page_and_files_show_every_run_and_text_as_text(tmp_path, found, capsys):
    folders = [
        write_results(tmp_path / "plain", found),
        write_results(tmp_path / "hostile", found, shift=0.01, name=HOSTILE),
    ]
    output = tmp_path / "out"
    compare_runs(folders, output=output, provenance=Provenance(HOSTILE, f"key: {HOSTILE}", "now"))
    assert f"comparison of 2 runs: {output / 'compare.html'}" in capsys.readouterr().out
    page = Page((output / "compare.html").read_text(encoding="utf-8"))
    assert not any("alert(1)" in text for attrs, text in page.scripts if "type" not in attrs)
    assert page.text.count(HOSTILE) >= 6 and "informed" in page.text
    check_structure((output / "compare.html").read_text(encoding="utf-8"))
    check_downloads(read_downloads((output / "compare.html").read_text(encoding="utf-8")))
    (chart,) = json.loads(page.scripts[0][1])
    names = [trace["name"] for trace in chart["data"] if "name" in trace]
    assert {"informed", "mix of fixed scales", "budgeted oracle", "stable oracle"} <= set(names)
    assert not any("<script" in name for name in names)
    assert {path.name for path in output.iterdir()} == {"compare.html", "front.pdf", "front.svg", "tables"}
    assert {path.suffix for path in (output / "tables").iterdir()} == {".csv", ".md", ".tex"}


def with_costs(found, cost, gain):
    """Metrics with GFLOPs: `cost` at the default price, `gain` above the mix."""
    figures = {
        name: {
            "own": 0.5,
            "default": {"cost": {"value": cost}, "score": {"value": 0.75}},
            "mean_to_mix": {"value": gain},
            "mean_gap_share": None,
        }
        for name in found[0]["predictors"]
    }
    part = {"unit": "GFLOPs", "fixed": [1.0, 2.0, 3.0, 4.0], "predictors": figures}
    resamples = {
        name_tensor("flops", "predictors", name, "mean_to_mix"): found[1]["/".join(HEADLINE)]
        for name in found[0]["predictors"]
    }
    return found[0] | {"flops": part}, found[1] | resamples


def test_other_cost_measures_have_means_and_ranges_over_runs(tmp_path, found, caplog):
    for seed, (cost, gain) in enumerate([(2.0, 0.01), (3.0, 0.03)]):
        folder = write_results(tmp_path / str(seed), with_costs(found, cost, gain), seed=seed)
        content = {**with_costs(found, 10 * cost, gain)[0]["flops"], "unit": "ms"}
        write_metrics(folder / "milliseconds.json", content)
    runs = find_runs([tmp_path])
    entries = list_entries(runs)
    flops, milliseconds = tabulate_run_costs(entries, runs)
    assert flops.name == "costs_flops" and milliseconds.header[1] == "ms"
    assert flops.rows[0][:2] == ("scale 1", "1")
    assert flops.rows[4] == ("informed", "2.5 [2, 3]", "0.5", "75.0", "+2.0 [+1.0, +3.0]", "-")
    assert milliseconds.rows[4][1] == "25 [20, 30]"
    # A measure that some run lacks, or has damaged, is left out.
    (tmp_path / "0" / "milliseconds.json").write_text("{}")
    assert [table.name for table in tabulate_run_costs(entries, runs)] == ["costs_flops"]
    assert "milliseconds.json is left out" in caplog.text


@pytest.mark.parametrize(
    ("num_seeds", "warning"),
    [
        (1, "One training (seed) of informed, question_only: intervals and p-values cover other test images"),
        (2, "2 trainings (seeds) of informed, question_only: they tell little about the spread"),
        (5, ""),
    ],
)
def test_few_seeds_are_warned_of(tmp_path, found, num_seeds, warning):
    for seed in range(num_seeds):
        write_results(tmp_path / str(seed), found, seed=seed, shift=0.01 * seed)
    banners = find_seed_banners(list_entries(find_runs([tmp_path])))
    assert [banner.text.startswith(warning) for banner in banners] == [True] * bool(warning)


def test_the_finding_compares_the_first_policy_with_the_mix_and_the_best_other(tmp_path, found):
    write_results(tmp_path / "one", found)
    entries = list_entries(find_runs([tmp_path]))
    own = sure(entries[0].find(mean_to_mix)).estimate
    difference = sure(Pair(*entries).estimate(mean_to_mix))
    text = write_finding(entries, 50)
    assert text.startswith(
        f"At the same mean number of visual tokens, informed scores {100 * own.value:.1f} points more than "
        "mixing fixed scales (95% interval "
    )
    assert f"{100 * difference.value:.1f} points more than question_only (95% interval" in text
    assert "the best of the others (p " in text and text.endswith(", corrected for 1 test).")
    assert write_finding(entries, 29).startswith("No finding: 29 test images are too few to compare informed")


def end_sweep(folder):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "overrides": {"task": ["seed=0,1"]}}})
    ComparisonReport().on_multirun_end(config)


def test_sweep_ends_in_a_comparison(tmp_path, found):
    for seed in (0, 1):
        write_results(tmp_path / str(seed), found, seed=seed)
    end_sweep(tmp_path)
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "2 policies of 2 runs, side by side" in page.text
    assert f"runs={tmp_path}" in page.text


def test_sweep_of_other_things_ends_as_it_is(tmp_path, found, caplog):
    end_sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    write_results(tmp_path / "0", found)
    write_results(tmp_path / "1", (found[0] | {"task": "another"}, found[1]))
    end_sweep(tmp_path)
    assert not (tmp_path / "compare.html").exists()
    assert (
        "the runs of this sweep are not compared" in caplog.text
        and "task (synthetic, another)" in caplog.text
    )
