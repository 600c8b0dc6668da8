"""docs/new_metric.md as it stands: a metric, a cost measure and a table, each one function."""

import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.metric_table import Bound
from experiments.evaluation.metrics import METRICS
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.reporting.evaluation_tables import tabulate_merits
from experiments.results.metrics_json import collect_measure, collect_metrics
from experiments.results.resamples import collect_resamples, name_tensor
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.paths import ROOT

PAGE = ROOT / "docs" / "new_metric.md"


@pytest.fixture
def page():
    known = list(METRICS)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 3
    names: dict = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    yield names
    METRICS[:] = known


def test_each_is_one_function(page):
    calibration, test = (
        replace(table, vision_flops=np.full(table.score.shape, 10**12, dtype=np.int64))
        for table in (make_outcomes("calibration", 40), make_outcomes("test", 40))
    )
    policy = PredictorPolicy("informed", estimate_outcomes(calibration), estimate_outcomes(test))
    comparison, joules = (
        compare_policies(calibration, test, [policy], **more, bootstrap=Bootstrap(20))
        for more in ({}, {"measure": page["count_joules"]({"informed": 0.5})})
    )
    result, metric = comparison.find("informed"), page["share_of_finest"]
    fixed = comparison.fixed_score.value
    by_hand = np.interp(14.4, result.front.cost, result.front.score) / fixed[-1]
    assert result[metric].value == pytest.approx(by_hand)
    metrics = collect_metrics(comparison, test, task="t", backbone="b")
    assert metrics["predictors"]["informed"]["merits"]["share_of_finest"]["value"] == pytest.approx(
        by_hand, abs=1e-6
    )
    assert comparison.metrics.find(Bound.MIX, metric) is not None
    assert name_tensor("predictors", "informed", "merits", "share_of_finest") in collect_resamples(comparison)
    assert tabulate_merits(comparison).header[-1] == "share of finest"

    assert joules.fixed_cost.value == pytest.approx(1 + 1e-12 * test.prefill_flops.mean(axis=0))
    assert collect_measure(joules)["predictors"]["informed"]["own"] == 0.5
    table = page["tabulate_default_cost"](joules)
    assert table.header == ("policy", "J") and table.rows[0][0] == "informed"
