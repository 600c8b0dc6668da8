"""Gains of policies and of noise-free oracles over the mix, in the same expected scores.

The gap from mix to budgeted oracle includes outcome noise that no predictor can recover. The reachable gap is
that of a noise-free oracle. Policies are compared with it in expected scores: their operating points and
choices stay, and each choice has the expected score of its scale in place of the score of the greedy answer.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np

from experiments.evaluation.costs import TimingMeans
from experiments.evaluation.curves import Curve
from experiments.evaluation.noise_free import ExpectedScores, OraclePoints, list_expected_scores
from experiments.evaluation.policy_table import PolicyMeans, PolicyTable
from experiments.evaluation.statistics import number_images
from experiments.labels.resampled import Resampled
from m3_backbone.outcomes.table import OutcomeTable
from predictor.policy.front import Floats


class Gain(NamedTuple):
    """Expected score above the mix of a policy, and of the noise-free oracle at the same mean costs.

    Both are `[num_resamples, num_budgets]`. The mix is that of the fixed scales in expected scores.
    """

    policy: Floats
    oracle: Floats


class ReachableGap:
    """Policies of a policy table and one noise-free oracle, all scored by expected scores.

    `expected` has all test samples, in any order.
    """

    @classmethod
    def list_all(
        cls,
        table: PolicyTable,
        test: OutcomeTable,
        resampled: Resampled | None,
        *,
        num_prices: int,
        is_timed: bool,
    ) -> dict[str, Self]:
        """Return one per noise-free oracle that all test samples have, by its name (`NOISE_FREE`)."""
        return {
            name: cls(table, test, expected, num_prices=num_prices, is_timed=is_timed)
            for name, expected in list_expected_scores(test, resampled).items()
            if len(expected.rows) == len(test)
        }

    def __init__(
        self,
        table: PolicyTable,
        test: OutcomeTable,
        expected: ExpectedScores,
        *,
        num_prices: int,
        is_timed: bool,
    ) -> None:
        order = np.argsort(expected.rows)
        estimates, score = expected.estimates[:, order], expected.score[:, order]
        self._table = table
        self._oracle = OraclePoints(
            table.test.cost, estimates, score, test.cluster_id, num_prices=num_prices, is_timed=is_timed
        )
        self._means = PolicyMeans(number_images(test.cluster_id), timed=is_timed, repeats=table.test.repeats)
        for name, points in table.policies.items():
            path_score = points.paths.score(score.mean(axis=0))
            self._means.add(name, points.points, points.paths, points.cost, path_score, name)

    def measure(self, weights: np.ndarray, milliseconds: TimingMeans | None = None) -> Mapping[str, Gain]:
        """Return the gains by policy under weights of the images, as `PolicyTable.measure` does."""
        means = self._means(weights, milliseconds)
        fixed, points = self._oracle.measure(weights, milliseconds)
        mix, oracle = Curve.of(*fixed).hull(), Curve.of(*points)
        gains = {}
        for name, policy in self._table.policies.items():
            # Points run from expensive to cheap, plans from cheap to expensive.
            cost, score = (values[:, ::-1] @ policy.plan.T for values in means[name])
            mix_score = mix.at(cost)
            gains[name] = Gain(score - mix_score, oracle.at(cost) - mix_score)
        return gains
