import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.metrics import (
    gap_share,
    mean_gap_share,
    mean_to_mix,
    mean_to_reference,
    score_at_budgets,
    smallest_right,
    to_mix,
    to_reference,
    too_coarse,
    too_fine,
)
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.schedules import ImageMeans, Schedule
from experiments.evaluation.statistics import Bootstrap, draw_weights, number_images
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.findings import Findings, write_default, write_headline
from experiments.results.metrics_json import SCHEMA_VERSION, collect_metrics, to_json, write_metrics
from predictor.policy.front import choose, sweep, upper_hull
from predictor.policy.front import score_at_budgets as find_scores
from predictor.policy.pricing import choose_price
from tests.experiments.evaluation.synthetic import SCALES, estimate_outcomes, make_outcomes

OUTCOMES = ("score", "nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")


def compare(calibration, test, *, estimators=None, **settings):
    estimators = estimators or {
        "informed": estimate_outcomes,
        "question_only": lambda table: estimate_outcomes(table, see_image=False),
    }
    contenders = []
    for name, rule in estimators.items():
        first, second = rule(calibration), rule(test)
        default = choose_price(first, calibration.visual_tokens, calibration.score)
        contenders.append(PredictorPolicy(name, first, second, default))
    return compare_policies(calibration, test, contenders, **{"bootstrap": Bootstrap(60), **settings})


@pytest.fixture(scope="module")
def splits():
    return make_outcomes("calibration", 120), make_outcomes("test", 150)


@pytest.fixture(scope="module")
def comparison(splits):
    return compare(*splits)


def test_image_means_are_weighted_means_of_rows():
    rng = np.random.default_rng(0)
    image = np.array([2, 0, 0, 1, 2, 2])
    choices, values = rng.integers(0, 3, (5, 6)), rng.random((6, 3))
    weights = np.array([[1.0, 1, 1], [0, 3, 0], [2, 0, 1]])
    expected = [
        [np.average(values[np.arange(6), chosen], weights=row[image]) for chosen in choices]
        for row in weights
    ]
    means = ImageMeans(image)
    means.add("policy", Schedule.of(choices), values, 2 * values)
    once, twice = means(weights)["policy"]
    assert once == pytest.approx(np.array(expected)) and twice == pytest.approx(2 * np.array(expected))


def test_images_are_drawn_with_replacement_and_reproducibly():
    weights = np.concatenate(list(draw_weights(50, 300, seed=1)))
    assert weights.shape == (300, 50) and (weights.sum(axis=1) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)
    np.testing.assert_array_equal(weights, np.concatenate(list(draw_weights(50, 300, seed=1))))
    assert (weights != np.concatenate(list(draw_weights(50, 300, seed=2)))).any()
    # Fewer resamples are the first of the many.
    np.testing.assert_array_equal(weights[:7], np.concatenate(list(draw_weights(50, 7, seed=1))))


def test_interval_of_a_mean_is_that_of_its_standard_error():
    """Questions on one image are copies of each other here: drawing rows would halve the interval."""
    values = np.repeat(np.random.default_rng(0).normal(size=400), 4)
    image = np.repeat(np.arange(400), 4)
    means = ImageMeans(image)
    means.add("mean", Schedule.of(np.zeros((1, 1600))), values[:, None])
    found = Bootstrap(4000).estimate(lambda weights: {"mean": means(weights)["mean"][0][:, 0]}, 400)["mean"]
    error = values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(
        values.mean() + np.array([-1.96, 1.96]) * error, abs=error / 8
    )


def test_bootstrap_needs_resamples():
    with pytest.raises(ValueError, match="num_resamples"):
        Bootstrap(0)
    with pytest.raises(ValueError, match="an interval needs confidence"):
        Bootstrap(confidence=2)


def test_fixed_scales_and_oracles_are_means_over_samples(comparison, splits):
    test = splits[1]
    assert comparison.fixed_cost.value.tolist() == list(SCALES)
    assert comparison.fixed_score.value == pytest.approx(test.score.mean(axis=0, dtype=float))
    best = test.score.max(axis=1)
    fails = best == 0
    cost = np.where(fails, 0, test.visual_tokens[np.arange(len(test)), test.score.argmax(axis=1)])
    assert comparison.rule("coarsest")[1].value == pytest.approx(best.mean(dtype=float))
    assert comparison.rule("coarsest")[0].value == pytest.approx((cost + fails).mean())
    assert comparison.rule("finest")[0].value == pytest.approx((cost + 144 * fails).mean())


def test_matched_tokens_by_the_slow_way(comparison, splits):
    """Each budget, worked out literally: two calibration prices, their chances, then the test samples."""
    test = splits[1]
    estimates, cost = estimate_outcomes(test), test.visual_tokens.astype(float)
    figures, reference = comparison.find("informed"), comparison.find("question_only")
    oracle = sweep(test.score, cost, test.score)
    rows = np.arange(len(test))
    for k, budget in enumerate(comparison.budgets):
        policy = figures.policy
        above = int(np.searchsorted(policy.cost, budget - 1e-9).clip(max=len(policy.cost) - 1))
        below = max(above - 1, 0)
        gap = policy.cost[above] - policy.cost[below]
        chance = min(1.0, (budget - policy.cost[below]) / gap) if gap else 1.0
        points = []
        for price in (policy.price[below], policy.price[above]):
            chosen = choose(estimates, cost, price, unit=policy.unit)
            points.append((cost[rows, chosen].mean(), test.score[rows, chosen].mean(dtype=float)))
        (low_cost, low_score), (high_cost, high_score) = points
        spent = low_cost + chance * (high_cost - low_cost)
        score = low_score + chance * (high_score - low_score)
        fixed = test.score.mean(axis=0, dtype=float)
        hull = upper_hull(SCALES, fixed)
        mix = np.interp(spent, np.array(SCALES)[hull], fixed[hull])
        assert figures.cost[k] == pytest.approx(spent)
        assert figures[score_at_budgets].value[k] == pytest.approx(score)
        assert figures[to_mix].value[k] == pytest.approx(score - mix)
        other = np.interp(spent, reference.front.cost, reference.front.score)
        assert figures[to_reference].value[k] == pytest.approx(score - other)
        gap = find_scores(oracle, [spent])[0] - mix
        if gap > 1e-6:
            assert figures[gap_share].value[k] == pytest.approx((score - mix) / gap)
    log_budget = np.log(comparison.budgets)
    mean = np.trapezoid(figures[to_mix].value, log_budget) / (log_budget[-1] - log_budget[0])
    assert figures[mean_to_mix].value == pytest.approx(mean)


def test_resamples_redo_everything(splits):
    """The interval's ends equal those of figures computed afresh on each resampled table."""
    calibration, test = splits
    found = compare(calibration, test, bootstrap=Bootstrap(8, seed=5)).find("informed")
    image = number_images(test.image_id)
    fresh = []
    for weights in np.concatenate(list(draw_weights(image.max() + 1, 8, seed=5))).astype(int):
        rows = np.repeat(np.arange(len(test)), weights[image])
        resampled = _take_with_repeats(test, rows)
        fresh.append(compare(calibration, resampled, bootstrap=Bootstrap(1)).find("informed"))
    for metric in (mean_to_mix, mean_to_reference, mean_gap_share):
        drawn = [figures[metric].value for figures in fresh]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert [found[metric].low, found[metric].high] == pytest.approx([low, high])


def _take_with_repeats(table, rows):
    """Rows of a table, with repeats under new sample ids."""
    parts = {name: getattr(table, name)[rows] for name in ("image_id", "task", "kind", "question", "metric")}
    lists = {
        name: [getattr(table, name)[row] for row in rows]
        for name in ("references", "attributes", "question_ids", "answer")
    }
    arrays = {name: getattr(table, name)[rows] for name in OUTCOMES}
    ids = np.array([f"{table.sample_id[row]}/{i}" for i, row in enumerate(rows)], dtype=object)
    return replace(table, sample_id=ids, **parts, **lists, **arrays)


def test_informed_beats_mix_and_question_only_and_noise_does_not(splits):
    noise = np.random.default_rng(3)
    found = compare(
        *splits,
        estimators={
            "informed": estimate_outcomes,
            "question_only": lambda table: estimate_outcomes(table, see_image=False),
            "noise": lambda table: noise.random(table.score.shape),
            "outcomes": lambda table: table.score.astype(float),
        },
        bootstrap=Bootstrap(200),
    )
    informed, noise_figures, outcomes = map(found.find, ("informed", "noise", "outcomes"))
    assert informed[mean_to_mix].low > 0 and informed[mean_to_reference].low > 0
    assert noise_figures[mean_to_mix].value < 0.01
    # What is handed the outcomes is the budgeted oracle.
    assert outcomes[mean_gap_share].value == pytest.approx(1, abs=0.02)
    assert (informed[score_at_budgets].low <= informed[score_at_budgets].value).all() and (
        informed[score_at_budgets].value <= informed[score_at_budgets].high
    ).all()
    assert found.find("question_only").find(to_reference) is None


def test_default_point_counts_choices_against_the_smallest_right_scale(comparison, splits):
    informed = comparison.find("informed")
    default = informed.default
    smallest, right = splits[1].score.argmax(axis=1), splits[1].score.max(axis=1) > 0
    for found, expected in (
        (informed[smallest_right], default.choice == smallest),
        (informed[too_coarse], default.choice < smallest),
        (informed[too_fine], default.choice > smallest),
    ):
        assert found.value == pytest.approx(expected[right].mean())
        assert found.low <= found.value <= found.high
    assert default.confusion.sum() == len(right) and default.confusion[-1].sum() == (~right).sum()
    assert np.trace(default.confusion) / right.sum() == pytest.approx(informed[smallest_right].value)


def test_order_of_samples_changes_nothing(splits):
    calibration, test = splits
    shuffled = test.select(np.random.default_rng(0).permutation(len(test)))
    first, second = compare(calibration, test), compare(calibration, shuffled)
    for metric in (mean_to_mix, mean_to_reference, mean_gap_share):
        one, other = first.find("informed")[metric], second.find("informed")[metric]
        for bound in ("value", "low", "high"):
            assert getattr(one, bound) == pytest.approx(getattr(other, bound))


@pytest.mark.parametrize("case", ["one sample", "all right", "all wrong", "equal costs", "one scale"])
def test_degenerate_tables(case, tmp_path):
    calibration, test = make_outcomes("calibration", 10), make_outcomes("test", 10)
    if case == "one sample":
        calibration, test = calibration.select([0]), test.select([0])
    if case in ("all right", "all wrong"):
        calibration, test = (
            replace(table, score=np.full_like(table.score, case == "all right"))
            for table in (calibration, test)
        )
    if case == "equal costs":
        calibration, test = (
            replace(table, visual_tokens=np.full_like(table.visual_tokens, 7))
            for table in (calibration, test)
        )
    if case == "one scale":
        calibration, test = (
            replace(
                table,
                scales=(36,),
                answer=[row[:1] for row in table.answer],
                **{name: getattr(table, name)[:, 2:3] for name in OUTCOMES},
            )
            for table in (calibration, test)
        )
    found = compare(
        calibration,
        test,
        estimators={"informed": lambda table: estimate_outcomes(table)[:, : len(table.scales)]},
    )
    assert found.policies[0][mean_to_mix].value == pytest.approx(0, abs=1)
    write_metrics(tmp_path / "metrics.json", collect_metrics(found, test, task="t", backbone="b"))
    assert list_tables(Findings(found)) and write_headline(found) and write_default(found)


def test_an_image_in_both_splits_is_refused(splits):
    with pytest.raises(ValueError, match="in calibration and in test"):
        compare(splits[0], splits[0])


def test_metrics_are_the_same_bytes_again(splits, tmp_path):
    texts = []
    for number in range(2):
        metrics = collect_metrics(compare(*splits), splits[1], task="synthetic", backbone="none")
        write_metrics(tmp_path / f"{number}.json", metrics)
        texts.append((tmp_path / f"{number}.json").read_bytes())
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0].decode()


def test_small_numbers_keep_six_digits():
    """Such as costs in dollars; the noise of sums is rounded away."""
    assert to_json([0.123456789, 4.19123456e-6, -2.2e-8, -8.5e-16, 0.0]) == [
        0.123457,
        4.19123e-6,
        -2.2e-8,
        0,
        0,
    ]
    assert to_json(float("nan")) is None


def test_metrics_say_what_the_schema_promises(comparison, splits):
    metrics = collect_metrics(comparison, splits[1], task="synthetic", backbone="none")
    json.dumps(metrics, allow_nan=False)
    assert metrics["schema_version"] == SCHEMA_VERSION
    assert [row["scale"] for row in metrics["fixed"]] == list(SCALES)
    assert list(metrics["predictors"]) == ["informed", "question_only"]
    informed = metrics["predictors"]["informed"]
    assert informed["mean_to_mix"].keys() == {"value", "low", "high"}
    assert informed["merits"].keys() == {
        "average_quality",
        "average_gap_recovered",
        "hypervolume",
        "call_shares",
    }
    assert [(row["baseline"], row["margin"]) for row in informed["non_inferiority"]] == [
        (baseline, margin) for baseline in ("finest", "best fixed") for margin in (0, 0.005, 0.01)
    ]
    assert np.sum(informed["reliability"]["count"], axis=1).tolist() == [len(splits[1])] * len(SCALES)
    assert np.sum(informed["default"]["confusion"]) == len(splits[1])
    assert metrics["oracles"].keys() == {"authors", "honest", "stable"}
    assert [(row["first"], row["second"]) for row in metrics["differences"]] == [
        ("informed", {"bound": "mix"}),
        ("question_only", {"bound": "mix"}),
        ("informed", "question_only"),
    ]
    assert metrics["predictors"]["question_only"]["mean_to_reference"] is None
    assert informed["at_budgets"][0]["gap_share"] is None
    assert sum(informed["default"]["chosen"]) == pytest.approx(1, abs=1e-5)
    assert sum(kind["num_samples"] for kind in metrics["kinds"].values()) == metrics["split"]["num_samples"]
