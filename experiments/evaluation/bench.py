"""Candidates and bounds on one test split, and all their metrics under weights of the images."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto

import numpy as np

from experiments.evaluation import figures as fig
from experiments.evaluation.calibration import Binned
from experiments.evaluation.candidates import Candidate
from experiments.evaluation.contenders import Contender, Outcomes, Ways
from experiments.evaluation.fronts import Floats, find_smallest_right, raise_budgets, trace_prices
from experiments.evaluation.keys import Bound, Key, Metric, Opponent, Policy, Predictor, Rule
from experiments.evaluation.merits import Curve, average, divide, measure_merits
from experiments.evaluation.oracles import RULES, choose_by_rule
from experiments.evaluation.policy_means import PolicyMeans
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.timings import TimingMeans
from predictor.policy.front import Front, find_unit, space_budgets
from predictor.policy.switches import find_switches

log = logging.getLogger(__name__)


class Part(Enum):
    """Averaged quantities of a policy: its operating points, its default price, its choices at that price."""

    POINTS = auto()
    DEFAULT = auto()
    CHOICES = auto()


class Bench:
    """Contenders on one test split: operating points from calibration, then figures from test.

    `image` `[num_samples]` numbers the images that the test samples ask about; `own` is what each contender
    adds to every answer. With `timed`, costs are means over timed pictures, and `measure` takes the means of
    each resample. `candidates` are by name.
    """

    def __init__(
        self,
        calibration: Outcomes,
        test: Outcomes,
        image: np.ndarray,
        contenders: Sequence[Contender],
        *,
        own: Mapping[str, float],
        reference: str | None,
        num_budgets: int,
        num_prices: int,
        timed: bool = False,
    ) -> None:
        learned, self.outcomes, self.image = calibration, test, image
        # What every policy can meet, its own cost paid.
        self.budgets = space_budgets(learned.cost + max(own.values()), num_budgets)
        self.best_fixed = int(learned.score.mean(axis=0).argmax())
        self.baselines = {fig.FINEST: test.cost.shape[1] - 1, fig.BEST_FIXED: self.best_fixed}
        self.means = PolicyMeans(image, timed=timed)
        self._smallest = find_smallest_right(test.score)

        def prepare(contender: Contender) -> Candidate:
            decisions = contender.decide(learned, test.asked, num_prices)
            candidate = Candidate.prepare(
                decisions, learned, test, self.budgets, own[contender.name], self.baselines
            )
            self._add_candidate(Predictor(contender.name), candidate)
            return candidate

        # Most of it is NumPy's, which leaves the other core to another thread.
        with ThreadPoolExecutor(max_workers=2) as pool:
            oracle = pool.submit(self._add_bounds, num_prices)
            found = list(pool.map(prepare, contenders))
            self.oracle = oracle.result()
        self.candidates = {
            contender.name: candidate for contender, candidate in zip(contenders, found, strict=True)
        }
        self.reference = reference if reference in self.candidates else None
        if reference is not None and self.reference is None:
            log.info("no policy is called %r: there is no reference to compare with", reference)
        self.reliabilities = {
            name: Binned(candidate.estimates, test.score, image)
            for name, candidate in self.candidates.items()
            if candidate.estimates is not None
        }
        for name, binned in self.reliabilities.items():
            binned.add_to(self.means.images, Predictor(name))

    @property
    def pairs(self) -> list[tuple[Predictor, Opponent]]:
        """Differences that are tested together: every policy to the mix, the first to every other one."""
        first, *others = map(Predictor, self.candidates)
        pairs: list[tuple[Predictor, Opponent]] = [(each, Bound.MIX) for each in (first, *others)]
        return pairs + [(first, other) for other in others]

    def list_opponents(self, policy: Predictor) -> list[Opponent]:
        """Opponents of a policy: the mix, the reference, and the others that it is tested against."""
        opponents = [second for first, second in self.pairs if first == policy]
        if self.reference is not None and self.reference != policy.name:
            opponents.append(Predictor(self.reference))
        return list(dict.fromkeys(opponents))

    def _add_bounds(self, num_prices: int) -> Front:
        """Add fixed scales and oracles; return the front of the budgeted oracle, from cheap to expensive."""
        cost, score = self.outcomes.cost, self.outcomes.score
        ways = Ways.single(cost.shape[1])
        self.means.add_fixed((Bound.FIXED, Part.POINTS), cost, score)
        switches, unit = find_switches(score, cost), find_unit(cost)
        prices = trace_prices(switches, cost, unit=unit, num_prices=num_prices)
        schedule = Schedule.at_prices(switches, prices, unit)
        self.means.add((Bound.BUDGETED, Part.POINTS), schedule, ways, cost, score)
        for rule in RULES:
            self.means.add_point((Rule(rule), Part.POINTS), choose_by_rule(score, rule), ways, cost, score)
        return Front(schedule.mean(cost)[::-1], schedule.mean(score)[::-1], prices[::-1])

    def _add_candidate(self, policy: Predictor, candidate: Candidate) -> None:
        """Add its operating points, its default price, and its choices at that price."""
        outcomes = candidate.ways, candidate.cost, candidate.score, policy.name
        self.means.add((policy, Part.POINTS), candidate.points, *outcomes)
        self.means.add_point((policy, Part.DEFAULT), candidate.default.choice, *outcomes)
        known, steps = (self._smallest >= 0)[:, None], candidate.default_scale - self._smallest
        right_coarse_fine = known * np.column_stack([steps == 0, steps < 0, steps > 0])
        self.means.images.add_columns(
            (policy, Part.CHOICES), known.astype(np.float64), right_coarse_fine.astype(np.float64)
        )

    def measure(self, weights: np.ndarray, milliseconds: TimingMeans | None = None) -> dict[Key, Floats]:
        """Every metric, first dimension `num_resamples`, under `weights` `[num_resamples, num_images]`.

        If costs are timed, `milliseconds` are those of the same resamples.
        """
        means = self.means(weights, milliseconds)
        fixed_cost, fixed_score = means[Bound.FIXED, Part.POINTS]
        found = {Key(Bound.FIXED, Metric.POINT_COST): fixed_cost}
        found[Key(Bound.FIXED, Metric.POINT_SCORE)] = fixed_score
        for rule in map(Rule, RULES):
            cost, score = means[rule, Part.POINTS]
            found[Key(rule, Metric.POINT_COST)] = cost[:, 0]
            found[Key(rule, Metric.POINT_SCORE)] = score[:, 0]
        # Points of candidates and of the oracle are ordered from expensive to cheap.
        policies: list[Policy] = [Bound.BUDGETED, *map(Predictor, self.candidates)]
        points = {policy: tuple(each[:, ::-1] for each in means[policy, Part.POINTS]) for policy in policies}
        lines: dict[Policy, Curve] = {policy: Curve.of(*each) for policy, each in points.items()}
        lines[Bound.MIX] = Curve.of(fixed_cost, fixed_score).hull()
        coarsest, finest = ((fixed_cost[:, column], fixed_score[:, column]) for column in (0, -1))
        for policy, line in lines.items():
            for metric, at, values in measure_merits(line, coarsest, finest, fig.RECOVERED):
                found[Key(policy, metric, at)] = values
        budgets = raise_budgets(self.budgets, fixed_cost)
        mix, oracle = (lines[bound].at(budgets) for bound in (Bound.MIX, Bound.BUDGETED))
        found[Key(Bound.MIX, Metric.SCORE_AT_BUDGETS)] = mix
        found[Key(Bound.BUDGETED, Metric.SCORE_AT_BUDGETS)] = oracle
        found[Key(Bound.BUDGETED, Metric.MEAN_GAP)] = average(oracle - mix)
        for name, candidate in self.candidates.items():
            policy = Predictor(name)
            own, default = points[policy], means[policy, Part.DEFAULT]
            for metric, values in (
                (Metric.POINT_COST, own[0]),
                (Metric.POINT_SCORE, own[1]),
                (Metric.DEFAULT_COST, default[0][:, 0]),
                (Metric.DEFAULT_SCORE, default[1][:, 0]),
                (Metric.TO_BEST_FIXED, default[1][:, 0] - fixed_score[:, self.best_fixed]),
                *_measure_choices(*means[policy, Part.CHOICES]),
            ):
                found[Key(policy, metric)] = values
            found |= dict(self._measure_candidate(policy, candidate, own, lines, (fixed_cost, fixed_score)))
            if name in self.reliabilities:
                brier, error = self.reliabilities[name].measure(means, policy)
                found[Key(policy, Metric.BRIER)] = brier
                found[Key(policy, Metric.CALIBRATION_ERROR)] = error
        return found

    def _measure_candidate(
        self,
        policy: Predictor,
        candidate: Candidate,
        own: Sequence[Floats],
        lines: Mapping[Policy, Curve],
        fixed: tuple[Floats, Floats],
    ) -> Iterator[tuple[Key, Floats]]:
        """Metrics at matched cost, and the cheapest non-inferior operating points (`figures`)."""
        cost, score = own[0] @ candidate.plan.T, own[1] @ candidate.plan.T
        line = lines[policy]
        # Below the cost of the cheapest fixed scale the mix scores as that scale does, in the mix's favour.
        to_mix = score - lines[Bound.MIX].at(cost)
        gap = lines[Bound.BUDGETED].at(cost) - (score - to_mix)
        yield Key(policy, Metric.SCORE_AT_BUDGETS), line.at(np.broadcast_to(candidate.realised, cost.shape))
        yield Key(policy, Metric.TO_MIX), to_mix
        yield Key(policy, Metric.GAP_SHARE), divide(to_mix, gap)
        yield Key(policy, Metric.MEAN_GAP_SHARE), divide(average(to_mix), average(gap))
        for opponent in self.list_opponents(policy):
            difference = to_mix if opponent is Bound.MIX else score - lines[opponent].at(cost)
            yield Key(policy, Metric.MEAN_DIFFERENCE, opponent), average(difference)
            if isinstance(opponent, Predictor) and opponent.name == self.reference:
                yield Key(policy, Metric.TO_REFERENCE), difference
        for baseline, chance in candidate.reaching.items():
            name, margin = baseline
            fixed_cost, fixed_score = (each[:, self.baselines[name]] for each in fixed)
            front_cost = line.reach(fixed_score - margin)
            yield Key(policy, Metric.FRONT_COST, baseline), front_cost
            yield Key(policy, Metric.FRONT_SAVING, baseline), fixed_cost / front_cost
            if chance is not None:
                spent = own[0] @ chance
                yield Key(policy, Metric.REACHED_COST, baseline), spent
                yield Key(policy, Metric.REACHED_SAVING, baseline), fixed_cost / spent
                yield Key(policy, Metric.REACHED_DIFFERENCE, baseline), own[1] @ chance - fixed_score


def _measure_choices(known: Floats, right_coarse_fine: Floats) -> Iterator[tuple[Metric, Floats]]:
    """Shares of the samples that some scale answers; `known` is the share of these."""
    shares = divide(right_coarse_fine, np.broadcast_to(known, right_coarse_fine.shape))
    yield from zip((Metric.SMALLEST_RIGHT, Metric.TOO_COARSE, Metric.TOO_FINE), shares.T, strict=True)
