"""Fixed scales of other backbones in a comparison, on the same test samples."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import Timings, count_flops, count_milliseconds
from experiments.evaluation.matching import match_all_samples, match_samples
from experiments.evaluation.metric_table import Ladder
from experiments.evaluation.metrics import mean_to_mix
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.evaluation_tables import tabulate_ladders, tabulate_scores, tabulate_tests
from experiments.reporting.front_plot import Line, plot_comparison
from experiments.results.metrics_json import collect_metrics
from predictor.policy.front import upper_hull
from tests.experiments.evaluation.synthetic import SCALES, estimate_outcomes, make_outcomes

BY_SCALE = ("score", "nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")


@pytest.fixture(scope="module")
def splits():
    return make_outcomes("calibration", 60), make_outcomes("test", 80)


def compare(splits, ladders, **settings):
    calibration, test = splits
    estimates = estimate_outcomes(calibration), estimate_outcomes(test)
    policies = [PredictorPolicy(name, *estimates) for name in ("informed", "other")]
    return compare_policies(calibration, test, policies, ladders=ladders, bootstrap=Bootstrap(60), **settings)


def worsen(test):
    """The same questions, answered by a backbone of three scales that is wrong in every third answer."""
    kept = {name: getattr(test, name)[:, [0, 2, 3]] for name in BY_SCALE}
    kept["score"][::3] = 0
    answers = [[answer[0], answer[2], answer[3]] for answer in test.answer]
    return replace(test, scales=(1, 36, 144), answer=answers, **kept)


def test_the_ladder_of_the_backbone_itself_is_the_mix(splits):
    comparison = compare(splits, {"same": splits[1]})
    (ladder,) = comparison.ladders
    own = comparison.find("informed")[mean_to_mix]
    for name in ("value", "low", "high"):
        assert float(getattr(ladder.difference.mean, name)) == pytest.approx(float(getattr(own, name)))
    np.testing.assert_array_equal(ladder.cost.value, comparison.fixed_cost.value)
    np.testing.assert_array_equal(ladder.score.low, comparison.fixed_score.low)
    assert ladder.mix.tolist() == comparison.mix.tolist() and ladder.scales == SCALES


def test_the_first_policy_minus_another_ladder_by_the_slow_way(splits):
    comparison = compare(splits, {"worse": worsen(splits[1])})
    (ladder,) = comparison.ladders
    informed = comparison.find("informed")
    test = worsen(splits[1])
    cost, score = test.visual_tokens.mean(axis=0), test.score.mean(axis=0, dtype=float)
    hull = upper_hull(cost, score)
    own = np.interp(informed.cost, informed.front.cost, informed.front.score)
    log_budget = np.log(comparison.budgets)
    differences = own - np.interp(informed.cost, cost[hull], score[hull])
    mean = np.trapezoid(differences, log_budget) / (log_budget[-1] - log_budget[0])
    assert float(ladder.difference.mean.value) == pytest.approx(mean)
    assert ladder.scales == (1, 36, 144) and ladder.difference.label == "informed - mix of worse"


def test_budgets_below_the_cheapest_scale_of_another_backbone_do_not_count(splits):
    """It has no scale below 36 tokens, and scores at each of its scales as the backbone does."""
    test = splits[1]
    kept = {name: getattr(test, name)[:, 2:] for name in BY_SCALE}
    finer = replace(test, scales=SCALES[2:], answer=[answer[2:] for answer in test.answer], **kept)
    comparison = compare(splits, {"finer": finer})
    (ladder,) = comparison.ladders
    informed = comparison.find("informed")
    is_met = informed.cost >= 36
    assert 0 < is_met.sum() < len(is_met) and ladder.lowest_cost == informed.cost[is_met].min()
    fixed = test.score[:, 2:].mean(axis=0, dtype=float)
    own = np.interp(informed.cost, informed.front.cost, informed.front.score)[is_met]
    differences = own - np.interp(informed.cost[is_met], SCALES[2:], fixed)
    expected = np.trapezoid(differences) / (len(differences) - 1)
    assert float(ladder.difference.mean.value) == pytest.approx(expected)
    # It has one budget at most above the finest scale of the backbone.
    dear = replace(finer, visual_tokens=finer.visual_tokens * 100)
    (ladder,) = compare(splits, {"dear": dear}).ladders
    assert ladder.lowest_cost is None and np.isnan(ladder.difference.mean.value)
    assert tabulate_ladders([compare(splits, {"dear": dear})]).rows == (("mix of dear", "-", "-", "-"),)


def test_other_samples_are_refused(splits):
    with pytest.raises(ValueError, match="other has other samples, or the same in another order"):
        compare(splits, {"other": splits[1].select(np.arange(len(splits[1]))[::-1])})


def test_the_tests_of_ladders_are_corrected_with_all_others(splits):
    comparison = compare(splits, {"same": splits[1], "worse": worsen(splits[1])})
    seconds = [difference.second for difference in comparison.differences]
    assert seconds[-2:] == [Ladder("same"), Ladder("worse")] and len(seconds) == 5
    last = comparison.differences[-1]
    assert last.adjusted_floor == pytest.approx(5 * last.floor)
    alone = compare(splits, {})
    assert not alone.ladders and len(alone.differences) == 3
    assert alone.find("informed")[mean_to_mix].low == comparison.find("informed")[mean_to_mix].low


def test_other_ladders_are_in_tables_plot_and_metrics(splits):
    comparison = compare(splits, {"worse": worsen(splits[1])})
    vision = [
        replace(table, vision_flops=np.full(table.score.shape, 10**9))
        for table in (*splits, worsen(splits[1]))
    ]
    flops = compare(vision[:2], {"worse": vision[2]}, measure=count_flops({}))
    table = tabulate_ladders([comparison, flops])
    assert table.header == (
        "minus",
        *("equal tokens", "from", "p (Holm)"),
        *("equal GFLOPs", "from", "p (Holm)"),
    )
    assert [row[0] for row in table.rows] == ["mix of worse"]
    assert "worse, scale 36" in str(tabulate_scores(comparison))
    assert "informed - mix of worse" in str(tabulate_tests(comparison))
    labels = [element.label for element in plot_comparison(comparison).upper if isinstance(element, Line)]
    assert "mix of worse" in labels
    metrics = collect_metrics(comparison, splits[1], task="synthetic", backbone="none")
    assert metrics["differences"][-1]["second"] == {"ladder": "worse"}
    assert [entry["scale"] for entry in metrics["ladders"]["worse"]["fixed"]] == [1, 36, 144]
    assert metrics["ladders"]["worse"]["difference"] == metrics["differences"][-1]["mean"]
    assert "ladders" not in collect_metrics(compare(splits, {}), splits[1], task="t", backbone="b")
    kinds = {(row["policy"], row["kind"]) for row in comparison.metrics.to_arrow("tokens").to_pylist()}
    assert ("worse", "ladder") in kinds


def test_milliseconds_of_other_backbones_are_not_known(splits):
    common = np.random.default_rng(0).lognormal(0, 0.3, 12)
    overhead = {"informed": common, "other": common}
    timings = Timings(8 * common, common[:, None] * [4, 6, 9, 20], overhead)
    comparison = compare(splits, {"same": splits[1]}, measure=count_milliseconds(timings))
    assert not comparison.ladders and len(comparison.differences) == 3


def test_answers_are_matched_by_question(splits):
    test = splits[1]
    shuffled = test.select(np.random.default_rng(0).permutation(len(test)))
    assert list(match_all_samples(test, shuffled, "other").sample_id) == list(test.sample_id)
    rows, matched = match_samples(test, shuffled.select(np.arange(40)), "other")
    assert list(test.sample_id[rows]) == list(matched.sample_id) and len(rows) == 40
    with pytest.raises(ValueError, match="other answered only 40 of the 320 test questions: label the task"):
        match_all_samples(test, shuffled.select(np.arange(40)), "other")
    with pytest.raises(ValueError, match="labels of other have other questions under the same ids"):
        match_samples(test, replace(test, question=test.question[::-1]), "other")
