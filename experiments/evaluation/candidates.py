"""Contenders with their operating points: chosen on calibration samples, applied to test samples."""

from dataclasses import dataclass

import numpy as np

from experiments.evaluation.contenders import Choices, Decisions, Default, Outcomes, Ways
from experiments.evaluation.fronts import CalibratedPolicy, Columns, Floats
from predictor.policy import Front


@dataclass(frozen=True, eq=False)
class Candidate:
    """A contender with all that calibration chose for it, and what it then does with the test samples.

    `cost` and `score` `[num_samples, num_ways]` are those of its ways on the test samples; `points` and
    `choice` are numbers of ways. `cost`, `trace` and `realised` include the policy's own cost.
    """

    ways: Ways
    cost: Floats
    score: Floats
    policy: CalibratedPolicy
    plan: Floats
    trace: Front
    points: Choices
    default_price: float
    choice: Columns

    @classmethod
    def prepare(
        cls,
        decisions: Decisions,
        calibration: Outcomes,
        test: Outcomes,
        budgets: Floats,
        own: float,
    ) -> "Candidate":
        ways = decisions.ways
        learned = _trace(decisions.price, decisions.calibration, ways, calibration)
        policy = CalibratedPolicy.from_front(learned, decisions.unit)
        hull = np.searchsorted(decisions.price, policy.price)
        trace = _trace(decisions.price, decisions.test, ways, test)
        default = decisions.default
        if default is None:
            best_fixed = calibration.score.mean(axis=0).max()
            row = find_default(learned, best_fixed)
            default = Default(float(decisions.price[row]), decisions.test[row].astype(np.int64))
        return cls(
            ways=ways,
            cost=ways.cost(test.cost) + own,
            score=ways.score(test.score),
            policy=policy,
            # What cannot be had as cheaply as that is had at its cheapest, and compared at what that costs.
            plan=policy.plan(np.maximum(budgets - own, policy.cost[0])),
            trace=Front(trace.cost + own, trace.score, trace.price),
            points=decisions.test[hull],
            default_price=default.price,
            choice=default.choice,
        )

    @property
    def realised(self) -> Floats:
        """What the budgets cost on the test samples, `[num_budgets]`."""
        rows = np.arange(self.cost.shape[0])
        return self.plan @ np.array([self.cost[rows, chosen].mean() for chosen in self.points])


def _trace(price: Floats, choices: Choices, ways: Ways, samples: Outcomes) -> Front:
    """Mean cost and score of choices of ways at every price."""
    rows = np.arange(len(samples))
    cost, score = ways.cost(samples.cost), ways.score(samples.score)
    means = np.array([(cost[rows, each].mean(), score[rows, each].mean()) for each in choices])
    return Front(means[:, 0], means[:, 1], price)


def find_default(front: Front, best_fixed: float, tolerance: float = 0.01) -> int:
    """Row of the cheapest point at most `tolerance` below the best fixed scale, else of the best point."""
    reaching = front.score >= best_fixed - tolerance - 1e-12
    if not reaching.any():
        return int(front.score.argmax())
    return int(np.where(reaching, front.cost, np.inf).argmin())
