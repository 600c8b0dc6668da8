"""Scores of drawn answers: kept beside their labels, and the oracle that they make."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.comparison import compare_policies
from experiments.evaluation.contenders import Estimating
from experiments.evaluation.resampled import RESAMPLED, Resampled, read_resampled, write_resampled
from tests.experiments.synthetic import estimate_outcomes, make_outcomes


def draw(table, num_runs=4, seed=0):
    """Runs of the first 40 samples in which each answer is right with the chance that a predictor knows."""
    chance = estimate_outcomes(table)[:40]
    right = np.random.default_rng(seed).random((num_runs, *chance.shape)) < chance
    return Resampled(np.arange(40), right.astype(np.float64))


def test_scores_come_back_for_the_samples_they_belong_to(tmp_path):
    table = make_outcomes("test", 30)
    assert read_resampled(tmp_path, table) is None
    written = draw(table)
    path = write_resampled(tmp_path, table, written)
    # Samples are known by name: the order of the table does not matter.
    order = np.random.default_rng(1).permutation(len(table))
    found = read_resampled(tmp_path, table.select(order))
    assert found is not None and np.array_equal(order[found.rows], written.rows)
    assert np.array_equal(found.score, written.score)
    with pytest.raises(ValueError, match="different weights"):
        read_resampled(tmp_path, replace(table, fingerprints={**table.fingerprints, "weights": "other"}))
    with pytest.raises(ValueError, match="which the labels lack"):
        read_resampled(tmp_path, table.select(np.arange(40, len(table))))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{RESAMPLED} is damaged"):
        read_resampled(tmp_path, table)


def test_the_oracle_of_drawn_answers_has_less_to_gain_than_that_of_one_run():
    calibration, test = make_outcomes("calibration", 40), make_outcomes("test", 30)
    contender = Estimating("known", estimate_outcomes(calibration), estimate_outcomes(test))
    drawn = draw(test, num_runs=8)
    one = replace(test.select(drawn.rows), score=drawn.score[0].astype(np.float32))
    found = compare_policies(
        calibration, one, [replace(contender, test=contender.test[:40])], resampled=drawn, num_resamples=20
    )
    resampled = found.luck_free["resampled"]
    assert (resampled.num_runs, resampled.num_samples) == (8, 40)
    assert 0 < resampled.gap.value < found.oracle_gap.value
    assert np.allclose(resampled.fixed_score.value, drawn.score.mean((0, 1)))
