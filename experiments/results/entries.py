"""Policies of finished runs over several seeds, and their differences.

**Several seeds of one policy.** Policies of the same name whose runs have the same settings except for the
seed are one policy. A metric is the mean over the seeds. Its interval, from resamples of test images and
seeds, covers other images and other trainings (`statistics.combine_seeds`). `spread` is the standard
deviation over the seeds (n - 1).

**Several runs of one seed.** If runs of one policy with the same seed and settings have the same result, the
first one counts. If their results differ, each result becomes a separate, numbered entry, so that no result
is dropped silently. Baselines of one name are one policy, unless their runs have several results for one
seed; then they are distinguished by the settings of the runs.

**Differences** are computed on each resample. In each resample all policies answer questions about the same
images, and policies with the same seeds use the same resample of the seeds, so that common noise cancels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.fronts import Floats
from experiments.evaluation.metric_table import Metric
from experiments.evaluation.metrics import mean_to_mix
from experiments.evaluation.statistics import Bootstrapped, Estimate, adjust_p_values, combine_seeds
from experiments.results.resamples import name_tensor
from experiments.results.run_folders import Run, list_distinguishing
from experiments.tasks.sizes import allows_interval

# With more policies not every pair is tested, as Holm's correction would leave little power.
MOST_FOR_ALL_PAIRS = 6


@dataclass(frozen=True, eq=False)
class Combined:
    """Mean of a metric over the seeds of a policy; `spread` is the standard deviation (nan for one seed)."""

    bootstrapped: Bootstrapped
    estimate: Estimate
    spread: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One policy of the comparison: `metrics["predictors"][name]` of each of its runs, one per seed.

    `repeats` are runs with the same seed, settings and result as one of `runs`; they do not count. `rivals`
    are pairs of one of `runs` and a run with another result for the same seed and settings.
    """

    label: str
    name: str
    runs: Sequence[Run]
    repeats: Sequence[Run] = ()
    rivals: Sequence[tuple[Run, Run]] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds; empty for a policy that is not trained."""
        return tuple(seed for run in self.runs if (seed := run.find_seed(self.name)) is not None)

    @property
    def confidence(self) -> float:
        """Confidence of all intervals."""
        return float(self.runs[0].metrics["bootstrap"]["confidence"])

    def find(self, metric: Metric, part: str | None = None) -> Combined | None:
        """Return a metric over the seeds; None if it does not exist for one of them.

        `part` names the part of `metrics.json` with another cost measure, such as `flops`; by default the
        metric is that in visual tokens.
        """
        return self._find([*([] if part is None else [part]), "predictors", self.name, *_steps(metric)])

    def find_drop(self) -> Combined | None:
        """Return the drop in score at the guaranteed price; None if a seed has no guarantee."""
        return self._find(["guarantee", "predictors", self.name, "drop"])

    def find_costs(self) -> Floats:
        """Return the mean costs at the budgets, averaged over the seeds, `[num_budgets]`."""
        costs = [
            [point["cost"] for point in run.metrics["predictors"][self.name]["at_budgets"]]
            for run in self.runs
        ]
        return np.mean(np.array(costs, dtype=np.float64), axis=0)

    def at_budgets(self, metric: Metric) -> Estimate:
        """Return a metric at the budgets, `[num_budgets]`, from its stored resamples."""
        values = [
            np.array(
                [point[metric.name]["value"] for point in run.metrics["predictors"][self.name]["at_budgets"]],
                dtype=np.float64,
            )
            for run in self.runs
        ]
        return self._combine(["predictors", self.name, *_steps(metric)], values).estimate(self.confidence)

    def _find(self, path: Sequence[str]) -> Combined | None:
        values = []
        for run in self.runs:
            node: Any = run.metrics
            for step in path:
                node = None if node is None else node.get(step)
            if node is None or node["value"] is None:
                return None
            values.append(np.array(node["value"], dtype=np.float64))
        bootstrapped = self._combine(path, values)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return Combined(bootstrapped, bootstrapped.estimate(self.confidence), spread)

    def _combine(self, path: Sequence[str], values: Iterable[Floats]) -> Bootstrapped:
        tensor = name_tensor(*path)
        by_seed = {
            _number_seed(run, self.name): Bootstrapped(
                value,
                run.resamples[tensor].astype(np.float64),
                has_interval=allows_interval(run.metrics["split"]["num_images"]),
            )
            for run, value in zip(self.runs, values, strict=True)
        }
        assert len(by_seed) == len(self.runs), "there must be one run per seed"
        return combine_seeds(by_seed, seed=self.runs[0].metrics["bootstrap"]["seed"])


def _steps(metric: Metric) -> list[str]:
    return metric.path.split("/")


# Identifies a policy: label, name of the predictor, settings.
Key = tuple[str, str, tuple[str, ...]]
Groups = dict[Key, list[Run]]


def list_entries(runs: Sequence[Run]) -> list[Entry]:
    """Return policies over their seeds: the main policies in the order of the runs, then all others.

    Settings that are the same in all runs, given or by default, are left out of the labels. A cascade that
    starts from the main policy of its run has the settings of that policy. A baseline that is the main policy
    of another run counts there, unless its result is different.
    """
    settings = list_distinguishing(runs)
    main: Groups = {}
    others: Groups = {}
    for run in runs:
        for name, metrics in run.metrics["predictors"].items():
            start = metrics["starts_from"]
            shown_settings = settings[run.folder] if run.about in (name, start) else ()
            label = name if start is None else f"{name} of {start}"
            groups_of_name = main if name == run.about else others
            groups_of_name.setdefault((label, name, shown_settings), []).append(run)
    groups = dict(main)
    for key, group in others.items():
        name = key[1]
        counted = [run for (_, other, _), members in main.items() if other == name for run in members]
        remaining = [run for run in group if not any(_is_same_result(run, other, name) for other in counted)]
        groups[key] = [*groups.get(key, []), *remaining]
    return [
        entry
        for (label, name, shown_settings), group in _split_by_settings(groups, settings).items()
        for entry in _split_by_result(", ".join((label, *shown_settings)), name, group)
    ]


def _split_by_settings(groups: Groups, settings: Mapping[Path, tuple[str, ...]]) -> Groups:
    """Split groups without settings in which a seed has several results, by the settings of their runs."""
    split: Groups = {}
    for (label, name, shown_settings), group in groups.items():
        has_others = bool(_find_results(group, name)[2])
        for run in group:
            distinguishing = settings[run.folder] if has_others and not shown_settings else shown_settings
            split.setdefault((label, name, distinguishing), []).append(run)
    return split


def _split_by_result(label: str, name: str, group: Sequence[Run]) -> Iterator[Entry]:
    """Yield the entries of a group: one per result that its runs have for the same seed."""
    rivals: dict[Run, Run] = {}
    number, rest = 1, list(group)
    while rest:
        kept, repeats, others = _find_results(rest, name)
        pairs = [(run, rivals[run]) for run in kept if run in rivals]
        yield Entry(label if number == 1 else f"{label} ({number})", name, kept, repeats, pairs)
        rivals = dict(others)
        number, rest = number + 1, [run for run, _ in others]


def _find_results(group: Sequence[Run], name: str) -> tuple[list[Run], list[Run], list[tuple[Run, Run]]]:
    """Return first runs of each seed, runs with the same result, and (run, first run) pairs that differ."""
    kept: dict[int, Run] = {}
    repeats: list[Run] = []
    others: list[tuple[Run, Run]] = []
    for run in group:
        first = kept.setdefault(_number_seed(run, name), run)
        if first is run:
            continue
        if _is_same_result(run, first, name):
            repeats.append(run)
        else:
            others.append((run, first))
    return list(kept.values()), repeats, others


def _is_same_result(one: Run, other: Run, name: str) -> bool:
    """Whether a predictor has the same seed and the same compared metrics on every resample in both runs."""
    if _number_seed(one, name) != _number_seed(other, name):
        return False
    prefix = name_tensor("predictors", name, "")
    tensors = [tensor for tensor in one.resamples if tensor.startswith(prefix)]
    return tensors == [tensor for tensor in other.resamples if tensor.startswith(prefix)] and all(
        np.allclose(one.resamples[tensor], other.resamples[tensor], rtol=1e-5, atol=1e-6, equal_nan=True)
        for tensor in tensors
    )


def _number_seed(run: Run, name: str) -> int:
    """Return the training seed of a predictor; 0 for a policy that is not trained."""
    return run.find_seed(name) or 0


@dataclass(frozen=True, eq=False)
class Pair:
    """Two policies; every metric is that of `first` minus that of `second`."""

    first: Entry
    second: Entry

    def find(self, metric: Metric) -> Bootstrapped | None:
        """Return the difference in a metric; None if it does not exist for one policy."""
        first, second = self.first.find(metric), self.second.find(metric)
        if first is None or second is None:
            return None
        one, other = first.bootstrapped, second.bootstrapped
        return Bootstrapped(
            one.value - other.value,
            one.resamples - other.resamples,
            one.has_interval and other.has_interval,
        )

    def estimate(self, metric: Metric) -> Estimate | None:
        """Return the difference in a metric with its interval; None if it does not exist."""
        difference = self.find(metric)
        return None if difference is None else difference.estimate(self.first.confidence)


def list_pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Return the pairs that are tested.

    These are all pairs of at most `MOST_FOR_ALL_PAIRS` policies; otherwise the first policy and the reference
    with every other one.
    """
    if len(entries) <= MOST_FOR_ALL_PAIRS:
        return [Pair(*pair) for pair in combinations(entries, 2)]
    first, *others = entries
    references = {run.metrics["reference"] for entry in entries for run in entry.runs}
    named = [entry for entry in others if entry.name in references]
    return [Pair(first, other) for other in others] + [
        Pair(entry, reference) for reference in named for entry in others if entry is not reference
    ]


def find_p_values(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """Return p-values of the differences in `mean_to_mix`, before and after Holm's correction, per pair.

    A pair without this difference has a p-value of 1.
    """
    differences = [pair.find(mean_to_mix) for pair in pairs]
    p_values = [1.0 if difference is None else float(difference.p_value()) for difference in differences]
    return list(zip(p_values, adjust_p_values(p_values).tolist(), strict=True))
