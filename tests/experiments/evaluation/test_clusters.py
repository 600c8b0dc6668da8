"""Images that are not independent, as parts of one video, are resampled, certified and divided as one."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.guarantee import find_guarantee
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.training.joining import join_labels
from m3_backbone.outcomes.labels import Labels
from m3_backbone.outcomes.table import CLUSTER
from predictor.splitting import split_for_calibrator, split_validation
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.predictor.synthetic import make_labels


def cut_images(table):
    """Return a table whose samples have images of their own, with their former images as clusters."""
    return replace(
        table,
        image_id=np.array([f"part of {sample}" for sample in table.sample_id], dtype=object),
        attributes=[
            {**attributes, CLUSTER: str(image)}
            for attributes, image in zip(table.attributes, table.image_id, strict=True)
        ],
    )


def test_intervals_and_guarantees_are_those_of_the_clusters():
    splits = make_outcomes("calibration", 120), make_outcomes("test", 150)
    results = []
    for calibration, test in (splits, tuple(map(cut_images, splits))):
        policy = PredictorPolicy("mine", estimate_outcomes(calibration), estimate_outcomes(test))
        comparison = compare_policies(calibration, test, [policy], bootstrap=Bootstrap(60))
        guarantee = find_guarantee(estimate_outcomes(calibration), calibration, alpha=0.2, delta=0.1)
        results.append((comparison, guarantee))
    (whole, certified), (cut, certified_cut) = results
    assert cut.num_images == whole.num_images == 150 and cut.num_samples > 150
    assert certified_cut == certified and certified.price is not None
    for key, metric in whole.metrics.items():
        np.testing.assert_array_equal(cut.metrics[key].low, metric.low)
        np.testing.assert_array_equal(cut.metrics[key].value, metric.value)


def test_joined_labels_of_several_tasks_share_no_cluster():
    labels = make_labels(5, seed=0)
    labels = Labels(inputs=labels.inputs, outcomes=cut_images(labels.outcomes))
    joined = join_labels({"one": labels, "two": labels}).outcomes
    assert len(set(joined.cluster_id)) == 10
    assert {name.split("/")[0] for name in joined.cluster_id} == {"one", "two"}


def test_no_cluster_is_on_both_sides():
    labels = make_labels(40, seed=0)
    labels = Labels(inputs=labels.inputs, outcomes=cut_images(labels.outcomes))
    for parts in (split_validation(labels, 0.3, seed=0), split_for_calibrator(labels)):
        clusters, others = ({row[CLUSTER] for row in part.outcomes.attributes} for part in parts)
        assert clusters and others and not clusters & others
    table = labels.outcomes
    policy = PredictorPolicy("mine", table.score[::2], table.score[1::2])
    first, second = (table.select(np.arange(start, len(table), 2)) for start in (0, 1))
    with pytest.raises(ValueError, match="is in calibration and in test: split by image"):
        compare_policies(first, second, [policy])
