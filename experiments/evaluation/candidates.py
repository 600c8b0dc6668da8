"""Contenders with their operating points: chosen on calibration samples, applied to test samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.evaluation.contenders import Decisions, Default, Outcomes, Ways
from experiments.evaluation.fronts import CalibratedPolicy, Columns, Floats
from experiments.evaluation.schedules import Schedule
from predictor.policy.front import Front
from predictor.policy.pricing import find_default

# A policy is not inferior to a fixed scale if it loses no more than this.
MARGINS = (0.0, 0.005, 0.01)
# Unless training chose a default price, it is the cheapest that loses no more than this on calibration.
TOLERANCE = 0.01
Baseline = tuple[str, float]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A contender with all that calibration chose for it, and what it then does with the test samples.

    `cost` and `score` `[num_samples, num_ways]` are those of its ways on the test samples. `points` are its
    operating points, from dear to cheap; `policy` holds them from cheap to dear, and so do `plan`
    `[num_budgets, num_points]` and `reaching`: per (baseline, margin) the chance `[num_points]` of each
    point, or None where no point is as good on calibration. `trace` is what all its prices do on test.
    Costs on test include the policy's own.
    """

    ways: Ways
    cost: Floats
    score: Floats
    policy: CalibratedPolicy
    plan: Floats
    reaching: Mapping[Baseline, Floats | None]
    trace: Front
    points: Schedule
    default: Default
    estimates: Floats | None

    @classmethod
    def prepare(
        cls,
        decisions: Decisions,
        calibration: Outcomes,
        test: Outcomes,
        budgets: Floats,
        own: float,
        baselines: Mapping[str, int],
    ) -> "Candidate":
        """`baselines` are columns of the fixed scales that it should not be inferior to."""
        ways = decisions.ways
        learned_cost, learned_score = ways.cost(calibration), ways.score(calibration.score)
        schedule = decisions.calibration
        front = Front(schedule.mean(learned_cost), schedule.mean(learned_score), decisions.price)
        policy = CalibratedPolicy.from_front(front, decisions.unit)
        fixed = calibration.score.mean(axis=0)
        default = decisions.default
        if default is None:
            row = find_default(front.cost, front.score, float(fixed.max()), tolerance=TOLERANCE)
            default = Default(float(decisions.price[row]), decisions.test.at(row))
        cost, score = ways.cost(test) + own, ways.score(test.score)
        return cls(
            ways=ways,
            cost=cost,
            score=score,
            policy=policy,
            # What cannot be had as cheaply as that is had at its cheapest, and compared at what that costs.
            plan=policy.plan(np.maximum(budgets - own, policy.cost[0])),
            reaching={
                (name, margin): policy.reach(float(fixed[column]) - margin)
                for name, column in baselines.items()
                for margin in MARGINS
            },
            trace=Front(decisions.test.mean(cost), decisions.test.mean(score), decisions.price),
            points=decisions.test.keep(np.searchsorted(decisions.price, policy.price[::-1])),
            default=default,
            estimates=decisions.estimates,
        )

    @property
    def realised(self) -> Floats:
        """What the budgets cost on the test samples, `[num_budgets]`."""
        return self.plan @ self.points.mean(self.cost)[::-1]

    @property
    def chosen(self) -> Floats:
        """Shares of the samples that each scale's answer stands for, `[num_budgets, num_scales]`."""
        num_scales = int(self.ways.stop.max()) + 1
        stands = (self.ways.stop[:, None] == np.arange(num_scales)).astype(np.float64)
        shares = [
            self.points.mean(np.broadcast_to(stands[:, scale], self.score.shape))[::-1]
            for scale in range(num_scales)
        ]
        return self.plan @ np.column_stack(shares)

    @property
    def default_scale(self) -> Columns:
        """Columns of the scales whose answers stand at the default price, `[num_samples]`."""
        return self.ways.stop[self.default.choice]
