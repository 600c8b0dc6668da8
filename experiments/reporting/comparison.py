"""The comparison of finished runs, as tables and as a page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.reporting.compare_tables import build_comparison_tables, write_notes
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.front_plot import MOST_DRAWN, plot_runs
from experiments.reporting.page import Provenance, encode_picture, save_figure, write_page
from experiments.reporting.tables import Table, write_tables
from experiments.results.entries import MOST_FOR_ALL_PAIRS, Entry, list_entries
from experiments.results.finished import find_runs
from experiments.results.resamples import MOST_BAND_RESAMPLES
from experiments.tasks.sizes import find_banners, frame_banners

PAGE = "compare.html"
MOST_PRINTED_ROWS = 30


def compare_runs(folders: Sequence[Path], *, output: Path, provenance: Provenance) -> list[Entry]:
    """Lay the runs in these folders side by side, their policies over several seeds as one.

    Raises ValueError where runs are not about the same labels, FileNotFoundError where there is none.
    """
    runs = find_runs(folders)
    entries = list_entries(runs)
    tables, notes = build_comparison_tables(entries), write_notes(entries, runs)
    metrics = runs[0].metrics
    banners = find_banners(test_images=metrics["split"]["num_images"])
    title = f"{metrics['backbone']} on {metrics['task']}"
    output.mkdir(parents=True, exist_ok=True)
    plot = plot_runs(entries)
    figure = draw_paper(plot, f"{title}, test split")
    save_figure(figure, output / "front")
    write_tables(output / "tables", tables)
    write_page(
        output / PAGE,
        "compare.html.j2",
        title=title,
        entries=entries,
        runs=runs,
        split=metrics["split"],
        num_resamples=metrics["bootstrap"]["num_resamples"],
        banners=banners,
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
    print(
        "\n\n".join([*(shorten(table) for table in tables), *notes, *filter(None, [frame_banners(banners)])])
    )
    print(f"\ncomparison of {len(runs)} runs: {output / PAGE}, beside front.pdf, front.svg and tables/")
    return entries


def shorten(table: Table) -> str:
    """The first rows of a table as text for the terminal, and the number of rows left out."""
    left_out = len(table.rows) - MOST_PRINTED_ROWS
    if left_out <= 0:
        return str(table)
    first = replace(table, rows=table.rows[:MOST_PRINTED_ROWS])
    return f"{first}\n... {left_out:,} more in tables/{table.name}.md"
