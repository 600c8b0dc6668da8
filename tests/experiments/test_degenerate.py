"""Comparisons of small and odd tables: no exception, no warning, no nan; values worked out by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.costs import CostMeasure, Part
from experiments.evaluation.fronts import Grid
from experiments.evaluation.metric_table import Bound, MetricTable, Predictor
from experiments.evaluation.metrics import (
    average_gap_recovered,
    average_quality,
    call_share,
    default_cost,
    hypervolume,
    mean_gap_share,
    mean_to_mix,
    smallest_right,
    to_mix,
)
from experiments.evaluation.policies import CascadePolicy, Policy, PredictorPolicy
from experiments.evaluation.statistics import Bootstrap, Estimate
from experiments.labels.resampled import Resampled
from experiments.results.metrics_json import collect_measure, collect_metrics
from experiments.results.resamples import collect_resamples, name_tensor
from m3_backbone.outcomes.table import OutcomeTable
from predictor.cascades.cascade import Cascade, pick_evenly
from predictor.cascades.hybrid import Hybrid
from predictor.policy.front import space_budgets
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

ARRAYS = ("score", "nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")
Change = Callable[[OutcomeTable], OutcomeTable]
Expected = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """How both splits, or one of them, are changed; how estimates come about; what `compare` is told."""

    both: Change = lambda table: table
    calibration: Change = lambda table: table
    test: Change = lambda table: table
    estimate: Callable[[OutcomeTable], np.ndarray] = lambda table: estimate_outcomes(table)
    settings: dict[str, Any] | None = None
    expected: Expected | None = None


def scores(rule: Callable[[np.ndarray], Any]) -> Change:
    return lambda table: replace(
        table, score=np.broadcast_to(rule(table.score), table.score.shape).astype("f4")
    )


def tokens(*costs: int) -> Change:
    return lambda table: replace(table, visual_tokens=np.tile(np.array(costs, np.int32), (len(table), 1)))


def arrays(table: OutcomeTable, kept: Sequence[int]) -> dict[str, Any]:
    return {name: getattr(table, name)[:, list(kept)] for name in ARRAYS}


def columns(*kept: int) -> Change:
    return lambda table: replace(
        table,
        scales=tuple(table.scales[column] for column in kept),
        answer=[[row[column] for column in kept] for row in table.answer],
        **arrays(table, kept),
    )


def texts(name: str, rule: Callable[[int], str | None]) -> Change:
    def change(table: OutcomeTable) -> OutcomeTable:
        column: Any = np.array([rule(number) for number in range(len(table))], dtype=object)
        return replace(table, **{name: column})

    return change


def rows(*kept: int) -> Change:
    return lambda table: table.select(list(kept))


def constant(value: float) -> Callable[[OutcomeTable], np.ndarray]:
    return lambda table: np.full(table.score.shape, value)


def of_columns(*kept: int) -> Callable[[OutcomeTable], np.ndarray]:
    return lambda table: np.tile(np.linspace(0.2, 0.8, len(kept)), (len(table), 1))


def take_turns(table: OutcomeTable) -> OutcomeTable:
    """Of every image another scale is the cheap one: each sample's cheapest is below every fixed scale."""
    cost = np.full(table.score.shape, 100, dtype=np.int32)
    cost[np.arange(len(table)), np.arange(len(table)) % len(table.scales)] = 1
    return replace(table, visual_tokens=cost)


def cost_of_image(table: OutcomeTable) -> OutcomeTable:
    image = np.unique(table.image_id.astype(str), return_inverse=True)[1]
    return replace(table, visual_tokens=np.tile(image[:, None] + 1, len(table.scales)).astype(np.int32))


def account(rule: Callable[[np.ndarray], np.ndarray], shared: float = 0.0, **more: Any) -> dict[str, Any]:
    def count(table: OutcomeTable) -> np.ndarray:
        return rule(np.ones(table.score.shape) * np.arange(1, len(table.scales) + 1))

    parts = [
        Part("once", lambda table: np.full(table.score.shape, shared), is_shared=True),
        Part("each", count),
    ]
    return {"measure": CostMeasure("other", "units", "units", parts, **more)}


NO_GAP: Expected = {
    "nothing_to_gain": True,
    "mean_to_mix": 0,
    "mean_gap_share": None,
    "oracle_gap": 0,
}
EQUAL: Expected = {
    "nothing_to_gain": True,
    "finer_scales_help": None,
    "average_quality": None,
    "average_gap_recovered": None,
}
FLAT: Expected = NO_GAP | {"finer_scales_help": False, "average_gap_recovered": None, "call_share": None}
INVERTED: Expected = {"average_quality": None, "average_gap_recovered": None, "call_share": None}

CASES = {
    "one sample": Case(rows(0)),
    "one question right at every scale": Case(
        calibration=rows(0), test=lambda table: scores(lambda s: 1)(table.select([0])), expected=FLAT
    ),
    "one question right at the finest scale alone": Case(
        scores(lambda s: [0, 0, 0, 1]),
        calibration=rows(0),
        test=rows(0),
        expected={
            "nothing_to_gain": True,
            "finer_scales_help": True,
            "oracle_gap": 0,
            "mean_gap_share": None,
        },
    ),
    "one test image": Case(test=rows(0, 1, 2, 3)),
    "one calibration image": Case(calibration=rows(0, 1, 2, 3)),
    "two test images": Case(test=rows(0, 1, 4, 5)),
    "one question type": Case(texts("kind", lambda n: "existence"), estimate=constant(0.5)),
    "no question types": Case(texts("kind", lambda n: None), estimate=constant(0.5)),
    "every question of its own type": Case(texts("kind", lambda n: f"type {n}"), estimate=constant(0.5)),
    "identical questions": Case(texts("question", lambda n: "what?")),
    "empty questions": Case(texts("question", lambda n: "")),
    # The mix is the cheapest scale, at 1 token of 144: what is right or wrong at once has no gap.
    "all wrong": Case(scores(lambda s: 0), expected=FLAT | {"hypervolume": 0, "smallest_right": None}),
    "all right": Case(
        scores(lambda s: 1),
        estimate=constant(0.5),
        expected=FLAT | {"average_quality": 1, "hypervolume": 143 / 144},
    ),
    "all scores 0.3": Case(scores(lambda s: 0.3), expected=FLAT | {"average_quality": 0.3}),
    "test alone all wrong": Case(test=scores(lambda s: 0), expected=FLAT | {"smallest_right": None}),
    "test alone all right": Case(test=scores(lambda s: 1), expected=FLAT),
    "calibration alone all wrong": Case(calibration=scores(lambda s: 0)),
    "calibration alone all right": Case(calibration=scores(lambda s: 1)),
    "all scales alike": Case(scores(lambda s: s[:, :1]), expected=FLAT),
    "coarser is better": Case(
        scores(lambda s: [1, 1, 0, 0]),
        expected=FLAT | {"average_quality": 1},
    ),
    "right at the finest scale alone": Case(
        scores(lambda s: [0, 0, 0, 1]),
        # The mix is the line from (1, 0) to (144, 1), and the oracle too.
        expected={
            "nothing_to_gain": True,
            "finer_scales_help": True,
            "mean_gap_share": None,
            "mix_quality": 0.5,
            "mix_call_share": 0.5,
        },
    ),
    "equal costs": Case(tokens(7, 7, 7, 7), expected=EQUAL),
    "equal costs, all right": Case(
        lambda t: scores(lambda s: 1)(tokens(7, 7, 7, 7)(t)), expected=FLAT | EQUAL
    ),
    "equal costs of each image": Case(cost_of_image, expected=EQUAL),
    "two scales of one cost": Case(tokens(1, 9, 9, 144)),
    "all but the coarsest of one cost": Case(tokens(1, 9, 9, 9)),
    "finer is cheaper": Case(tokens(144, 36, 9, 1), expected=INVERTED),
    "finest is cheapest": Case(tokens(9, 36, 144, 1), expected=INVERTED),
    "finest costs as much as the coarsest": Case(tokens(9, 36, 144, 9), expected=INVERTED),
    "middle scale is dearest": Case(tokens(1, 144, 9, 36)),
    "coarsest is dearest but for the finest": Case(tokens(100, 1, 9, 144)),
    # A fixed scale costs (1 + 3 * 100) / 4 on average; whoever knows the costs pays 1.
    "cheapest scale is another one for each sample": Case(
        take_turns, expected={"nothing_to_gain": False, "average_quality": None}
    ),
    "cheapest scale is another one, all right": Case(
        lambda table: take_turns(scores(lambda s: 1)(table)),
        expected={"nothing_to_gain": False, "oracle_gap": 0, "mean_to_mix": 0},
    ),
    "one scale": Case(
        columns(2), estimate=of_columns(2), expected=NO_GAP | {"finer_scales_help": False, "call_share": None}
    ),
    "two scales": Case(columns(0, 3), estimate=of_columns(0, 3)),
    "estimates of 0": Case(estimate=constant(0)),
    "estimates of 1": Case(estimate=constant(1)),
    "estimates of one half": Case(estimate=constant(0.5)),
    # Nobody is told apart: the cheapest scale is all there is.
    "constant estimates reach the cheapest scale": Case(estimate=constant(0.5), expected={"default_cost": 1}),
    "estimates outside of [0, 1]": Case(estimate=lambda table: 1.4 * estimate_outcomes(table) - 0.2),
    "estimates are the outcomes": Case(estimate=lambda table: table.score.astype(float)),
    "estimates are the opposite": Case(estimate=lambda table: 1.0 - table.score),
    "costs that differ by rounding": Case(settings=account(lambda c: 1 + 1e-15 * c), expected=EQUAL),
    "costs that differ by little": Case(settings=account(lambda c: 1 + 1e-7 * c)),
    "huge costs": Case(settings=account(lambda c: 1e30 * c)),
    "tiny costs": Case(settings=account(lambda c: 1e-12 * c)),
    "predictor costs more than answers": Case(
        settings=account(lambda c: c, overhead={"informed": 1e4, "hybrid": 1e4})
    ),
    "nearly all is paid once": Case(settings=account(lambda c: 1e-6 * c, shared=100.0)),
    "one resample": Case(settings={"bootstrap": Bootstrap(1)}),
    "one budget": Case(settings={"grid": Grid(1, 20)}),
    "two budgets": Case(settings={"grid": Grid(2, 20)}),
    "one price": Case(settings={"grid": Grid(9, 1)}),
    "no confidence to speak of": Case(settings={"bootstrap": Bootstrap(40, confidence=1e-9)}),
    "one question answered again": Case(settings={"resampled": Resampled(np.array([3]), np.ones((2, 1, 4)))}),
}


def compare(case: Case):
    calibration, test = make_outcomes("calibration", 12), make_outcomes("test", 10)
    calibration, test = case.calibration(case.both(calibration)), case.test(case.both(test))
    estimates = case.estimate(calibration), case.estimate(test)
    contenders: list[Policy] = [
        PredictorPolicy("informed", *estimates),
        PredictorPolicy("question_only", estimates[0].copy(), estimates[1].copy()),
        CascadePolicy("cascade", Cascade.fit),
        CascadePolicy("hybrid", Hybrid.fit, tuple(np.clip(each, 0, 1) for each in estimates)),
    ]
    settings: dict[str, Any] = {"bootstrap": Bootstrap(40), "grid": Grid(9, 20)} | (case.settings or {})
    return compare_policies(calibration, test, contenders, **settings), test


def find_values(found: Any) -> Expected:
    own = found.policies[0]
    values = {
        "oracle_gap": found.oracle_gap,
        "mean_to_mix": own.find(mean_to_mix),
        "mean_gap_share": own.find(mean_gap_share),
        "average_quality": own.find(average_quality),
        "average_gap_recovered": own.find(average_gap_recovered),
        "hypervolume": own.find(hypervolume),
        "call_share": own.find(call_share, 0.5),
        "mix_quality": found.metrics.find(Bound.MIX, average_quality),
        "mix_call_share": found.metrics.find(Bound.MIX, call_share, 0.5),
        "smallest_right": own.find(smallest_right),
        "default_cost": own.find(default_cost),
    }
    flags = {"nothing_to_gain": found.nothing_to_gain, "finer_scales_help": found.finer_scales_help}
    return {name: None if each is None else float(each.value) for name, each in values.items()} | flags


def list_estimates(found: Any, path: str = ""):
    """All estimates in a comparison, with where they are."""
    if isinstance(found, Estimate):
        yield path, found
    elif isinstance(found, MetricTable):
        for key in found:
            yield from list_estimates(found.find(*key), f"{path}.{key.metric.path}")
    elif is_dataclass(found):
        for field in fields(found):
            yield from list_estimates(getattr(found, field.name), f"{path}.{field.name}")
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from list_estimates(value, f"{path}[{key!r}]")
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from list_estimates(value, f"{path}[{number}]")


def list_figures(content: Any):
    if isinstance(content, dict):
        if content.keys() == {"value", "low", "high"}:
            yield content
        for value in content.values():
            yield from list_figures(value)
    elif isinstance(content, list):
        for value in content:
            yield from list_figures(value)


@pytest.mark.parametrize("name", CASES)
def test_degenerate_tables(name):
    found, test = compare(CASES[name])
    metrics = collect_metrics(found, test, task="task", backbone="backbone")
    json.dumps([metrics, collect_measure(found)], allow_nan=False)
    # A figure is there, with both bounds or, of fewer than 8 images, with none, or it is null.
    figures = list(list_figures([metrics, collect_measure(found)]))
    assert figures and not any(figure["value"] is None for figure in figures)
    bounded = [figure for figure in figures if None not in (figure["low"], figure["high"])]
    assert bounded == [figure for figure in figures if (figure["low"], figure["high"]) != (None, None)]
    # Answers given again may be to few of the questions.
    again = {id(estimate) for _, estimate in list_estimates(found.noise_free.get("resampled"))}
    for path, estimate in list_estimates(found):
        bounds = np.stack([estimate.low, estimate.high])
        exists = ~np.isnan(estimate.value)
        if found.num_images >= 8 and id(estimate) not in again:
            assert (~np.isnan(bounds) == exists).all(), path
        elif found.num_images < 8:
            assert np.isnan(bounds).all(), path
        assert np.isfinite(estimate.value[exists]).all(), path
        assert not np.isinf(bounds).any(), path
        # Only at a budget may a metric of an array be missing.
        assert exists.all() or path.endswith("at_budgets/gap_share"), path
    for policy in found.policies:
        assert np.isfinite(policy.cost).all() and policy.chosen.sum(axis=1) == pytest.approx(1)
    for drawn in collect_resamples(found).values():
        assert not np.isnan(drawn).all(axis=0).any()
    for difference in found.differences:
        assert difference.floor <= difference.p_value <= 1
        assert difference.adjusted_floor <= difference.adjusted <= 1
    values = find_values(found)
    for metric, value in (CASES[name].expected or {}).items():
        if metric == "finer_scales_help" and value is None:
            continue
        known = value if value is None or isinstance(value, bool) else pytest.approx(value, abs=1e-6)
        assert values[metric] == known, metric


def test_thousands_of_question_types():
    """Each of 4,000 questions is a type of its own: its mean scores are its scores."""
    test = texts("kind", lambda n: f"type {n:04d}")(make_outcomes("test", 1000))
    calibration = make_outcomes("calibration", 4)
    contender = PredictorPolicy("constant", constant(0.5)(calibration), constant(0.5)(test))
    found = compare_policies(calibration, test, [contender], grid=Grid(2, 2), bootstrap=Bootstrap(2))
    kinds = collect_metrics(found, test, task="task", backbone="backbone")["kinds"]
    assert list(kinds) == [f"type {n:04d}" for n in range(4000)]
    assert {kind["num_samples"] for kind in kinds.values()} == {1}
    assert [kind["score"] for kind in kinds.values()] == test.score.tolist()


@pytest.mark.parametrize(
    "names", [("mix", "budgeted", "fixed"), ("points of x", "", "a/b"), ("\u00e4\u5b57", "mean to", "x")]
)
def test_a_predictor_may_have_any_name(names):
    """Whatever three predictors and a cascade are called, they get the same numbers."""
    calibration, test = make_outcomes("calibration", 12), make_outcomes("test", 10)
    tables = []
    for first, second, third in (names, ("one", "two", "three")):
        contenders: list[Policy] = [
            PredictorPolicy(first, estimate_outcomes(calibration), estimate_outcomes(test)),
            PredictorPolicy(second, constant(0.5)(calibration), constant(0.5)(test)),
            CascadePolicy(third, Cascade.fit),
        ]
        found = compare_policies(
            calibration, test, contenders, reference=second, grid=Grid(5), bootstrap=Bootstrap(20)
        )
        keys = [Predictor(name) for name in (first, second, third)]
        assert [(each.first, each.second) for each in found.differences] == [
            *((key, Bound.MIX) for key in keys),
            (keys[0], keys[1]),
            (keys[0], keys[2]),
        ]
        metrics = collect_metrics(found, test, task="task", backbone="backbone")
        seconds = [row.pop("second") for row in metrics["differences"]]
        assert seconds == [{"bound": "mix"}] * 3 + [second, third]
        assert [row.pop("first") for row in metrics["differences"]] == [first, second, third, first, first]
        assert metrics.pop("reference") == second
        assert list(metrics["predictors"]) == [first, second, third]
        drawn = [
            collect_resamples(found)[name_tensor("predictors", name, "mean_to_mix")]
            for name in (first, second, third)
        ]
        metrics["predictors"] = list(metrics["predictors"].values())
        tables.append((json.dumps(metrics), np.array(drawn).tolist()))
    assert tables[0] == tables[1]


def test_two_policies_of_one_name_are_refused():
    table = make_outcomes("calibration", 4)
    one = PredictorPolicy("twin", estimate_outcomes(table), estimate_outcomes(table))
    with pytest.raises(ValueError, match="two policies of the comparison are called 'twin'"):
        compare_policies(table, make_outcomes("test", 4), [one, one], bootstrap=Bootstrap(2))


@pytest.mark.parametrize("empty", ["calibration", "test"])
def test_an_empty_split_is_refused_in_a_sentence(empty):
    tables = {split: make_outcomes(split, 4) for split in ("calibration", "test")}
    tables[empty] = tables[empty].select([])
    calibration, test = tables["calibration"], tables["test"]
    contender = PredictorPolicy("informed", constant(0.5)(calibration), constant(0.5)(test))
    with pytest.raises(ValueError, match=f"the {empty} split is empty"):
        compare_policies(calibration, test, [contender], bootstrap=Bootstrap(2))


@pytest.mark.parametrize("setting", ["num_budgets", "num_prices"])
def test_nothing_of_something_is_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} is at least 1, got 0"):
        Grid(**{setting: 0})


def test_p_values_know_their_floor():
    """19 resamples give 2 / 20 at least; Holm makes three times that of it where three are tested."""
    calibration, test = make_outcomes("calibration", 60), make_outcomes("test", 100)
    rng = np.random.default_rng(0)
    contenders = [
        PredictorPolicy("informed", estimate_outcomes(calibration), estimate_outcomes(test)),
        PredictorPolicy("noise", rng.random(calibration.score.shape), rng.random(test.score.shape)),
    ]
    found = compare_policies(calibration, test, contenders, bootstrap=Bootstrap(19))
    assert [each.floor for each in found.differences] == pytest.approx([0.1] * 3)
    assert [each.adjusted_floor for each in found.differences] == pytest.approx([0.3] * 3)
    assert found.differences[0].p_value == pytest.approx(0.1)
    assert found.differences[0].adjusted == pytest.approx(0.3)
    assert [each.label for each in found.differences] == [
        "informed - mix of fixed scales",
        "noise - mix of fixed scales",
        "informed - noise",
    ]


def test_budgets_reach_the_dearest_scale_even_where_the_finest_is_cheap():
    assert space_budgets([[4.0, 2.0, 1.0]] * 2, 3) == pytest.approx([1, 2, 4])
    assert space_budgets([[1.0, 2.0, 4.0]] * 2, 3) == pytest.approx([1, 2, 4])
    assert space_budgets([[3.0, 3.0]], 3) == pytest.approx([3, 3, 3])


def test_equal_costs_are_picked_by_position():
    assert pick_evenly(np.full(5, 7.0), 3).tolist() == [0, 2, 4]
    assert pick_evenly(np.array([1.0, 2, 4, 8, 16]), 3).tolist() == [0, 2, 4]
    assert pick_evenly(np.array([16.0, 8, 4, 2, 1]), 2).tolist() == [0, 4]
    assert pick_evenly(np.full(5, 7.0), 9).tolist() == [0, 1, 2, 3, 4]


def test_a_policy_below_the_cheapest_fixed_scale_is_held_against_that_one():
    """Each sample's own cheapest scale costs 1, a fixed scale 75.25 on average, and all are right."""
    case = CASES["cheapest scale is another one, all right"]
    found, _ = compare(replace(case, estimate=constant(0.5)))
    own = found.find("informed")
    assert own.cost == pytest.approx(np.ones(9)) and (own.cost < found.fixed_cost.value.min()).all()
    assert own[to_mix].value == pytest.approx(np.zeros(9))
