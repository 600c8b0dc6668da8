"""Results of an evaluation in a tracker: main numbers, metric table and front."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from experiments.evaluation.costs import TOKENS
from experiments.evaluation.metrics import (
    average_gap_recovered,
    average_quality,
    default_cost,
    default_score,
    mean_gap_share,
    mean_to_mix,
    to_best_fixed,
)
from experiments.results.metrics_json import PICTURE, TABLE
from experiments.training.trackers.base import Run, Status, Tracker, make_run_id

# Metrics that are shown as numbers of a run, for every policy in visual tokens; the table has all.
MAIN = (
    mean_to_mix,
    mean_gap_share,
    average_quality,
    average_gap_recovered,
    default_cost,
    default_score,
    to_best_fixed,
)


def show_evaluation(tracker: Tracker, folder: Path, *, name: str, configuration: Mapping[str, Any]) -> None:
    """Show the results of an evaluation, read from its folder, in a new run of a tracker.

    Numbers are named test/POLICY/METRIC after the columns of the metric table, of which they are the rows in
    visual tokens. The table is shown without the metrics that are one number per budget or operating point,
    which the front shows. All values are from the test split: no search may read them.
    """
    table = pq.read_table(folder / TABLE)
    table = table.filter(pc.is_null(table["position"])).drop_columns("position")
    paths = {metric.path for metric in MAIN}
    main = {
        f"test/{row['policy']}/{row['metric']}": row["value"]
        for row in table.to_pylist()
        if row["cost_measure"] == TOKENS.key
        and row["kind"] == "predictor"
        and row["metric"] in paths
        and math.isfinite(row["value"])
    }
    logger = tracker.open(Run("evaluate", name, make_run_id()), configuration)
    status: Status = "failed"
    try:
        tracker.show_results(logger, main)
        tracker.show_table(logger, "metric_table", table)
        tracker.show_image(logger, "front", (folder / PICTURE).read_bytes())
        status = "success"
    finally:
        tracker.close(logger, status)
