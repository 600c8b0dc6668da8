"""Metrics of policies: one function each, with its formula.

`@metric(...)` registers a function as a `Metric` in `METRICS`. A registered metric is measured on the test
samples and on every resample, and appears in the metric table, in `metrics.json` and in the tables of its
family without further code. A function takes a view of a policy under R resamples and returns `[R]`, or
`[R, k]` for a metric at k budgets, points or scales. It returns nan where the metric does not exist: a share
of a gap of zero, or a score that is never reached.

**Matched mean cost.** For each budget the operating point of a policy is chosen on the calibration samples
(`fronts.CalibratedPolicy`): the two prices around the budget and the probability of each. On the test samples
this point has a realized mean cost. At that cost the score is compared with the mix, with the reference
predictor (on the line through its operating points) and with the budgeted oracle. The mix is the hull of the
fixed scales on the test samples themselves, which is in its favour. The mix of another backbone is compared
under the budgets that its cheapest scale can meet. Means over budgets use the trapezoid rule
on log-spaced budgets, from the mean cost of the cheapest scale to that of the finest scale on calibration.

**Non-inferiority.** A policy is non-inferior to a fixed scale at a margin if its mean score is at most the
margin lower. Its operating point is the cheapest one that is non-inferior on calibration. Non-inferiority is
shown if the whole interval of the difference on test is at or above minus the margin. `front_cost` and
`front_saving` use the best point on the test samples instead, and are optimistic.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.curves import ROUNDING, Curve, Pair, average, divide
from experiments.evaluation.metric_table import (
    Bound,
    Family,
    Form,
    Key,
    Ladder,
    Metric,
    Opponent,
    PolicyKey,
    Predictor,
)
from predictor.policy.front import Floats

# Shares of the gap from the coarsest to the finest scale at which CPT(x) is measured.
RECOVERED = (0.5, 0.8)
# A fixed scale, named by its role (`policy_table.FINEST`, `BEST_FIXED`), and a margin of the score.
Baseline = tuple[str, float]


def find_met(realized: Floats, cheapest: float) -> NDArray[np.bool_]:
    """Return the mask `[num_budgets]` of the realized costs that a ladder can meet.

    `cheapest` is the mean cost of its cheapest scale. A single budget has no mean over budgets and does not
    count.
    """
    is_met = realized >= cheapest * (1 - ROUNDING)
    return is_met if is_met.sum() > 1 else np.zeros_like(is_met)


@dataclass(frozen=True, eq=False)
class FrontView:
    """The front of a policy or a bound under R resamples; costs include the overhead of the policy.

    `coarsest` and `finest` are the mean cost and mean score of these fixed scales, each `[R]`.
    """

    curve: Curve
    coarsest: Pair
    finest: Pair

    @cached_property
    def started(self) -> Curve:
        """The front with the coarsest fixed scale added as a point, which every policy may use."""
        return self.curve.start_from(self.coarsest)

    @property
    def gap(self) -> Floats:
        """Score of the finest scale minus that of the coarsest, `[R]`."""
        return self.finest[1] - self.coarsest[1]


@dataclass(frozen=True, eq=False)
class PolicyView(FrontView):
    """A policy under R resamples, with the bounds and the other policies under the same resamples.

    `points` are mean costs and scores at its operating points, `[R, num_points]`, from cheap to expensive.
    `plan` `[num_budgets, num_points]` is the probability of each point under each budget, and `realized`
    `[num_budgets]` the resulting mean cost on the test samples. `lines` are the fronts of all policies and
    bounds. `fixed` are mean costs and scores of the fixed scales, `[R, num_scales]`, and `best_fixed` is the
    column of the best one on calibration. `default` are cost and score at the default price, `[R]`. `choices`
    `[R, 3]` are shares of the samples that some scale answers: those that get their smallest sufficient
    scale, a coarser and a finer one. `reaching` holds per baseline the probability of each point in the
    cheapest mixture that is non-inferior on calibration, or None; `baselines` are the columns of the fixed
    scales by role. `calibration` are Brier score and calibration error, `[R, num_scales]`, None without
    estimates. `reachable` holds, by noise-free oracle, the gains of policy and oracle over the mix in
    expected scores, `[R, num_budgets]` (`reachable.Gain`). `ladder_costs` are the mean costs of the cheapest
    scales of other backbones.
    """

    policy: Predictor
    points: Pair
    plan: Floats
    realized: Floats
    lines: Mapping[PolicyKey, Curve]
    fixed: Pair
    best_fixed: int
    default: Pair
    choices: Floats
    baselines: Mapping[str, int]
    reaching: Mapping[Baseline, Floats | None]
    calibration: tuple[Floats, Floats] | None
    opponents: tuple[Opponent, ...]
    reference: Predictor | None
    reachable: Mapping[str, Pair] = field(default_factory=dict)
    ladder_costs: Mapping[Ladder, float] = field(default_factory=dict)

    @cached_property
    def planned(self) -> Pair:
        """Mean cost and score under each budget, `[R, num_budgets]`."""
        return self.points[0] @ self.plan.T, self.points[1] @ self.plan.T

    def difference_to(self, opponent: Opponent) -> Floats:
        """Score minus an opponent's at the same mean cost, under each budget, `[R, num_budgets]`."""
        cost, score = self.planned
        return score - self.lines[opponent].at(cost)

    @cached_property
    def difference_to_mix(self) -> Floats:
        """Score minus the mix's, `[R, num_budgets]`; the mix is flat below the cheapest fixed scale."""
        return self.difference_to(Bound.MIX)

    @cached_property
    def oracle_gap(self) -> Floats:
        """Score of the budgeted oracle minus the mix's at the same mean costs, `[R, num_budgets]`."""
        cost, score = self.planned
        return self.lines[Bound.BUDGETED].at(cost) - (score - self.difference_to_mix)

    def fixed_at(self, baseline: Baseline) -> Pair:
        """Mean cost and score of the fixed scale of a baseline, `[R]`."""
        cost, score = self.fixed
        column = self.baselines[baseline[0]]
        return cost[:, column], score[:, column]

    @cached_property
    def front_costs(self) -> Mapping[Baseline, Floats]:
        """Per baseline, the least cost at which the front reaches its score minus the margin, `[R]`."""
        return {
            baseline: self.curve.reach(self.fixed_at(baseline)[1] - baseline[1]) for baseline in self.reaching
        }

    @cached_property
    def reached(self) -> Mapping[Baseline, Pair]:
        """Per baseline, mean cost and score at the cheapest point non-inferior on calibration, `[R]`.

        Baselines without a non-inferior point on calibration are left out.
        """
        cost, score = self.points
        return {
            baseline: (cost @ probability, score @ probability)
            for baseline, probability in self.reaching.items()
            if probability is not None
        }


METRICS: list[Metric] = []


def _list_none(view: FrontView) -> Iterable[None]:
    return (None,)


def metric(
    label: str,
    form: Form,
    family: Family,
    *,
    name: str | None = None,
    over: Callable[[Any], Iterable[Hashable]] = _list_none,
    is_compared: bool = False,
) -> Callable[[Callable[..., Floats]], Metric]:
    """Register a function as a metric (see `Metric`); `over` lists the values of `at` for a view."""

    def register(measure: Callable[..., Floats]) -> Metric:
        registered = Metric(name or measure.__name__, label, form, family, measure, over, is_compared)
        METRICS.append(registered)
        return registered

    return register


def list_metrics(family: Family) -> list[Metric]:
    """Return the metrics of a family, in the order in which tables show them."""
    return [registered for registered in METRICS if registered.family is family]


def measure_policy(view: PolicyView) -> Iterator[tuple[Key, Floats]]:
    """Yield every metric of a policy."""
    for registered in METRICS:
        yield from measure_metric(registered, view, view.policy)


def measure_metric(registered: Metric, view: FrontView, policy: PolicyKey) -> Iterator[tuple[Key, Floats]]:
    """Yield one metric at each value of `at`."""
    for at in registered.list_at(view):
        yield Key(policy, registered, at), registered(view) if at is None else registered(view, at)


def measure_bound(view: FrontView, bound: Bound) -> Iterator[tuple[Key, Floats]]:
    """Yield the metrics of the front of a bound."""
    for registered in list_metrics(Family.FRONT):
        yield from measure_metric(registered, view, bound)


# --- Means over budgets ------------------------------------------------------------------------------------


@metric("to mix", Form.POINTS, Family.MEANS, is_compared=True)
def mean_to_mix(view: PolicyView) -> Floats:
    """Score minus the mix's at the same mean cost, averaged over budgets."""
    return average(view.difference_to_mix)


def _list_reference(view: PolicyView) -> Iterable[None]:
    return () if view.reference in (None, view.policy) else (None,)


@metric("to reference", Form.POINTS, Family.MEANS, over=_list_reference)
def mean_to_reference(view: PolicyView) -> Floats:
    """Score minus the reference predictor's at the same mean cost, averaged over budgets."""
    return average(to_reference(view))


@metric("share of gap", Form.SHARE, Family.MEANS, is_compared=True)
def mean_gap_share(view: PolicyView) -> Floats:
    """Mean difference to the mix, divided by the mean gap from the mix to the budgeted oracle."""
    return divide(average(view.difference_to_mix), average(view.oracle_gap))


@metric("difference", Form.POINTS, Family.PAIRS, over=lambda view: view.opponents)
def mean_difference(view: PolicyView, opponent: Opponent) -> Floats:
    """Score minus an opponent's at the same mean cost, averaged over budgets that the opponent can meet."""
    if opponent is Bound.MIX:
        return average(view.difference_to_mix)
    differences = view.difference_to(opponent)
    if not isinstance(opponent, Ladder):
        return average(differences)
    is_met = find_met(view.realized, view.ladder_costs[opponent])
    return average(differences[:, is_met]) if is_met.any() else np.full(len(differences), np.nan)


# --- At each budget ----------------------------------------------------------------------------------------


@metric("score", Form.SCORE, Family.AT_BUDGETS, name="score", is_compared=True)
def score_at_budgets(view: PolicyView) -> Floats:
    """Score on the line through the policy's points, at the realized cost of each budget on test."""
    return view.curve.at(np.broadcast_to(view.realized, (len(view.points[0]), len(view.realized))))


@metric("to mix", Form.POINTS, Family.AT_BUDGETS, is_compared=True)
def to_mix(view: PolicyView) -> Floats:
    """Score minus the mix's at the same mean cost."""
    return view.difference_to_mix


@metric("to reference", Form.POINTS, Family.AT_BUDGETS, over=_list_reference)
def to_reference(view: PolicyView) -> Floats:
    """Score minus the reference predictor's at the same mean cost."""
    assert view.reference is not None
    return view.difference_to(view.reference)


@metric("share of gap", Form.SHARE, Family.AT_BUDGETS)
def gap_share(view: PolicyView) -> Floats:
    """Difference to the mix divided by the gap from mix to budgeted oracle; nan where the gap is zero."""
    return divide(view.difference_to_mix, view.oracle_gap)


# --- Metrics of a single front -----------------------------------------------------------------------------


@metric("AIQ", Form.SCORE, Family.FRONT, is_compared=True)
def average_quality(view: FrontView) -> Floats:
    """AIQ, average improvement in quality (RouterBench, arXiv 2403.12031).

    Mean height of the non-decreasing concave hull of the policy's points: its integral from c_min to c_max,
    divided by `c_max - c_min`. c_min and c_max are the mean costs of the coarsest and the finest scale. The
    coarsest scale counts as a point of every policy, and the hull is flat beyond its most expensive vertex.
    (RouterBench takes the range from its set of models; its code divides by c_max, where c_min is nearly 0.)
    """
    low, high = view.coarsest[0], view.finest[0]
    return divide(view.started.hull().area(low, high), high - low)


@metric("APGR", Form.SHARE, Family.FRONT, is_compared=True)
def average_gap_recovered(view: FrontView) -> Floats:
    """APGR, average performance gap recovered (RouteLLM, arXiv 2406.18665).

    At a cost c the performance gap recovered is `PGR = (score(c) - s_coarsest) / (s_finest - s_coarsest)`;
    APGR is its integral over the share `(c - c_coarsest) / (c_finest - c_coarsest)` from 0 to 1, exact for
    the line through the policy's points. With two scales this share is RouteLLM's share of calls to the
    strong model; with more scales it is the share of such calls that costs as much. RouteLLM's paper sums
    over ten shares, its code uses the trapezoid rule as here. APGR can exceed 1 if the policy beats the
    finest scale at a lower cost.
    """
    low, high = view.coarsest[0], view.finest[0]
    mean = divide(view.started.area(low, high), high - low)
    return divide(mean - view.coarsest[1], view.gap)


@metric("CPT", Form.SHARE, Family.FRONT, name="call_shares", over=lambda view: RECOVERED)
def call_share(view: FrontView, recovered: float) -> Floats:
    """CPT(x), call-performance threshold (RouteLLM, arXiv 2406.18665), x in [0, 1].

    The least share `(c - c_coarsest) / (c_finest - c_coarsest)` at which the performance gap recovered is at
    least x (`recovered`); nan if it never is. The share can exceed 1 for a policy that pays for several
    scales.
    """
    cost = view.started.reach(view.coarsest[1] + recovered * view.gap)
    low, high = view.coarsest[0], view.finest[0]
    return np.where(view.gap > ROUNDING, divide(cost - low, high - low), np.nan)


@metric("hypervolume", Form.SCORE, Family.FRONT, is_compared=True)
def hypervolume(view: FrontView) -> Floats:
    """Area dominated by the points, divided by the finest scale's mean cost (Zitzler and Thiele 1998).

    The area is bounded by the finest scale's mean cost and by score 0. Points are not mixed: the dominated
    region is a staircase. In [0, 1] for scores in [0, 1]; 1 for a perfect policy at no cost.
    """
    curve, reference = view.curve, view.finest[0][:, None]
    best = np.maximum(np.maximum.accumulate(curve.score, axis=1), 0.0)
    widths = np.diff(np.minimum(np.concatenate([curve.cost, reference], axis=1), reference), axis=1)
    return (best * widths).sum(axis=1) / view.finest[0]


# --- Non-inferiority ---------------------------------------------------------------------------------------


def _list_baselines(view: PolicyView) -> Iterable[Baseline]:
    return view.reaching


def _list_reached(view: PolicyView) -> Iterable[Baseline]:
    return view.reached


@metric("cost on the front", Form.COST, Family.NON_INFERIORITY, over=_list_baselines)
def front_cost(view: PolicyView, baseline: Baseline) -> Floats:
    """Least cost at which the front on test reaches the baseline's score minus the margin."""
    return view.front_costs[baseline]


@metric("on the front", Form.FACTOR, Family.NON_INFERIORITY, over=_list_baselines)
def front_saving(view: PolicyView, baseline: Baseline) -> Floats:
    """The baseline's mean cost divided by the cost on the front."""
    return view.fixed_at(baseline)[0] / view.front_costs[baseline]


@metric("cost", Form.COST, Family.NON_INFERIORITY, name="cost", over=_list_reached)
def reached_cost(view: PolicyView, baseline: Baseline) -> Floats:
    """Mean cost on test of the cheapest operating point that is non-inferior on calibration."""
    return view.reached[baseline][0]


@metric("saving", Form.FACTOR, Family.NON_INFERIORITY, name="saving", over=_list_reached)
def reached_saving(view: PolicyView, baseline: Baseline) -> Floats:
    """The baseline's mean cost divided by `reached_cost`."""
    return view.fixed_at(baseline)[0] / view.reached[baseline][0]


@metric("difference", Form.POINTS, Family.NON_INFERIORITY, name="difference", over=_list_reached)
def reached_difference(view: PolicyView, baseline: Baseline) -> Floats:
    """Mean score on test of the point of `reached_cost` minus the baseline's."""
    return view.reached[baseline][1] - view.fixed_at(baseline)[1]


# --- At the default price ----------------------------------------------------------------------------------


@metric("visual tokens", Form.COST, Family.DEFAULT, name="cost", is_compared=True)
def default_cost(view: PolicyView) -> Floats:
    """Mean cost at the default price."""
    return view.default[0]


@metric("score", Form.SCORE, Family.DEFAULT, name="score", is_compared=True)
def default_score(view: PolicyView) -> Floats:
    """Mean score at the default price."""
    return view.default[1]


@metric("to best fixed", Form.POINTS, Family.DEFAULT, is_compared=True)
def to_best_fixed(view: PolicyView) -> Floats:
    """Mean score at the default price minus that of the best fixed scale on calibration."""
    return view.default[1] - view.fixed[1][:, view.best_fixed]


@metric("smallest sufficient", Form.SHARE, Family.DEFAULT, is_compared=True)
def smallest_right(view: PolicyView) -> Floats:
    """Share of the samples that get their smallest sufficient scale, among those that some scale answers.

    For a cascade the scale is the one at which it stops.
    """
    return view.choices[:, 0]


@metric("too coarse", Form.SHARE, Family.DEFAULT, is_compared=True)
def too_coarse(view: PolicyView) -> Floats:
    """Share of the samples that get a coarser scale than needed, among those that some scale answers."""
    return view.choices[:, 1]


@metric("too fine", Form.SHARE, Family.DEFAULT, is_compared=True)
def too_fine(view: PolicyView) -> Floats:
    """Share of the samples that get a finer scale than needed, among those that some scale answers."""
    return view.choices[:, 2]


# --- Calibration of the estimates, and points --------------------------------------------------------------


def _list_calibrated(view: PolicyView) -> Iterable[None]:
    return () if view.calibration is None else (None,)


@metric("Brier score", Form.PLAIN, Family.CALIBRATION, over=_list_calibrated)
def brier(view: PolicyView) -> Floats:
    """Mean of (estimate - score)^2 at each scale (Brier 1950)."""
    assert view.calibration is not None
    return view.calibration[0]


@metric("calibration error", Form.SCORE, Family.CALIBRATION, name="error", over=_list_calibrated)
def calibration_error(view: PolicyView) -> Floats:
    """Expected calibration error at each scale (`calibration.Reliability`)."""
    assert view.calibration is not None
    return view.calibration[1]


@metric("cost", Form.COST, Family.POINTS, name="cost")
def point_cost(view: PolicyView) -> Floats:
    """Mean cost at each operating point; for fixed scales and oracles, of each."""
    return view.points[0]


@metric("score", Form.SCORE, Family.POINTS, name="score")
def point_score(view: PolicyView) -> Floats:
    """Mean score at each operating point; for fixed scales and oracles, of each."""
    return view.points[1]


# --- Without outcome noise ---------------------------------------------------------------------------------


def _list_noise_free(view: PolicyView) -> Iterable[str]:
    return view.reachable


@metric("to mix, expected", Form.POINTS, Family.REACHABLE, name="to_mix", over=_list_noise_free)
def expected_to_mix(view: PolicyView, oracle: str) -> Floats:
    """Expected score minus the mix's at the same mean cost, averaged over budgets.

    Expected scores are those of the noise-free oracle (`noise_free`); operating points and choices of the
    policy are those of all other metrics.
    """
    return average(view.reachable[oracle][0])


@metric("share of reachable gap", Form.SHARE, Family.REACHABLE, name="gap_share", over=_list_noise_free)
def reachable_gap_share(view: PolicyView, oracle: str) -> Floats:
    """`expected_to_mix`, divided by the same gain of the noise-free oracle at the same mean costs.

    Policy, oracle and mix are scored by the same expected scores of the same samples. The gap to the budgeted
    oracle (`mean_gap_share`) includes outcome noise, which no predictor can recover; this one does not.
    """
    gain, gap = view.reachable[oracle]
    return divide(average(gain), average(gap))


# --- Headroom ----------------------------------------------------------------------------------------------


@metric("gap", Form.POINTS, Family.HEADROOM, name="gap", over=lambda view: ())
def mean_gap(oracle: Floats, mix: Floats) -> Floats:
    """Score of the budgeted oracle minus the mix's, both `[R, num_budgets]`, averaged over budgets.

    `comparing` measures it once, as it does not depend on a policy.
    """
    return average(oracle - mix)
