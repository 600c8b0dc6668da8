"""Candidates and what bounds them on one test split, and every figure of them under weights of the images."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.evaluation import figures as fig
from experiments.evaluation.candidates import Candidate
from experiments.evaluation.contenders import Contender, Outcomes
from experiments.evaluation.fronts import (
    Floats,
    find_smallest_right,
    raise_budgets,
    score_of_mix,
    trace_prices,
)
from experiments.evaluation.merits import (
    Curve,
    average_gap_recovered,
    average_quality,
    find_call_share,
    hypervolume,
)
from experiments.evaluation.oracles import RULES, choose_by_rule
from experiments.evaluation.schedules import Schedule
from experiments.evaluation.statistics import ImageMeans
from predictor.policy import find_unit, space_budgets
from predictor.switches import find_switches

# Figures by (what they are of, which figure).
Key = tuple[Any, Any]
MIX, BUDGETED = "mix", "budgeted"


class Bench:
    """Contenders on one test split: operating points from calibration, then figures from test.

    `image` `[num_samples]` numbers the images that the test samples ask about; `own` is what each contender
    adds to every answer. `candidates` are by name.
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
    ) -> None:
        learned, self.outcomes, self.image = calibration, test, image
        # What every policy can meet, its own cost paid.
        self.budgets = space_budgets(learned.cost + max(own.values()), num_budgets)
        self.best_fixed = int(learned.score.mean(axis=0).argmax())
        self.baselines = {fig.FINEST: test.cost.shape[1] - 1, fig.BEST_FIXED: self.best_fixed}
        self.means = ImageMeans(image)
        self._smallest = find_smallest_right(test.score)

        def prepare(contender: Contender) -> Candidate:
            decisions = contender.decide(learned, test.asked, num_prices)
            candidate = Candidate.prepare(
                decisions, learned, test, self.budgets, own[contender.name], self.baselines
            )
            self._add_candidate(contender.name, candidate)
            return candidate

        # Most of it is NumPy's, which leaves the other core to another thread.
        with ThreadPoolExecutor(max_workers=2) as pool:
            prices = pool.submit(self._add_bounds, num_prices)
            found = list(pool.map(prepare, contenders))
            self.oracle_prices = prices.result()
        self.candidates = {
            contender.name: candidate for contender, candidate in zip(contenders, found, strict=True)
        }
        self.reference = reference if reference in self.candidates else None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Differences that are tested together: every policy to the mix, and the first to every other one."""
        first, *others = self.candidates
        return [(name, MIX) for name in self.candidates] + [(first, other) for other in others]

    def _add_bounds(self, num_prices: int) -> Floats:
        """Fixed scales and oracles; the prices of the budgeted oracle's points, from cheap to dear."""
        cost, score = self.outcomes.cost, self.outcomes.score
        self.means.add_columns("fixed", cost, score)
        switches, unit = find_switches(score, cost), find_unit(cost)
        prices = trace_prices(switches, cost, unit=unit, num_prices=num_prices)
        self.means.add(BUDGETED, Schedule.at_prices(switches, prices, unit), cost, score)
        every = np.arange(len(score))
        for rule in RULES:
            chosen = choose_by_rule(score, rule)
            self.means.add_columns(rule, cost[every, chosen][:, None], score[every, chosen][:, None])
        return prices[::-1]

    def _add_candidate(self, name: str, candidate: Candidate) -> None:
        """Its operating points, its default price, and what its choices there are."""
        self.means.add(f"points of {name}", candidate.points, candidate.cost, candidate.score)
        every, ways = np.arange(len(candidate.cost)), candidate.default.choice
        default = (candidate.cost[every, ways][:, None], candidate.score[every, ways][:, None])
        self.means.add_columns(f"default of {name}", *default)
        known, steps = (self._smallest >= 0)[:, None], candidate.default_scale - self._smallest
        those = known * np.column_stack([steps == 0, steps < 0, steps > 0])
        self.means.add_columns(f"choices of {name}", known.astype(np.float64), those.astype(np.float64))

    def measure(self, weights: np.ndarray) -> dict[Key, Floats]:
        """Every figure, its first dimension that of `weights` `[num_resamples, num_images]`."""
        means = self.means(weights)
        # Candidates' points come from dear to cheap, and so do the oracle's.
        curves = {key: (cost[:, ::-1], score[:, ::-1]) for key, (cost, score) in means.items()}
        fixed_cost, fixed_score = means["fixed"]
        fixed = curves["fixed"] = fixed_cost, fixed_score
        found: dict[Key, Floats] = {}
        for key, (cost, score) in curves.items():
            found[key, "cost"], found[key, "score"] = cost, score
        lines = {key: Curve.of(*curve) for key, curve in curves.items() if key == BUDGETED or "points" in key}
        coarsest, finest = ((fixed_cost[:, column], fixed_score[:, column]) for column in (0, -1))
        lines[MIX] = Curve.of(*fixed).hull()
        for key, line in lines.items():
            found |= {
                (f"merits of {key}", what): each for what, each in measure_merits(line, coarsest, finest)
            }
        budgets = raise_budgets(self.budgets, fixed_cost)
        mix, oracle = score_of_mix(*fixed, budgets), lines[BUDGETED].at(budgets)
        found[MIX, "at budgets"], found[BUDGETED, "at budgets"] = mix, oracle
        found[BUDGETED, "gap"] = fig.average(oracle - mix)
        for name, candidate in self.candidates.items():
            own = curves[f"points of {name}"]
            for figure, values in self._measure_candidate(name, candidate, own, lines, fixed):
                found[f"figures of {name}", figure] = values
            found[f"figures of {name}", "to_best_fixed"] = (
                curves[f"default of {name}"][1][:, 0] - fixed_score[:, self.best_fixed]
            )
            known, those = means[f"choices of {name}"]
            found[f"figures of {name}", "choices"] = fig.divide(those, np.broadcast_to(known, those.shape))
        return found

    def _measure_candidate(
        self,
        name: str,
        candidate: Candidate,
        own: tuple[Floats, Floats],
        lines: Mapping[Any, Curve],
        fixed: tuple[Floats, Floats],
    ) -> Iterator[tuple[Any, Floats]]:
        cost, score = own[0] @ candidate.plan.T, own[1] @ candidate.plan.T
        mix = score_of_mix(*fixed, cost)
        gap = lines[BUDGETED].at(cost) - mix
        line = lines[f"points of {name}"]
        yield "score", line.at(np.broadcast_to(candidate.realised, cost.shape))
        yield "to_mix", score - mix
        yield "gap_share", fig.divide(score - mix, gap)
        yield "mean_gap_share", fig.divide(fig.average(score - mix), fig.average(gap))
        if self.reference is not None:
            yield "to_reference", score - lines[f"points of {self.reference}"].at(cost)
        for first, second in self.pairs:
            if first == name:
                other = mix if second == MIX else lines[f"points of {second}"].at(cost)
                yield ("mean to", second), fig.average(score - other)
        if self.reference is not None:
            yield "mean_to_reference", fig.average(score - lines[f"points of {self.reference}"].at(cost))
        for (baseline, margin), chance in candidate.reaching.items():
            fixed_cost, fixed_score = (each[:, self.baselines[baseline]] for each in fixed)
            front_cost = line.reach(fixed_score - margin)
            yield (baseline, margin, "front_cost"), front_cost
            yield (baseline, margin, "front_saving"), fixed_cost / front_cost
            if chance is not None:
                spent = own[0] @ chance
                yield (baseline, margin, "cost"), spent
                yield (baseline, margin, "saving"), fixed_cost / spent
                yield (baseline, margin, "difference"), own[1] @ chance - fixed_score


def measure_merits(
    line: Curve, coarsest: tuple[Floats, Floats], finest: tuple[Floats, Floats]
) -> Iterator[tuple[Any, Floats]]:
    """The figures of merit of a front alone."""
    yield "average_quality", average_quality(line, coarsest, finest)
    yield "average_gap_recovered", average_gap_recovered(line, coarsest, finest)
    yield "hypervolume", hypervolume(line, finest)
    for recovered in fig.RECOVERED:
        yield ("call_share", recovered), find_call_share(line, coarsest, finest, recovered)
