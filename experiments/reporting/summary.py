"""Summary of an evaluation for the terminal: one table, two sentences and warnings.

All tables and sentences are in the report and in `tables/`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.evaluation.comparison import Comparison, PolicyResult
from experiments.evaluation.fronts import RULES
from experiments.evaluation.metrics import default_cost, default_score, mean_gap_share, mean_to_mix
from experiments.reporting.findings import (
    Findings,
    describe_record,
    write_default,
    write_headline,
    write_shares,
)
from experiments.reporting.numbers import (
    MISSING,
    format_difference,
    format_duration,
    format_percent,
    format_score,
    format_share,
    format_tokens,
)
from experiments.reporting.page import cut_name
from experiments.reporting.tables import Table
from experiments.tasks.sizes import frame_banners

_NOTE = "score in percent; to the mix: points at equal {unit}, averaged over log-spaced budgets"


class Steps:
    """Log of the steps of a run: description, duration and path of the result of each step.

    With `print_tables`, a step that ends prints its table.
    """

    def __init__(self, print_tables: bool = False) -> None:
        self._print_tables = print_tables
        self._lines: list[str] = []
        self._start = time.perf_counter()

    def add(
        self,
        name: str,
        description: str,
        place: str | Path,
        make_table: Callable[[], object] | None = None,
    ) -> None:
        """Add a step that started at the end of the previous one and ends now."""
        end = time.perf_counter()
        seconds, self._start = round(end - self._start), end
        self._lines.append(f"{name:<10} {description} in {format_duration(seconds)}: {place}")
        if self._print_tables and make_table is not None:
            print(make_table())

    def __str__(self) -> str:
        return "\n".join(self._lines)


def describe_comparison(comparison: Comparison) -> str:
    """Return the numbers of policies, questions and images in a few words."""
    return (
        f"{len(comparison.policies)} policies on {comparison.num_samples:,} questions about "
        f"{comparison.num_images:,} images"
    )


def write_summary(findings: Findings) -> str:
    """Return table, findings and warnings of an evaluation, about 15 lines."""
    comparison, record = findings.comparison, findings.record
    parts = [
        f"{summarize(findings)}\n{_NOTE.format(unit=comparison.measure.unit)}",
        "\n".join(
            [
                *filter(None, [findings.subset]),
                write_headline(comparison),
                *write_shares(comparison),
                write_default(comparison),
            ]
        ),
        frame_banners(findings.banners),
    ]
    if record is not None and not (record.is_recorded and record.is_new and record.evaluation == 1):
        parts.append(describe_record(record))
    return "\n\n".join(filter(None, parts))


def write_line(findings: Findings, folder: Path) -> str:
    """Return one line, for a sweep, on the first policy of an evaluation with results in `folder`."""
    first = findings.comparison.policies[0]
    return (
        f"{cut_name(first.name)}: {format_difference(first.find(mean_to_mix))} points to the mix, "
        f"{format_share(first.find(mean_gap_share))} of the gap, "
        f"{format_tokens(first[default_cost].value)} {findings.comparison.measure.noun} by default: {folder}"
    )


def summarize(findings: Findings) -> Table:
    """Tabulate the finest scale, the first policy and its cascades, the reference, the mix, an oracle."""
    comparison = findings.comparison
    first = comparison.policies[0]
    finest = f"finest scale ({comparison.scales[-1]})"
    rows: list[tuple[str, ...]] = [
        (finest, format_tokens(comparison.fixed_cost.value[-1]), format_score(comparison.fixed_score[-1]))
    ]
    rows += [_describe_policy(result) for result in _list_shown(findings)]
    cost = float(first[default_cost].value)
    mix = f"mix of fixed scales, equal {comparison.measure.unit}"
    rows.append((mix, format_tokens(cost), format_percent(_find_mix(comparison, cost))))
    oracle_cost, oracle_score = comparison.rule("coarsest")
    rows.append((RULES["coarsest"], format_tokens(oracle_cost.value), format_score(oracle_score)))
    caption = (
        f"{comparison.num_samples:,} test questions about {comparison.num_images:,} images, default prices, "
        f"{comparison.confidence:.0%} intervals"
    )
    header = ("policy", comparison.measure.noun, "score", "to the mix", "share of the gap")
    filled = [(cut_name(name), *cells, *[MISSING] * (4 - len(cells))) for name, *cells in rows]
    return Table(caption, header, tuple(filled), name="summary")


def _list_shown(findings: Findings) -> list[PolicyResult]:
    """Return the first policy, the cascades that start from it, and the reference."""
    comparison = findings.comparison
    first, *others = comparison.policies
    cascades = [result for result in others if findings.starts_from.get(result.name) == first.name]
    reference = [result for result in others if result.name == comparison.reference]
    return [first, *cascades, *reference]


def _describe_policy(result: PolicyResult) -> tuple[str, ...]:
    return (
        result.name,
        format_tokens(result[default_cost].value),
        format_score(result[default_score]),
        format_difference(result.find(mean_to_mix)),
        format_share(result.find(mean_gap_share)),
    )


def _find_mix(comparison: Comparison, cost: float) -> float:
    """Return the mean score of the mix of fixed scales at a mean cost."""
    mixed = comparison.mix
    return float(np.interp(cost, comparison.fixed_cost.value[mixed], comparison.fixed_score.value[mixed]))
