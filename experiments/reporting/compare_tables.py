"""Tables of several runs side by side."""

from collections.abc import Sequence

import numpy as np

from experiments.evaluation.finished_runs import Combined, Entry
from experiments.evaluation.statistics import Estimate
from experiments.reporting.numbers import (
    format_difference,
    format_percent,
    format_score,
    format_share,
    format_tokens,
)
from experiments.reporting.tables import Table

NUM_SHOWN_BUDGETS = 5


def build_comparison_tables(entries: Sequence[Entry]) -> list[Table]:
    """Means; merits; default prices; errors; scores within budgets; differences to the first; promises."""
    tables = [_tabulate_means(entries), _tabulate_merits(entries), _tabulate_defaults(entries)]
    tables += [_tabulate_errors(entries), _tabulate_budgets(entries)]
    tables += [_tabulate_differences(entries)] if len(entries) > 1 else []
    promised = [entry for entry in entries if entry.find_in("risk", "drop") is not None]
    return tables + ([_tabulate_promises(promised)] if promised else [])


def subtract(first: Combined, second: Combined) -> Estimate:
    """Difference of two figures with an interval as if they had nothing in common.

    Both come from the same images, so what they share cancels and the interval is too wide: what it shows to
    differ, differs. Half widths are added as independent errors are.
    """
    one, other = first.estimate, second.estimate
    value = one.value - other.value
    low = value - np.hypot(one.value - one.low, other.high - other.value)
    high = value + np.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high)


def format_spread(spread: float) -> str:
    """The standard deviation over seeds, in points; nothing for a single seed."""
    return "" if np.isnan(spread) else f" \N{PLUS-MINUS SIGN} {100 * spread:.1f}"


def _difference(found: Combined | None) -> str:
    return "-" if found is None else format_difference(found.estimate) + format_spread(found.spread)


def _share(found: Combined | None) -> str:
    return "-" if found is None else format_share(found.estimate) + format_spread(found.spread)


def _score(found: Combined | None) -> str:
    return "-" if found is None else format_score(found.estimate) + format_spread(found.spread)


def _tabulate_means(entries: Sequence[Entry]) -> Table:
    rows = [
        (
            entry.label,
            ", ".join(map(str, entry.seeds)),
            _difference(entry.find("mean_to_mix")),
            _difference(entry.find("mean_to_reference")),
            _share(entry.find("mean_gap_share")),
            _difference(entry.find_in("flops", "mean_to_mix")),
        )
        for entry in entries
    ]
    reference = entries[0].runs[0].metrics["reference"]
    caption = (
        "At matched mean visual tokens (last column: GFLOPs), averaged over log budget: difference in points "
        "and share of the gap from mix to budgeted oracle. Means over seeds, \N{PLUS-MINUS SIGN} standard "
        "deviation over the seeds"
    )
    header = (
        "policy", "seeds", "to mix", f"to {reference or 'reference'}", "share of gap", "to mix, GFLOPs",
    )  # fmt: skip
    return Table(caption, header, tuple(rows), name="means")


def _tabulate_merits(entries: Sequence[Entry]) -> Table:
    rows = [
        (
            entry.label,
            _score(entry.find("merits", "average_quality")),
            _share(entry.find("merits", "average_gap_recovered")),
            _score(entry.find("merits", "hypervolume")),
        )
        for entry in entries
    ]
    caption = "Figures of merit over linear cost, in percent"
    return Table(caption, ("policy", "AIQ", "APGR", "hypervolume"), tuple(rows), name="merits")


def _tabulate_defaults(entries: Sequence[Entry]) -> Table:
    rows: list[tuple[str, ...]] = []
    for each in entries[0].runs[0].metrics["fixed"]:
        score = Estimate(*(np.array(each["score"][key]) for key in ("value", "low", "high")))
        rows.append(
            (f"scale {each['scale']}", format_tokens(each["cost"]["value"]), format_score(score), "-")
        )
    for entry in entries:
        cost = entry.find("default", "cost")
        rows.append(
            (
                f"{entry.label}, default price",
                "-" if cost is None else format_tokens(cost.estimate.value),
                _score(entry.find("default", "score")),
                _difference(entry.find("default", "to_best_fixed")),
            )
        )
    header = ("policy", "visual tokens", "score", "to best fixed")
    return Table("Fixed scales and default prices", header, tuple(rows), name="defaults")


def _tabulate_errors(entries: Sequence[Entry]) -> Table:
    keys = ("smallest_right", "too_coarse", "too_fine")
    rows = [(entry.label, *(_share(entry.find("default", key)) for key in keys)) for entry in entries]
    caption = (
        "At default prices, of the questions that some scale answers: the share that got the smallest "
        "sufficient scale, a coarser and a finer one"
    )
    header = ("policy", "smallest sufficient", "too coarse", "too fine")
    return Table(caption, header, tuple(rows), name="errors")


def _tabulate_budgets(entries: Sequence[Entry]) -> Table:
    budgets = entries[0].runs[0].metrics["budgets"]
    shown = [round(i * (len(budgets) - 1) / (NUM_SHOWN_BUDGETS + 1)) for i in range(1, NUM_SHOWN_BUDGETS + 1)]
    rows = [
        (
            entry.label,
            *(format_percent(score) for score in entry.curve()[1][shown]),
        )
        for entry in entries
    ]
    header = tuple(f"\N{LESS-THAN OR EQUAL TO} {format_tokens(budgets[k])}" for k in shown)
    return Table("Score within budgets of mean visual tokens", ("policy", *header), tuple(rows), "budgets")


def _tabulate_differences(entries: Sequence[Entry]) -> Table:
    first, rows = entries[0], []
    for entry in entries[1:]:
        cells = []
        for path in (("mean_to_mix",), ("default", "score")):
            one, other = first.find(*path), entry.find(*path)
            cells.append("-" if one is None or other is None else format_difference(subtract(one, other)))
        rows.append((entry.label, *cells))
    caption = (
        f"{first.label} less each other policy, in points: averaged over log budget, and at the default "
        "prices. Intervals as if the two had no images in common, which is on the safe side"
    )
    header = ("policy", "over log budget", "at default prices")
    return Table(caption, header, tuple(rows), name="differences")


def _tabulate_promises(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        own = [run.metrics["risk"]["predictors"][entry.name] for run in entry.runs]
        feasible = sum(each["price"] is not None for each in own)
        cost = entry.find_in("risk", "cost")
        assert cost is not None
        rows.append(
            (
                entry.label,
                f"{feasible} of {len(own)}",
                format_tokens(cost.estimate.value),
                _difference(entry.find_in("risk", "drop")),
            )
        )
    risk = entries[0].runs[0].metrics["risk"]
    caption = (
        f"Promise: with probability {1 - risk['delta']:g} at most {100 * risk['alpha']:g} points below the "
        "finest scale; seeds in which a price could be certified, and what it came to on test (else: the "
        "finest scale)"
    )
    return Table(caption, ("policy", "certified", "tokens", "drop"), tuple(rows), name="promise")
