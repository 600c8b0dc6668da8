"""Costs counted in other units, with their parts and with what the predictor adds."""

import dataclasses

import numpy as np
import pytest

from experiments.evaluation.costs import TOKENS, CostMeasure, Part, Timings, count_flops, list_cost_measures
from experiments.evaluation.metrics import default_cost, mean_gap_share, mean_to_mix, to_mix
from experiments.evaluation.policies import Paths, ScoredSamples
from experiments.reporting.evaluation_tables import list_tables, tabulate_costs
from experiments.reporting.findings import Findings
from experiments.results.metrics_json import collect_measure
from predictor.classical.baselines import Mix
from predictor.classical.question_only import QuestionOnly
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.evaluation.test_evaluate import compare
from tests.predictor.synthetic import make_labels


@pytest.fixture(scope="module")
def splits():
    return make_outcomes("calibration", 80), make_outcomes("test", 80)


def counted(factor=1.0, **own):
    return CostMeasure(
        "other", "units", "mean units", [Part("all", lambda table: factor * table.visual_tokens)], own
    )


def with_vision(table, gflops):
    """The table with FLOPs of the vision pass at every scale, `[num_scales]`."""
    return dataclasses.replace(table, vision_flops=np.tile(np.int64(1e9) * np.array(gflops), (len(table), 1)))


def test_another_unit_changes_costs_and_no_difference(splits):
    tokens, units = compare(*splits), compare(*splits, measure=counted(2.5))
    for first, second in zip(tokens.policies, units.policies, strict=True):
        assert second.cost == pytest.approx(2.5 * first.cost)
        assert second[to_mix].value == pytest.approx(first[to_mix].value)
        assert second[mean_gap_share].low == pytest.approx(first[mean_gap_share].low)
        # The price to use is one per visual token in any account.
        np.testing.assert_array_equal(second.default.choice, first.default.choice)
        assert second[default_cost].value == pytest.approx(2.5 * first[default_cost].value)


def test_what_choosing_costs_is_paid_with_every_answer(splits):
    free, paid = compare(*splits), compare(*splits, measure=counted(informed=3.0))
    informed, first = paid.find("informed"), free.find("informed")
    assert informed[default_cost].value == pytest.approx(first[default_cost].value + 3)
    assert informed.front.cost == pytest.approx(first.front.cost + 3)
    assert informed.trace.cost == pytest.approx(first.trace.cost + 3)
    # Budgets begin where the dearest predictor can meet them, and none is missed on calibration.
    assert paid.budgets[0] == pytest.approx(free.budgets[0] + 3)
    assert informed.cost[0] == pytest.approx(first.cost[0] + 3)
    # The same answers at a higher cost: less above the mix.
    assert informed[mean_to_mix].value < first[mean_to_mix].value
    assert paid.find("question_only")[default_cost].value == pytest.approx(
        free.find("question_only")[default_cost].value
    )


def test_a_predictor_that_costs_more_than_it_saves_is_below_the_mix(splits):
    dear = compare(*splits, measure=counted(informed=200.0)).find("informed")
    assert dear[mean_to_mix].high < 0


@pytest.fixture(scope="module")
def predictors():
    train, test = make_labels(40, 0, split="train"), make_labels(20, 1, split="test")
    return {"question_only": QuestionOnly().fit(train, test), "mix": Mix().fit(train, test)}


def test_flops_are_those_of_vision_prefill_and_predictor(predictors):
    """Prefill costs 1, 9 and 36 GFLOPs at the three scales, the vision pass 5 at each."""
    labels = make_labels(20, 1, split="test")
    outcomes = labels.outcomes
    starts_from = {"hybrid": "question_only"}
    tokens, flops = list_cost_measures(outcomes, predictors, labels.inputs, starts_from=starts_from)
    assert tokens is TOKENS and not tokens.overhead and len(tokens.parts) == 1
    assert flops.of(outcomes)[7].tolist() == [6, 14, 41]
    parts = {name: part.tolist() for name, part in flops.mean_parts(outcomes).items()}
    assert parts == {"vision": [5, 5, 5], "prefill": [1, 9, 36]}
    assert flops.shared_of(outcomes).tolist() == [5] * len(outcomes)
    question_only = predictors["question_only"].count_flops(labels.inputs) / 1e9
    assert flops.overhead == {"question_only": question_only, "mix": 0, "hybrid": question_only}
    assert question_only > 0


def test_the_vision_pass_is_paid_once_per_sample_where_one_serves_all_scales():
    """Two images of one and of four tiles; then a model that looks at every scale anew."""
    table = make_labels(2, 0, questions_per_image=1).outcomes
    tiles = dataclasses.replace(table, vision_flops=np.int64(1e9) * np.array([[5, 5, 5], [20, 20, 20]]))
    flops = count_flops({})
    samples = ScoredSamples.of(tiles, flops)
    ways = Paths.escalating(3)
    assert list(zip(ways.start, ways.stop, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    # Prefill is 1, 9, 36; the vision pass is added once.
    assert ways.cost(samples).tolist() == [
        [5 + 1, 5 + 10, 5 + 46, 5 + 9, 5 + 45, 5 + 36],
        [20 + 1, 20 + 10, 20 + 46, 20 + 9, 20 + 45, 20 + 36],
    ]
    native = dataclasses.replace(with_vision(table, [1, 4, 16]), family="native")
    assert flops.shared_of(native).tolist() == [0, 0]
    assert ways.cost(ScoredSamples.of(native, flops))[0].tolist() == [2, 15, 67, 13, 65, 52]


def test_labels_without_vision_flops_have_no_flops_and_one_line_says_why(predictors, caplog):
    labels = make_labels(20, 1, split="test")
    old = dataclasses.replace(labels.outcomes, vision_flops=None)
    assert list_cost_measures(old, predictors, labels.inputs) == [TOKENS]
    (record,) = caplog.records
    assert "lack FLOPs of the vision pass" in record.getMessage()
    assert "run `tokenscale label` again" in record.getMessage()


def test_milliseconds_are_means_whose_parts_add_up(predictors):
    """Three pictures, the last of which took longer: means, so medians are not enough."""
    labels = make_labels(20, 1, split="test")
    timings = Timings(
        vision=np.array([2.0, 2.0, 5.0]),
        answer=np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [4.0, 5.0, 13.0]]),
        overhead={
            "mix": np.array([0.0, 0.0, 0.3]),
            "question_only": np.array([1.0, 1.0, 4.0]),
            "not compared": np.array([1.0, 1.0, 1.0]),
        },
        batch_size=4,
    )
    accounts = list_cost_measures(
        labels.outcomes, predictors, labels.inputs, starts_from={"hybrid": "question_only"}, timings=timings
    )
    milliseconds = accounts[-1]
    assert milliseconds.of(labels.outcomes)[5].tolist() == pytest.approx([3 + 2, 3 + 3, 3 + 7])
    assert milliseconds.shared_of(labels.outcomes).tolist() == [3] * len(labels)
    assert milliseconds.overhead == pytest.approx({"mix": 0.1, "question_only": 2, "hybrid": 2})
    parts = {name: part.tolist() for name, part in milliseconds.mean_parts(labels.outcomes).items()}
    assert parts == {"vision": [3, 3, 3], "prefill and decode": pytest.approx([2, 3, 7])}
    assert "at batch size 4" in milliseconds.label
    assert milliseconds.timings is not None
    assert set(milliseconds.timings.overhead) == {"mix", "question_only", "hybrid"}


def test_resamples_draw_pictures_and_keep_parts_together():
    """Everything of a picture is a multiple of one number, so it is in every resample too."""
    took = np.array([1.0, 2.0, 4.0, 10.0])
    timings = Timings(took, took[:, None] * [2, 3], {"a": 5 * took})
    means = timings.resample(2000, seed=0)
    assert means.cost.shape == (2000, 2) and means.shared.shape == means.overhead["a"].shape == (2000,)
    np.testing.assert_allclose(means.cost, means.shared[:, None] * [3, 4])
    np.testing.assert_allclose(means.overhead["a"], 5 * means.shared)
    # A mean of four draws out of these four: variance 12.1875 / 4, all means between 1 and 10.
    assert means.shared.mean() == pytest.approx(4.25, abs=0.15)
    assert means.shared.var() == pytest.approx(12.1875 / 4, rel=0.1)
    assert 1 <= means.shared.min() < 1.5 and means.shared.max() <= 10
    again = timings.resample(2000, seed=0)
    np.testing.assert_array_equal(again.shared, means.shared)
    assert (timings.resample(2000, seed=1).shared != means.shared).any()
    assert timings.means().shared.tolist() == [4.25] and timings.means().cost.tolist() == [[12.75, 17]]


def test_intervals_of_noisy_timings_cover_the_true_mean():
    """Exponential times of mean 1: a 95% interval of resampled means covers it about as often."""
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        timings = Timings(random.exponential(size=48), np.zeros((48, 1)), {})
        low, high = np.quantile(timings.resample(400, seed).shared, [0.025, 0.975])
        covered += low <= 1 <= high
    assert 0.89 <= covered / 400 <= 0.98


def test_the_table_says_what_choosing_costs(splits):
    # Answers cost 1, 9, 36 and 144 GFLOPs at the four scales; choosing adds half a percent of the last.
    flops = CostMeasure(
        "flops",
        "GFLOPs",
        "mean GFLOPs",
        [Part("prefill", lambda table: table.prefill_flops / 1e9)],
        {"informed": 0.72},
    )
    other = compare(*splits, measure=flops)
    table = tabulate_costs([other])
    assert table.header[:3] == ("predictor", "overhead, GFLOPs", "of an answer at the finest scale")
    assert table.rows[0][:3] == ("informed", "0.72", "0.5%")
    content = collect_measure(other)
    assert content["fixed"] == pytest.approx([1, 9, 36, 144])
    assert content["predictors"]["informed"]["own"] == 0.72
    assert content["predictors"]["question_only"]["own"] == 0


def test_shares_are_of_the_whole_answer_and_its_parts_are_shown(splits):
    """With a vision pass of 56 GFLOPs an answer at the finest scale costs 200."""
    calibration, test = (with_vision(table, [56] * 4) for table in splits)
    flops = count_flops({"informed": 2.0})
    other = compare(calibration, test, measure=flops)
    findings = Findings(compare(calibration, test), [other], cost_parts={"flops": flops.mean_parts(test)})
    tables = {table.name: table for table in list_tables(findings)}
    assert tables["costs"].rows[0][:3] == ("informed", "2", "1%")
    parts = tables["parts_flops"]
    assert parts.header == ("", "vision", "prefill", "predictor", "answer")
    assert parts.rows[0] == ("scale 1", "56", "1", "", "57")
    assert parts.rows[3] == ("scale 144", "56", "144", "", "200")
    assert parts.rows[4] == ("overhead of informed", "", "", "2", "")


def test_a_vision_pass_per_scale_is_timed_per_scale_and_sunk_for_predictors_that_need_it():
    timings = Timings(
        vision=np.array([[1.0, 4.0], [3.0, 4.0]]),
        answer=np.array([[1.0, 2.0], [1.0, 2.0]]),
        overhead={"reads": np.array([0.5, 0.5]), "reads not": np.array([0.5, 0.5])},
    )
    names = {"reads": "reads", "hybrid": "reads", "reads not": "reads not"}
    means = timings.with_names(names, ["reads"]).means()
    assert means.cost.tolist() == [[3, 6]] and means.shared.tolist() == [0]
    tried = [np.array([[0.25]]), np.array([[0.75]])]
    expected = 0.5 + 0.25 * 3 + 0.75 * 6
    assert means.cost_of_policy(tried, tried[0], "reads not").item() == expected
    # Three quarters of the answers need the coarsest vision pass, 2 ms, beside their own.
    assert means.cost_of_policy(tried, tried[0], "reads").item() == expected + 0.75 * 2
    # A cascade that starts at the coarsest scale has paid it there.
    both = [np.array([[1.0]]), np.array([[0.75]])]
    assert means.cost_of_policy(both, both[0], "hybrid").item() == 0.5 + 3 + 0.75 * 6
    assert timings.family_fits("native") and not timings.family_fits("pooled")


def test_paths_over_a_ladder_of_24_scales_have_300_numbers():
    paths = Paths.escalating(24)
    assert paths.find(paths.start, paths.stop).tolist() == list(range(300))
