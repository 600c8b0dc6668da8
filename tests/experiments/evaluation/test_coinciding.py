"""What a path over several scales pays, by family of the backbone, and scales that coincide."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import (
    TOKENS,
    VISION_FOR_PREDICTOR,
    Timings,
    count_flops,
    count_milliseconds,
    list_cost_measures,
)
from experiments.evaluation.fronts import Grid
from experiments.evaluation.guarantee import apply_guarantee, find_guarantee
from experiments.evaluation.metric_table import Bound
from experiments.evaluation.metrics import brier, calibration_error, default_cost
from experiments.evaluation.needs import tabulate_needs
from experiments.evaluation.noise_free import list_noise_free
from experiments.evaluation.policies import CascadePolicy, Paths, Policy, PredictorPolicy, ScoredSamples
from experiments.evaluation.policy_table import PolicyMeans
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.resampled import Resampled
from experiments.reporting.evaluation_tables import list_tables, tabulate_parts
from experiments.reporting.findings import Findings, write_default, write_sentences
from experiments.reporting.gallery import Gallery
from experiments.reporting.report import Figures, write_report
from experiments.results.metrics_json import collect_metrics
from predictor.cascades.cascade import Cascade
from predictor.cascades.hybrid import Hybrid
from predictor.classical.blend import Blend
from predictor.classical.controls import ShuffledLabels
from predictor.classical.nearest import NearestNeighbours
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.policy.pricing import OperatingPoint
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.predictor.synthetic import make_labels

# Columns with one value per scale.
ARRAYS = ("score", "nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")
PATHS = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def of_family(family, tokens=(1, 9, 36), vision=(2, 5, 20), prefill=(1, 9, 36)):
    """Outcomes of one sample at three scales; FLOPs are in GFLOPs."""
    table = make_labels(1, 0, questions_per_image=1).outcomes
    return dataclasses.replace(
        table,
        family=family,
        visual_tokens=np.array([tokens], dtype=np.int32),
        vision_flops=np.int64(1e9) * np.array([vision]),
        prefill_flops=np.int64(1e9) * np.array([prefill]),
    )


def cost_paths(table, measure, policy=None):
    ways = Paths.escalating(3)
    assert list(zip(ways.start, ways.stop, strict=True)) == PATHS
    return ways.cost(ScoredSamples.of(table, measure, policy))[0].tolist()


def repeat_scale(table, column):
    """The table with a scale after that of `column` that has the same tokens, costs and answers."""
    arrays = {
        name: np.insert(getattr(table, name), column + 1, getattr(table, name)[:, column], axis=1)
        for name in (*ARRAYS, *(["vision_flops"] if table.vision_flops is not None else []))
    }
    scales = list(table.scales)
    scales.insert(column + 1, scales[column] + 1)
    answer = [[*row[: column + 1], *row[column:]] for row in table.answer]
    return dataclasses.replace(table, scales=tuple(scales), answer=answer, **arrays)


def merge_scales(table, column, is_merged):
    """The table with the outcomes of `column` at the next finer scale too, for samples in `is_merged`."""
    arrays = {name: getattr(table, name).copy() for name in ARRAYS}
    for values in arrays.values():
        values[is_merged, column + 1] = values[is_merged, column]
    return dataclasses.replace(table, **arrays)


def test_the_family_says_which_vision_passes_a_path_pays():
    flops = count_flops({})
    # Prefill is 1, 9 and 36 at every scale that is tried.
    pooled = of_family("pooled", vision=(5, 5, 5))
    assert cost_paths(pooled, flops) == [5 + 1, 5 + 10, 5 + 46, 5 + 9, 5 + 45, 5 + 36]
    # Of 5 and 20 at the finer scales, 2 are those of the thumbnail.
    thumbnail = of_family("thumbnail")
    assert cost_paths(thumbnail, flops) == [2 + 1, 5 + 10, 5 + 18 + 46, 5 + 9, 5 + 18 + 45, 20 + 36]
    native = of_family("native")
    assert cost_paths(native, flops) == [2 + 1, 2 + 5 + 10, 27 + 46, 5 + 9, 25 + 45, 20 + 36]
    # Visual tokens know no vision pass.
    for table in (pooled, thumbnail, native):
        assert cost_paths(table, TOKENS) == [1, 10, 46, 9, 45, 36]


def test_a_predictor_that_reads_the_vision_pass_pays_it_unless_its_path_starts_there():
    flops = count_flops({}, vision_readers=["informed"])
    native = of_family("native")
    without = cost_paths(native, flops, "another")
    assert without == cost_paths(native, flops)
    added = np.subtract(cost_paths(native, flops, "informed"), without)
    assert added.tolist() == [0, 0, 0, 2, 2, 2]
    assert flops.mean_parts(native)[VISION_FOR_PREDICTOR].tolist() == [0, 2, 2]
    for family in ("pooled", "thumbnail"):
        table = of_family(family)
        assert cost_paths(table, flops, "informed") == cost_paths(table, flops)
        assert VISION_FOR_PREDICTOR not in flops.mean_parts(table)
    assert cost_paths(native, TOKENS, "informed") == [1, 10, 46, 9, 45, 36]


@pytest.mark.parametrize("family", ["pooled", "thumbnail", "native"])
def test_a_coinciding_scale_is_not_paid_again(family):
    flops = count_flops({}, vision_readers=["informed"])
    vision = (4, 4, 4) if family == "pooled" else (4, 4, 20)
    coarse = of_family(family, (9, 9, 36), vision, (9, 9, 36))
    third = {"pooled": 36, "thumbnail": 16 + 36, "native": 20 + 36}[family]
    last = 40 if family == "pooled" else 56
    assert cost_paths(coarse, flops) == [13, 13, 13 + third, 13, 13 + third, last]
    # Both coarse scales use the vision pass that the predictor needs.
    sunk = 4 if family == "native" else 0
    assert cost_paths(coarse, flops, "informed") == [13, 13, 13 + third, 13, 13 + third, last + sunk]
    assert cost_paths(coarse, TOKENS) == [9, 9, 45, 9, 45, 36]
    fine = of_family(family, (1, 9, 9), (4, 4, 4) if family == "pooled" else (4, 6, 6), (1, 9, 9))
    start, second = (5, 9) if family == "pooled" else (5, 11 if family == "thumbnail" else 15)
    alone = 13 if family == "pooled" else 15
    assert cost_paths(fine, flops) == [start, start + second, start + second, alone, alone, alone]
    everything = of_family(family, (9, 9, 9), (4, 4, 4), (9, 9, 9))
    assert cost_paths(everything, flops, "informed") == [13] * 6


def test_predictors_that_read_vision_are_known_by_their_features():
    train, test = make_labels(40, 0, split="train"), make_labels(20, 1, split="test")
    visual, tower = Features(visual=9), Features(question=True, statistics=("tower",))
    predictors = {
        "question_only": QuestionOnly(),
        "image": NearestNeighbours(features=Features(statistics=("image",))),
        "visual": NearestNeighbours(features=visual),
        "tower": NearestNeighbours(features=tower),
        "shuffled": ShuffledLabels(predictor=partial(NearestNeighbours, features=tower), name="shuffled"),
        "blend": Blend(first=partial(NearestNeighbours, features=visual), second=QuestionOnly, shares=(0.5,)),
    }
    for predictor in predictors.values():
        predictor.fit(train, test)
    native = dataclasses.replace(test.outcomes, family="native")
    starts_from = {"hybrid": "visual", "free hybrid": "question_only"}
    timings = Timings(np.ones(3), np.ones((3, 3)), {})
    _, flops = list_cost_measures(native, predictors, test.inputs, starts_from=starts_from, timings=timings)
    assert flops.key == "flops"
    assert set(flops.vision_readers) == {"visual", "tower", "shuffled", "blend", "hybrid"}


def compare(splits, estimates, measure=TOKENS, cascades=True, default=None, **more):
    first, second = estimates
    policies: list[Policy] = [
        PredictorPolicy("informed", first, second, default),
        PredictorPolicy("opposite", second, first),
    ]
    if cascades:
        policies.append(CascadePolicy("cascade", Cascade.fit))
    settings: dict[str, Any] = {"bootstrap": Bootstrap(25), "grid": Grid(9, 40)} | more
    calibration, test = splits
    return compare_policies(calibration, test, policies, measure=measure, **settings)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    st.integers(0, 2**16),
    st.integers(0, 2),
    st.sampled_from(["pooled", "thumbnail", "native"]),
    st.booleans(),
)
@pytest.mark.long
def test_a_scale_that_coincides_everywhere_changes_nothing(seed, column, family, in_flops):
    # Three scales and the copy: the cascade then searches as many thresholds in both.
    splits, estimates = [], []
    for split in ("calibration", "test"):
        table = make_outcomes(split, 12, seed=seed)
        vision = np.full(3, 20) if family == "pooled" else np.array([2, 8, 50])
        arrays = {name: getattr(table, name)[:, :3] for name in ARRAYS}
        estimates.append(estimate_outcomes(table)[:, :3])
        table = dataclasses.replace(
            table, scales=table.scales[:3], answer=[row[:3] for row in table.answer], **arrays
        )
        flops = np.tile(np.int64(1e9) * vision, (len(table), 1))
        splits.append(dataclasses.replace(table, vision_flops=flops, family=family))
    estimates[1] = estimates[1][: len(splits[1])]
    measure = count_flops({"informed": 0.5}, ["informed"]) if in_flops else TOKENS
    once = compare(splits, estimates, measure)
    twice = compare(
        [repeat_scale(table, column) for table in splits],
        [np.insert(values, column + 1, values[:, column], axis=1) for values in estimates],
        measure,
    )

    def repeat(values):
        return np.insert(values, column + 1, values[..., column], axis=-1)

    for key, estimate in once.metrics.items():
        by_scale = key.policy is Bound.FIXED or key.metric in (brier, calibration_error)
        for end in ("value", "low", "high"):
            expected, found = getattr(estimate, end), getattr(twice.metrics[key], end)
            np.testing.assert_allclose(
                found, repeat(expected) if by_scale else expected, atol=1e-9, err_msg=str(key)
            )
    assert once.metrics.keys() == twice.metrics.keys()
    np.testing.assert_allclose(twice.oracle.cost, once.oracle.cost)
    np.testing.assert_allclose(twice.oracle.score, once.oracle.score)
    np.testing.assert_allclose(twice.budgets, once.budgets)
    np.testing.assert_array_equal(twice.mix, once.mix + (once.mix > column))
    assert twice.coinciding.tolist() == np.eye(4)[column + 1].tolist()
    for name, oracle in once.noise_free.items():
        np.testing.assert_allclose(twice.noise_free[name].gap.value, oracle.gap.value, atol=1e-9)
        np.testing.assert_allclose(twice.noise_free[name].cost.value, oracle.cost.value)
    for first, second in zip(once.policies, twice.policies, strict=True):
        np.testing.assert_allclose(second.trace.cost, first.trace.cost)
        np.testing.assert_allclose(second.trace.score, first.trace.score)
        # No answer is counted at the copy: neither as chosen nor as needed.
        np.testing.assert_allclose(np.delete(second.chosen, column + 1, axis=1), first.chosen, atol=1e-12)
        assert (second.chosen[:, column + 1] == 0).all()
        confusion = second.default.confusion
        assert not confusion[column + 1].any() and not confusion[:, column + 1].any()
        assert second.default.is_best_fixed == first.default.is_best_fixed
        without = np.delete(np.delete(confusion, column + 1, axis=0), column + 1, axis=1)
        np.testing.assert_array_equal(without, first.default.confusion)


def test_needs_and_guarantees_do_not_change_either():
    calibration, test = make_outcomes("calibration", 60), make_outcomes("test", 60)
    estimates = estimate_outcomes(calibration), estimate_outcomes(test)
    longer = [repeat_scale(table, 3) for table in (calibration, test)]
    # The finest scale is named otherwise; the price is in the same tokens.
    longer = [dataclasses.replace(table, scales=(1, 9, 36, 100, 144)) for table in longer]
    more = [np.insert(values, 4, values[:, 3], axis=1) for values in estimates]
    settings: dict[str, Any] = {"alpha": 0.1, "delta": 0.1}
    once, twice = (
        find_guarantee(values, table, **settings)
        for values, table in ((estimates[0], calibration), (more[0], longer[0]))
    )
    assert once == twice and once.price is not None
    bootstrap = Bootstrap(20, 0.9)
    first, second = (
        apply_guarantee(once, values, table, bootstrap)
        for values, table in ((estimates[1], test), (more[1], longer[1]))
    )
    assert (first.cost.value, first.drop.value) == (second.cost.value, second.drop.value)
    for need, other in zip(tabulate_needs(test), tabulate_needs(longer[1]), strict=True):
        assert (need.name, need.column) == (other.name, other.column)


@pytest.fixture(scope="module")
def merged():
    """Splits in which the two finest scales coincide on every third image, four questions each."""
    splits = [make_outcomes("calibration", 45), make_outcomes("test", 45)]
    return [merge_scales(table, 2, np.arange(len(table)) // 4 % 3 == 0) for table in splits]


def test_the_finest_scale_is_the_one_it_coincides_with(merged):
    ones = [np.tile([0.1, 0.2, 0.3, 0.9], (len(table), 1)) for table in merged]
    always = OperatingPoint(price=0, unit=144, cost=1, score=1)
    comparison = compare(merged, ones, cascades=False, default=always)
    informed = comparison.find("informed")
    # At a price of 0 it always takes the finest scale, which on a third of the samples is the next coarser
    # one: answers there are counted as those of the coarser scale, and are still those of the best fixed one.
    np.testing.assert_allclose(informed.chosen[-1], [0, 0, 1 / 3, 2 / 3])
    assert comparison.coinciding.tolist() == [0, 0, 0, pytest.approx(1 / 3)]
    default = informed.default
    assert comparison.best_fixed == 3 and default.is_best_fixed
    np.testing.assert_array_equal(default.choice, np.where(np.arange(180) // 4 % 3 == 0, 2, 3))
    assert "informed always uses scale 144, the best on calibration" in write_default(comparison)


def test_sampled_answers_of_coinciding_scales_are_one(merged):
    """Luck at a scale that coincides is not luck to choose by: only the coarser one of the two counts."""
    rng = np.random.default_rng(0)
    score = rng.integers(0, 2, (3, len(merged[1]), 4)).astype(float)
    lucky, rows = score.copy(), np.arange(len(merged[1]))
    lucky[:, rows // 4 % 3 == 0, 3] = 1
    settings: dict[str, Any] = {"bootstrap": Bootstrap(5), "grid": Grid(9)}
    oracles = [
        list_noise_free(merged[1], ScoredSamples.of(merged[1]).cost, Resampled(rows, sampled), **settings)
        for sampled in (score, lucky)
    ]
    first, second = (oracle["resampled"] for oracle in oracles)
    np.testing.assert_array_equal(first.score.value, second.score.value)
    np.testing.assert_array_equal(first.fixed_score.value, second.fixed_score.value)


def test_no_row_of_savings_is_there_twice():
    splits = [repeat_scale(make_outcomes(split, 12), 3) for split in ("calibration", "test")]
    estimates = [np.insert(estimate_outcomes(table), 4, 0.5, axis=1) for table in splits]
    comparison = compare(splits, estimates, cascades=False)
    assert comparison.best_fixed == 3
    tables = {table.name: table for table in list_tables(Findings(comparison))}
    assert {row[1] for row in tables["savings"].rows} == {"finest (145)"}


def test_the_report_says_how_often_scales_coincide(merged, tmp_path):
    estimates = [estimate_outcomes(table) for table in merged]
    comparison = compare(merged, estimates)
    findings = Findings(comparison)
    tables = {table.name: table for table in list_tables(findings)}
    assert tables["coinciding"].rows == (
        ("scale 9", "scale 1", "0.0%"),
        ("scale 36", "scale 9", "0.0%"),
        ("scale 144", "scale 36", "33.3%"),
    )
    sentence = (
        "Scales that coincide with the next coarser one count as one scale: 144 on 33.3% of the questions."
    )
    assert sentence in write_sentences(findings)
    write_report(
        tmp_path / "report.html",
        findings,
        merged[1],
        estimates[1],
        title="title",
        figures=Figures(b""),
        gallery=Gallery(lambda image_id: Image.new("RGB", (8, 8)), per_category=1),
        provenance=Provenance("command", "config", "now"),
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sentence in page and tables["coinciding"].caption in page
    content = collect_metrics(comparison, merged[1], task="task", backbone="backbone")
    assert [row["coinciding"] for row in content["fixed"]] == [0, 0, 0, 0.333333]
    plain = make_outcomes("calibration", 12), make_outcomes("test", 12)
    without = compare(plain, [estimate_outcomes(table) for table in plain])
    assert "coinciding" not in {table.name for table in list_tables(Findings(without))}
    assert not any("coincide" in text for text in write_sentences(Findings(without)))
    content = collect_metrics(without, plain[1], task="task", backbone="backbone")
    assert "coinciding" not in content["fixed"][0]


def test_sunk_vision_is_in_the_front_and_in_the_table_of_parts():
    splits = [make_outcomes("calibration", 20), make_outcomes("test", 20)]
    native = [
        dataclasses.replace(
            table,
            vision_flops=np.tile(np.int64(1e9) * np.array([2, 8, 30, 90]), (len(table), 1)),
            family="native",
        )
        for table in splits
    ]
    estimates = [estimate_outcomes(table) for table in native]
    flops = count_flops({}, ["informed"])
    default = OperatingPoint(price=1.5, unit=144, cost=1, score=1)
    comparison, free = (
        compare(native, estimates, measure, default=default) for measure in (flops, count_flops({}))
    )
    paid, unpaid = (found.find("informed") for found in (comparison, free))
    answer = splits[1].visual_tokens + np.array([2, 8, 30, 90])
    choice = paid.default.choice
    assert paid[default_cost].value == pytest.approx(
        answer[np.arange(80), choice].mean() + 2 * (choice > 0).mean()
    )
    assert 0 < (choice > 0).mean() < 1
    # The cheapest point, at which every sample gets the coarsest scale, costs as much as without.
    assert paid.trace.cost[-1] == pytest.approx(unpaid.trace.cost[-1]) == pytest.approx(3)
    assert comparison.find("opposite").trace.cost == pytest.approx(free.find("opposite").trace.cost)
    parts = tabulate_parts(comparison, flops.mean_parts(native[1]))
    assert parts.header == ("", "vision", "prefill", "vision for predictor", "predictor", "answer")
    assert parts.rows[0] == ("scale 1", "2", "1", "0", "", "3")
    assert parts.rows[3] == ("scale 144", "90", "144", "2", "", "234")
    assert parts.caption.endswith("which is added to the answers of informed")


def test_milliseconds_of_a_coinciding_scale_are_not_paid_again(merged):
    """Means of timed pictures and shares of scales, against costs sample by sample."""
    timings = Timings(np.array([2.0, 4.0]), np.array([[1.0, 2, 5, 11], [3, 4, 7, 13]]), {})
    estimates = [estimate_outcomes(table) for table in merged]
    cascade = compare(merged, estimates, count_milliseconds(timings)).find("cascade")
    kept = np.searchsorted(cascade.trace.price, cascade.front.price)
    np.testing.assert_allclose(cascade.front.cost, cascade.trace.cost[kept])


@pytest.mark.parametrize("family", ["pooled", "thumbnail", "native"])
@pytest.mark.parametrize("policy", ["reads", "reads not"])
def test_mean_milliseconds_are_those_of_the_paths(family, policy):
    """The mean that is reported against the costs of samples, which choose the operating points."""
    table = of_family(family, (9, 9, 36), (4, 4, 20), (9, 9, 36))
    vision = np.array([4.0, 4.0]) if family == "pooled" else np.array([[4.0, 4.0, 20.0]] * 2)
    timings = Timings(vision, np.array([[1.0, 1.0, 36.0]] * 2), dict.fromkeys(["reads"], np.zeros(2)))
    timings = timings.with_names({"reads": "reads"}, ["reads"], family=family)
    samples = ScoredSamples.of(table, count_milliseconds(timings), policy)
    paths = Paths.escalating(3)
    cost, score = paths.cost(samples), paths.score(samples.score)
    for number in range(cost.shape[1]):
        means = PolicyMeans(np.zeros(len(table), dtype=int), timed=True, repeats=samples.repeats)
        means.add_point("path", np.full(len(table), number), paths, cost, score, policy)
        found = means(np.ones((1, 1)), timings.means())["path"][0]
        assert found.item() == pytest.approx(cost[:, number].mean())


@pytest.mark.parametrize("fit", [Cascade.fit, Hybrid.fit])
def test_a_fitted_cascade_costs_what_its_paths_cost(merged, fit):
    """Sums over the paths as evaluation has them, against the sums of the search."""
    for table in merged:
        samples = ScoredSamples.of(table)
        estimates = estimate_outcomes(table) if fit == Hybrid.fit else None
        fitted = fit(samples.confidence, samples.score, samples.cost, estimates, 40)
        first, last = fitted.escalate(samples.confidence, samples.cost, estimates)
        paths, rows = Paths.escalating(4), np.arange(len(table))
        numbers = paths.find(first, last)
        np.testing.assert_allclose(paths.cost(samples)[rows, numbers].mean(axis=1), fitted.cost)
        np.testing.assert_allclose(paths.score(samples.score)[rows, numbers].mean(axis=1), fitted.score)
