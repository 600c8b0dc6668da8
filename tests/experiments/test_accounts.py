"""Costs counted in other units, with what the predictor adds."""

import json

import numpy as np
import pytest

from experiments.evaluation.accounts import TOKENS, Account, open_accounts, time_predictor
from experiments.evaluation.metrics import collect_account
from experiments.reporting.summary import build_tables
from predictor.baselines import Mix
from predictor.features import Features
from predictor.question_only import QuestionOnly
from tests.experiments.synthetic import make_outcomes
from tests.experiments.test_evaluate import compare
from tests.predictor.synthetic import make_labels


@pytest.fixture(scope="module")
def splits():
    return make_outcomes("calibration", 80), make_outcomes("test", 80)


def counted(factor=1.0, **own):
    return Account("other", "units", "mean units", lambda table: factor * table.visual_tokens, own)


def test_another_unit_changes_costs_and_no_difference(splits):
    tokens, units = compare(*splits), compare(*splits, account=counted(2.5))
    for first, second in zip(tokens.predictors, units.predictors, strict=True):
        assert second.cost == pytest.approx(2.5 * first.cost)
        assert second.to_mix.value == pytest.approx(first.to_mix.value)
        assert second.mean_gap_share.low == pytest.approx(first.mean_gap_share.low)
        # The price to use is one per visual token in any account.
        np.testing.assert_array_equal(second.default.choice, first.default.choice)
        assert second.default.point.cost.value == pytest.approx(2.5 * first.default.point.cost.value)


def test_what_choosing_costs_is_paid_with_every_answer(splits):
    free, paid = compare(*splits), compare(*splits, account=counted(informed=3.0))
    informed, first = paid.find("informed"), free.find("informed")
    assert informed.default.point.cost.value == pytest.approx(first.default.point.cost.value + 3)
    assert informed.front.cost == pytest.approx(first.front.cost + 3)
    assert informed.trace.cost == pytest.approx(first.trace.cost + 3)
    # Budgets begin where the dearest predictor can meet them, and none is missed on calibration.
    assert paid.budgets[0] == pytest.approx(free.budgets[0] + 3)
    assert informed.cost[0] == pytest.approx(first.cost[0] + 3)
    # The same answers at a higher cost: less above the mix.
    assert informed.mean_to_mix.value < first.mean_to_mix.value
    assert paid.find("question_only").default.point.cost.value == pytest.approx(
        free.find("question_only").default.point.cost.value
    )


def test_a_predictor_that_costs_more_than_it_saves_is_below_the_mix(splits):
    dear = compare(*splits, account=counted(informed=200.0)).find("informed")
    assert dear.mean_to_mix.high < 0


def test_accounts_of_a_label_folder(tmp_path, splits):
    train, test = make_labels(40, 0, split="train"), make_labels(20, 1, split="test")
    question_only, mix = QuestionOnly().fit(train, test), Mix().fit(train, test)
    predictors = {"question_only": question_only, "mix": mix}
    tokens, flops = open_accounts(tmp_path, predictors, test.inputs)
    assert tokens is TOKENS and not tokens.own
    assert flops.own["question_only"] == question_only.count_flops(test.inputs) / 1e9 > 0
    assert flops.own["mix"] == 0
    assert flops.of(test.outcomes) == pytest.approx(test.outcomes.prefill_flops / 1e9)
    latency = {"encode": 2.0, **{str(scale): 1.0 + scale for scale in test.outcomes.scales}}
    (tmp_path / "latency.json").write_text(json.dumps({"milliseconds": latency}))
    *_, milliseconds = open_accounts(tmp_path, predictors, test.inputs)
    assert milliseconds.of(test.outcomes)[5].tolist() == [3.0 + scale for scale in test.outcomes.scales]
    assert milliseconds.own["question_only"] > 0


def test_the_features_of_an_image_are_paid_for_as_they_were_timed_in_labelling(tmp_path, caplog):
    class Looking(Mix):
        features = Features(visual=[1, 9], statistics=["image"])

    train, test = make_labels(40, 0, split="train"), make_labels(20, 1, split="test")
    latency = {"encode": 2.0, **{str(scale): 1.0 + scale for scale in test.outcomes.scales}}
    latency |= {
        "features/1": 1000.0,
        "features/9": 2000.0,
        "features/tower": 9000.0,
        "features/image": 4000.0,
    }
    (tmp_path / "latency.json").write_text(json.dumps({"milliseconds": latency, "machine": "another"}))
    *_, milliseconds = open_accounts(tmp_path, {"looking": Looking().fit(train, test)}, test.inputs)
    assert 7000 < milliseconds.own["looking"] < 7500
    assert milliseconds.once == 2
    assert "timed on another" in caplog.text


def test_a_predictor_is_timed_on_single_samples():
    seen = []

    class Watched(Mix):
        def predict(self, inputs):
            seen.append(len(inputs))
            return None

    assert time_predictor(Watched(), make_labels(3, 0, split="test").inputs) >= 0
    assert set(seen) == {1} and len(seen) > 3


def test_the_table_says_what_choosing_costs(splits):
    # Answers cost 1, 9, 36 and 144 GFLOPs at the four scales; choosing adds half a percent of the last.
    flops = Account(
        "flops", "GFLOPs", "mean GFLOPs", lambda table: table.prefill_flops / 1e9, {"informed": 0.72}
    )
    other = compare(*splits, account=flops)
    table = build_tables(compare(*splits), [other])[-1]
    assert table.header[:3] == ("predictor", "own GFLOPs", "of the finest scale's")
    assert table.rows[0][:3] == ("informed", "0.72", "0.5%")
    content = collect_account(other)
    assert content["fixed"] == pytest.approx([1, 9, 36, 144])
    assert content["predictors"]["informed"]["own"] == 0.72
    assert content["predictors"]["question_only"]["own"] == 0
