"""Policies of finished runs over several seeds, and their differences.

**Several seeds of one policy.** Policies of the same name whose runs were given the same settings but for the
seed are one policy. A figure is the mean over its seeds; its interval, from draws of the test images and of
the seeds, covers other images and other trainings (`statistics.combine_seeds`); `spread` is the standard
deviation over the seeds (n - 1).

**Differences** are taken draw by draw. In each resample all policies are asked about the same images, and
policies with the same seeds draw the same seeds: what they have in common cancels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from experiments.evaluation.draws import keep_budgets
from experiments.evaluation.finished_runs import Run
from experiments.evaluation.fronts import Floats
from experiments.evaluation.statistics import Draws, Estimate, adjust_p_values, combine_seeds

# Among more policies than this not every pair is tested: Holm's correction would leave little of it.
MOST_FOR_ALL_PAIRS = 6


@dataclass(frozen=True, eq=False)
class Combined:
    """A figure over the seeds of a policy, and the spread over them, nan for a single seed."""

    draws: Draws
    estimate: Estimate
    spread: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One policy of the comparison: `metrics["predictors"][name]` of each of its runs, one a seed."""

    label: str
    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it was trained with; none where nothing is trained."""
        return tuple(seed for run in self.runs if (seed := run.find_seed(self.name)) is not None)

    @property
    def confidence(self) -> float:
        """That of every interval."""
        return float(self.runs[0].metrics["bootstrap"]["confidence"])

    def find(self, *path: str) -> Combined | None:
        """The figure at a path below the predictor; None where a seed does not have it."""
        return self._find(["predictors", self.name, *path])

    def find_in(self, part: str, *path: str) -> Combined | None:
        """The same below another part of the metrics that lists predictors, as `flops` or `risk`."""
        return self._find([part, "predictors", self.name, *path])

    def find_costs(self) -> Floats:
        """Mean costs at the budgets, their mean over the seeds, `[num_budgets]`."""
        return np.mean([self._list_at_budgets(run, "cost") for run in self.runs], axis=0)

    def at_budgets(self, figure: str) -> Estimate:
        """`score` or `to_mix` at the budgets, `[num_budgets]`.

        Draws are there for every few budgets (`draws.keep_budgets`); between these, how far the bounds lie
        from the value is interpolated.
        """
        rows = np.array([self._list_at_budgets(run, figure) for run in self.runs])
        value, kept = rows.mean(axis=0), keep_budgets(rows.shape[1])
        found = self._combine(["predictors", self.name, "at_budgets", figure], rows[:, kept])
        band, every = found.estimate(self.confidence), np.arange(len(value))
        low, high = (value + np.interp(every, kept, bound - value[kept]) for bound in (band.low, band.high))
        return Estimate(value, low, high)

    def _list_at_budgets(self, run: Run, figure: str) -> Floats:
        found = [at[figure] for at in run.metrics["predictors"][self.name]["at_budgets"]]
        values = [each["value"] if isinstance(each, dict) else each for each in found]
        return np.array(values, dtype=np.float64)

    def _find(self, path: Sequence[str]) -> Combined | None:
        values = []
        for run in self.runs:
            figure: Any = run.metrics
            for key in path:
                figure = None if figure is None else figure.get(key)
            if figure is None or figure["value"] is None:
                return None
            values.append(np.array(figure["value"], dtype=np.float64))
        draws = self._combine(path, values)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return Combined(draws, draws.estimate(self.confidence), spread)

    def _combine(self, path: Sequence[str], values: Iterable[Floats]) -> Draws:
        name = "/".join(path)
        # What is not trained has one run, and no other seed to be told from.
        draws = {
            run.find_seed(self.name) or 0: Draws(value, run.draws[name].astype(np.float64))
            for run, value in zip(self.runs, values, strict=True)
        }
        return combine_seeds(draws, seed=self.runs[0].metrics["bootstrap"]["seed"])


def list_entries(runs: Sequence[Run]) -> list[Entry]:
    """Policies over their seeds: first what the runs are about, in their order, then what stands beside it.

    Of runs that agree in seed and settings the first one counts. Settings that are the same in all runs are
    left out of the labels. A cascade that starts from what the run is about has that one's settings.
    """
    common = set(runs[0].settings).intersection(*(run.settings for run in runs))
    Key = tuple[str, str, tuple[str, ...]]
    groups: dict[Key, list[Run]] = {}
    beside: dict[Key, list[Run]] = {}
    for run in runs:
        settings = tuple(text for text in run.settings if text not in common)
        for name, figures in run.metrics["predictors"].items():
            start = figures["starts_from"]
            own = settings if run.about in (name, start) else ()
            label = name if start is None else f"{name} of {start}"
            group = (groups if name == run.about else beside).setdefault((label, name, own), [])
            if run.find_seed(name) not in [each.find_seed(name) for each in group]:
                group.append(run)
    # What one run is about may stand beside what another is about.
    about = {name for _, name, _ in groups}
    groups |= {key: group for key, group in beside.items() if key[1] not in about}
    return [Entry(", ".join((label, *own)), name, group) for (label, name, own), group in groups.items()]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two policies; every figure is that of `first` less that of `second`."""

    first: Entry
    second: Entry

    def find(self, *path: str) -> Draws | None:
        """The difference in the figure at a path below the predictors; None where one does not have it."""
        one, other = self.first.find(*path), self.second.find(*path)
        if one is None or other is None:
            return None
        return Draws(one.draws.value - other.draws.value, one.draws.drawn - other.draws.drawn)

    def estimate(self, *path: str) -> Estimate | None:
        """The same with its interval."""
        found = self.find(*path)
        return None if found is None else found.estimate(self.first.confidence)


def list_pairs(entries: Sequence[Entry]) -> list[Pair]:
    """What is tested: all pairs of a few; of many, the first and the reference with every other one."""
    if len(entries) <= MOST_FOR_ALL_PAIRS:
        return [Pair(*pair) for pair in combinations(entries, 2)]
    first, *others = entries
    references = {run.metrics["reference"] for entry in entries for run in entry.runs}
    named = [entry for entry in others if entry.name in references]
    return [Pair(first, other) for other in others] + [
        Pair(entry, reference) for reference in named for entry in others if entry is not reference
    ]


def find_p_values(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """Of each pair the p-value of its difference to the mix over log budgets, and Holm's over all of them.

    What has no such difference has a p-value of 1.
    """
    found = [pair.find("mean_to_mix") for pair in pairs]
    p_values = [1.0 if each is None else float(each.p_value()) for each in found]
    return list(zip(p_values, adjust_p_values(p_values).tolist(), strict=True))
