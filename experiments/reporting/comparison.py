"""Comparison of finished runs: tables, notes and an HTML page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.command_line.running import Provenance
from experiments.evaluation.costs import TOKENS, CostMeasure
from experiments.evaluation.metric_table import MOST_BAND_RESAMPLES, Family
from experiments.evaluation.metrics import (
    default_cost,
    default_score,
    list_metrics,
    mean_gap_share,
    mean_to_mix,
    score_at_budgets,
    smallest_right,
    to_best_fixed,
    too_coarse,
    too_fine,
)
from experiments.evaluation.statistics import Estimate
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.front_plot import MOST_DRAWN, plot_runs
from experiments.reporting.numbers import (
    MINUS,
    describe_floor,
    format_difference,
    format_metric,
    format_p_values,
    format_score,
    format_share,
    format_tokens,
    write_estimate,
    write_number,
)
from experiments.reporting.page import attach_files, encode_picture, save_figure, write_page
from experiments.reporting.run_costs import tabulate_run_costs
from experiments.reporting.run_findings import find_seed_banners, write_finding
from experiments.reporting.tables import Table, write_tables
from experiments.results.entries import (
    MOST_FOR_ALL_PAIRS,
    Combined,
    Entry,
    find_p_values,
    list_entries,
    list_pairs,
)
from experiments.results.run_folders import Run, find_runs
from experiments.tasks.sizes import find_banners, frame_banners

NUM_SHOWN_BUDGETS = 5
NUM_NAMED_RUNS = 5
SPREAD = "sd"

# Metrics of one table row, each with its formatter.
Cells = Sequence[tuple[Combined | None, Callable[[Estimate], str]]]


def build_comparison_tables(entries: Sequence[Entry]) -> list[Table]:
    """Return the tables of a comparison of runs, in the order in which the page shows them."""
    tables = [_tabulate_means(entries)]
    tables += [_tabulate_differences(entries)] if len(entries) > 1 else []
    tables += [_tabulate_merits(entries), _tabulate_defaults(entries)]
    tables += [_tabulate_errors(entries), _tabulate_budgets(entries)]
    guaranteed = [entry for entry in entries if entry.find_drop() is not None]
    return tables + ([_tabulate_guarantees(guaranteed)] if guaranteed else [])


def write_notes(entries: Sequence[Entry], runs: Sequence[Run]) -> list[str]:
    """Return sentences about runs of one policy with the same seed and settings; runs are numbered from 1.

    Repeats of baselines are not mentioned, as baselines are in every run.
    """
    number = {run.folder: position for position, run in enumerate(runs, start=1)}
    notes = []
    for entry in entries:
        repeats = [run for run in entry.repeats if run.about == entry.name]
        if repeats:
            which, verb = _list_runs(repeats, number), "repeats" if len(repeats) == 1 else "repeat"
            notes.append(
                f"{entry.label}: {which} {verb} the result of another run with the same seed and settings; "
                "each seed counts once."
            )
        if entry.rivals:
            which = _list_runs([run for run, _ in entry.rivals], number)
            verb = "has" if len(entry.rivals) == 1 else "have"
            others = _list_runs([rival for _, rival in entry.rivals], number)
            notes.append(
                f"{entry.label}: {which} {verb} another result than {others} with the same seed and "
                "settings. Both are shown; leave one out of runs=[...] if it is out of date."
            )
    return notes


def _list_runs(runs: Sequence[Run], number: Mapping[Path, int]) -> str:
    """Return the first few runs, by number and name of the folder, as text."""
    named = [f"{number[run.folder]} ({run.folder.name})" for run in runs[:NUM_NAMED_RUNS]]
    left_out = len(runs) - len(named)
    more = f" and {left_out:,} more" if left_out else ""
    return f"run{'s' * (len(runs) > 1)} {', '.join(named)}{more}"


class _Columns:
    """Columns of metrics, each followed by its spread if any of the policies has several seeds."""

    def __init__(self, entries: Sequence[Entry], *names: str) -> None:
        self._spread = any(len(entry.runs) > 1 for entry in entries)
        self.header = tuple(part for name in names for part in ((name, SPREAD) if self._spread else (name,)))

    def fill(self, cells: Cells) -> tuple[str, ...]:
        """Return the cells of one row."""
        return tuple(text for cell in cells for text in self._write(*cell))

    def _write(self, metric: Combined | None, form: Callable[[Estimate], str]) -> tuple[str, ...]:
        text, spread = ("-", np.nan) if metric is None else (form(metric.estimate), metric.spread)
        if not self._spread:
            return (text,)
        return (text, "" if np.isnan(spread) else write_number(100 * spread, ".1f"))


def _tabulate_means(entries: Sequence[Entry]) -> Table:
    in_flops = [entry.find(mean_to_mix, "flops") for entry in entries]
    has_flops = any(metric is not None for metric in in_flops)
    columns = _Columns(entries, "to mix", "share of gap", *(["to mix, GFLOPs"] if has_flops else []))
    rows = [
        (
            entry.label,
            ", ".join(map(str, entry.seeds)) or "-",
            *columns.fill(
                [
                    (entry.find(mean_to_mix), format_difference),
                    (entry.find(mean_gap_share), format_share),
                    *([(metric, format_difference)] if has_flops else []),
                ]
            ),
        )
        for entry, metric in zip(entries, in_flops, strict=True)
    ]
    noun, last = entries[0].runs[0].measure.noun, " (last column: GFLOPs)" if has_flops else ""
    caption = (
        f"At matched mean {noun}{last}, averaged over log-spaced budgets: difference "
        "to the mix in points, and share of the gap from mix to budgeted oracle. Means over the seeds "
        "that are listed, with intervals over test images and seeds; "
        f"{SPREAD}: standard deviation over the seeds, in points"
    )
    return Table(caption, ("policy", "seeds", *columns.header), tuple(rows), name="means")


def _tabulate_differences(entries: Sequence[Entry]) -> Table:
    pairs, rows, measure = list_pairs(entries), [], entries[0].runs[0].measure
    num_resamples = entries[0].runs[0].metrics["bootstrap"]["num_resamples"]
    for pair, (p_value, adjusted) in zip(pairs, find_p_values(pairs), strict=True):
        share = pair.estimate(mean_gap_share)
        cost = pair.estimate(default_cost)
        rows.append(
            (
                f"{pair.first.label} - {pair.second.label}",
                format_difference(pair.estimate(mean_to_mix)),
                *format_p_values(p_value, adjusted, num_resamples, len(pairs)),
                "-" if share is None else format_share(share),
                format_difference(pair.estimate(default_score)),
                "-" if cost is None else _format_cost(cost, measure),
            )
        )
    caption = (
        "First policy minus second, on the same resamples of images and seeds: points above the mix, "
        "averaged over log-spaced budgets, with two-sided p-values; share of the gap; score and "
        f"{measure.noun} at the default prices. {describe_floor(num_resamples, len(pairs))}"
    )
    header = (
        "difference",
        "mean over budgets",
        "p",
        "p (Holm)",
        "share of gap",
        "default score",
        f"default {measure.unit}",
    )
    return Table(caption, header, tuple(rows), name="differences")


def _format_cost(cost: Estimate, measure: CostMeasure) -> str:
    """Return a difference in costs with its sign and interval, as text."""
    form = "+.1f" if measure is TOKENS else "+.3g"
    return write_estimate(cost, lambda value: write_number(value, form))


def _tabulate_merits(entries: Sequence[Entry]) -> Table:
    metrics = [metric for metric in list_metrics(Family.FRONT) if metric.is_compared]
    columns = _Columns(entries, *(metric.label for metric in metrics))
    rows = [
        (
            entry.label,
            *columns.fill([(entry.find(metric), partial(format_metric, metric)) for metric in metrics]),
        )
        for entry in entries
    ]
    caption = "Metrics of whole fronts over linear cost, in percent"
    return Table(caption, ("policy", *columns.header), tuple(rows), name="merits")


def _tabulate_defaults(entries: Sequence[Entry]) -> Table:
    columns = _Columns(entries, "score", "to best fixed")
    rows: list[tuple[str, ...]] = []
    run = entries[0].runs[0]
    for name, fixed in zip(run.scales, run.metrics["fixed"], strict=True):
        score = Estimate(*(np.array(fixed["score"][key]) for key in ("value", "low", "high")))
        cells = [format_score(score), *[""] * (len(columns.header) - 1)]
        rows.append((f"scale {name}", format_tokens(fixed["cost"]["value"]), *cells))
    for entry in entries:
        cost = entry.find(default_cost)
        rows.append(
            (
                f"{entry.label}, default price",
                "-" if cost is None else format_tokens(cost.estimate.value),
                *columns.fill(
                    [
                        (entry.find(default_score), format_score),
                        (entry.find(to_best_fixed), format_difference),
                    ]
                ),
            )
        )
    header = ("policy", run.measure.noun, *columns.header)
    return Table("Fixed scales and default prices", header, tuple(rows), name="defaults")


def _tabulate_errors(entries: Sequence[Entry]) -> Table:
    columns = _Columns(entries, "smallest sufficient", "too coarse", "too fine")
    metrics = (smallest_right, too_coarse, too_fine)
    rows = [
        (entry.label, *columns.fill([(entry.find(metric), format_share) for metric in metrics]))
        for entry in entries
    ]
    caption = (
        "At default prices: shares of questions that get their smallest sufficient scale, a coarser and a "
        "finer one, among those that some scale answers correctly"
    )
    return Table(caption, ("policy", *columns.header), tuple(rows), name="errors")


def _tabulate_budgets(entries: Sequence[Entry]) -> Table:
    metrics, measure = entries[0].runs[0].metrics, entries[0].runs[0].measure
    budgets, num_resamples = metrics["budgets"], metrics["bootstrap"]["num_resamples"]
    num_steps = NUM_SHOWN_BUDGETS + 1
    shown = [round(step * (len(budgets) - 1) / num_steps) for step in range(1, num_steps)]
    rows = []
    for entry in entries:
        score = entry.at_budgets(score_at_budgets)
        rows.append((entry.label, *(format_score(score[position]) for position in shown)))
    header = tuple(f"\N{LESS-THAN OR EQUAL TO} {format_tokens(budgets[position])}" for position in shown)
    caption = f"Score within budgets of mean {measure.noun}"
    if num_resamples > MOST_BAND_RESAMPLES:
        caption += f", intervals from the first {MOST_BAND_RESAMPLES:,} of {num_resamples:,} resamples"
    return Table(caption, ("policy", *header), tuple(rows), "budgets")


def _tabulate_guarantees(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        guarantees = [run.metrics["guarantee"]["predictors"][entry.name] for run in entry.runs]
        num_certified = sum(guarantee["price"] is not None for guarantee in guarantees)
        drop = entry.find_drop()
        rows.append(
            (
                entry.label,
                f"{num_certified} of {len(guarantees)}",
                format_tokens(np.mean([guarantee["cost"]["value"] for guarantee in guarantees])),
                format_difference(None if drop is None else drop.estimate),
            )
        )
    settings, unit = entries[0].runs[0].metrics["guarantee"], entries[0].runs[0].measure.unit
    caption = (
        f"Guarantee: at most {100 * settings['alpha']:g} points below the finest scale, for each policy "
        f"with probability {1 - settings.get('level', settings['delta']):.4g}; number of seeds with a "
        f"certified price, and mean {unit} and drop on test at that price (at the finest scale without one)"
    )
    return Table(caption, ("policy", "certified", unit, "drop"), tuple(rows), name="guarantee")


def tabulate_runs(runs: Sequence[Run]) -> Table:
    """Tabulate folder, predictor, seed and settings of every run."""
    rows = tuple(
        (
            str(number),
            run.folder.name,
            run.about,
            MINUS if run.seed is None else str(run.seed),
            " ".join(run.settings) or MINUS,
        )
        for number, run in enumerate(runs, start=1)
    )
    return Table("Compared runs", ("run", "folder", "predictor", "seed", "settings"), rows, name="runs")


PAGE = "compare.html"
MOST_PRINTED_ROWS = 30


def compare_runs(
    folders: Sequence[Path], *, output: Path, provenance: Provenance, print_tables: bool = False
) -> list[Entry]:
    """Compare the runs in these folders, combining policies over several seeds, and return the policies.

    Prints the first table, or all tables with `print_tables`, and writes tables, figures and page into
    `output`. Raises ValueError if the runs have different labels, FileNotFoundError if there is no run.
    """
    runs = find_runs(folders)
    entries = list_entries(runs)
    tables, notes = build_comparison_tables(entries), write_notes(entries, runs)
    tables += tabulate_run_costs(entries, runs)
    metrics = runs[0].metrics
    num_images = metrics["split"]["num_images"]
    banners = find_banners(test_images=num_images)
    title = f"{metrics['backbone']} on {metrics['task']}"
    output.mkdir(parents=True, exist_ok=True)
    plot = plot_runs(entries)
    figure = draw_paper(plot, f"{title}, test split")
    files = save_figure(figure, output / "front")
    write_tables(output / "tables", tables)
    write_page(
        output / PAGE,
        "compare.html.j2",
        title=title,
        entries=entries,
        runs=runs,
        split=metrics["split"],
        num_resamples=metrics["bootstrap"]["num_resamples"],
        banners=[*banners, *find_seed_banners(entries)],
        finding=write_finding(entries, num_images),
        files=attach_files(files),
        runs_table=tabulate_runs(runs),
        most_for_all_pairs=MOST_FOR_ALL_PAIRS,
        tables=tables,
        notes=notes,
        most_drawn=MOST_DRAWN,
        most_band_resamples=MOST_BAND_RESAMPLES,
        charts=[draw_page(plot)],
        picture=encode_picture(figure),
        provenance=provenance,
        fingerprints=metrics["fingerprints"],
    )
    printed = tables if print_tables else tables[:1]
    print(
        "\n\n".join([*(shorten(table) for table in printed), *notes, *filter(None, [frame_banners(banners)])])
    )
    print(f"\ncomparison of {len(runs)} runs: {output.resolve() / PAGE}")
    return entries


def shorten(table: Table) -> str:
    """Return the first rows of a table as text for the terminal, with the number of rows left out."""
    left_out = len(table.rows) - MOST_PRINTED_ROWS
    if left_out <= 0:
        return str(table)
    first = replace(table, rows=table.rows[:MOST_PRINTED_ROWS])
    return f"{first}\n... {left_out:,} more in tables/{table.name}.md"
