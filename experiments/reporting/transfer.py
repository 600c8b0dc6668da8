"""Tables, plots and the page of the transfer of predictors to other tasks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.command_line.running import Provenance
from experiments.evaluation.comparison import Comparison
from experiments.evaluation.metrics import default_cost, mean_gap_share, mean_to_mix, to_best_fixed
from experiments.evaluation.stability import Stability
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.findings import describe_record
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.numbers import (
    format_difference,
    format_share,
    format_tokens,
    is_known,
    write_estimate,
    write_number,
)
from experiments.reporting.page import attach_files, encode_picture, save_figure, write_page
from experiments.reporting.run_findings import warn_of_few_seeds
from experiments.reporting.tables import Table, write_tables
from experiments.results.transfer import Row, compare_versions
from experiments.tasks.sizes import Banner, is_too_few
from predictor.files import write_json

PAGE, FIGURES = "transfer.html", "transfer.json"


def write_transfer(
    rows: Sequence[Row],
    output: Path,
    *,
    predictor: str,
    backbone: str,
    fingerprints: Mapping[str, Mapping[str, str]],
    provenance: Provenance,
    banners: Sequence[Banner] = (),
    split: str = "test",
) -> list[Table]:
    """Write `transfer.json`, `tables/`, `TARGET.pdf` and `.svg`, and `transfer.html`; return the tables.

    `fingerprints` are those of the labels, by target. Names of targets are percent-encoded in names of files.
    `banners` warn of small numbers of images and samples.
    """
    output.mkdir(parents=True, exist_ok=True)
    seeds = list(rows[0].trainings)
    shown_seed = f", seed {seeds[0]}" if len(seeds) > 1 else ""
    tables = [tabulate(rows)]
    if stabilities := compare_versions(rows):
        tables.append(tabulate_stability(stabilities, seeds))
    write_tables(output / "tables", tables)
    plain = [
        {name: getattr(row, name) for name in ("target", "trained_on", "priced_on")}
        | {
            name: estimate and asdict(estimate)
            for name, estimate in (("gap_share", row.gap_share), ("to_mix", row.to_mix))
        }
        | {"seeds": list(row.trainings)}
        | {
            other.measure.key: _summarize_other(row, number)
            for number, other in enumerate(row.others, start=1)
        }
        for row in rows
    ]
    plain += [
        {"target": changed, "original": original, "seeds": seeds, **asdict(stability)}
        for (original, changed), stability in stabilities.items()
    ]
    write_json(output / FIGURES, json.loads(json.dumps(plain, default=float)))
    comparisons = join_rows(rows)
    charts, pictures, files = {}, {}, {}
    for target, comparison in comparisons.items():
        for number, in_measure in enumerate([comparison, *join_others(rows, target)]):
            measure = in_measure.measure
            label = f"{target}, {measure.unit}" if rows[0].others else target
            plot = plot_comparison(in_measure)
            figure = draw_paper(plot, f"{predictor}, {backbone} on {target}, {split} split{shown_seed}")
            name = quote(target, safe="") + (f"_{measure.key}" if number else "")
            files[label] = attach_files(save_figure(figure, output / name))
            charts[label], pictures[label] = draw_page(plot), encode_picture(figure)
    write_page(
        output / PAGE,
        "transfer.html.j2",
        title=f"{predictor} of {backbone}",
        comparisons=comparisons,
        pictures=pictures,
        files=files,
        tables=tables,
        split=split,
        sentences=write_sentences(rows),
        records=write_records(rows),
        charts=list(charts.values()),
        fingerprints=fingerprints,
        provenance=provenance,
        seeds=seeds,
        banners=[*banners, *warn_of_few_seeds(len(seeds), [predictor])],
    )
    return tables


def join_rows(rows: Sequence[Row]) -> dict[str, Comparison]:
    """Return one comparison per target with the results of all its rows, which share the test samples."""
    return {
        target: replace(rows[0].comparison, policies=[row.result.rename(row.name) for row in rows])
        for target, rows in group_by_target(rows).items()
    }


def group_by_target(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each target."""
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    return targets


def join_others(rows: Sequence[Row], target: str) -> list[Comparison]:
    """Return one comparison per further cost measure with the results of all rows of a target."""
    of_target = group_by_target(rows)[target]
    return [
        replace(
            same_measure[0],
            policies=[
                other.policies[0].rename(row.name) for row, other in zip(of_target, same_measure, strict=True)
            ],
        )
        for same_measure in zip(*(row.others for row in of_target), strict=True)
    ]


def _summarize_other(row: Row, measure: int) -> dict[str, Any]:
    """Return the metrics of a row in another cost measure, for `transfer.json`."""
    metrics = {"gap_share": row.find(mean_gap_share, measure), "to_mix": row.find(mean_to_mix, measure)}
    return {name: estimate and asdict(estimate) for name, estimate in metrics.items()}


def write_records(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the number of the evaluation on each target's test split."""
    records = {row.target: row.record for row in rows if row.record is not None}
    return [f"{target}: {describe_record(record)}" for target, record in records.items()]


def write_sentences(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the share of the gap that each predictor recovers on each target."""
    sentences = []
    for target, rows_of_target in group_by_target(rows).items():
        comparison = rows_of_target[0].comparison
        shares = [
            f"{format_share(row.gap_share)} {row.name}" for row in rows_of_target if is_known(row.gap_share)
        ]
        if is_too_few(comparison.num_images):
            conclusion = f"there is no finding: test images are too few ({comparison.num_images})."
        elif comparison.nothing_to_gain:
            conclusion = "no choice of scales beats the mix, so there is nothing to recover."
        elif shares:
            conclusion = f"the share of the gap from mix to budgeted oracle is {'; '.join(shares)}."
        else:
            conclusion = "the share of the gap does not exist at the costs that the predictors reach."
        sentences.append(f"On {target} {conclusion}")
    return sentences


def tabulate(rows: Sequence[Row]) -> Table:
    """Tabulate share of the gap, points above the mix, and results at the default price, per row."""
    measure = rows[0].comparison.measure
    unit, cells = measure.unit, []
    for row in rows:
        cells.append(
            (
                f"{row.target}, {row.name}",
                format_share(row.gap_share),
                format_difference(row.to_mix),
                format_tokens(_find_default_cost(row)),
                format_difference(row.find(to_best_fixed)),
                *(
                    format_difference(row.find(mean_to_mix, number))
                    for number in range(1, len(row.others) + 1)
                ),
            )
        )
    header = (
        *(
            "tested on, trained on",
            "share of gap",
            "points above the mix",
            f"default {unit}",
            "to best fixed",
        ),
        *(f"above the mix, {other.measure.unit}" for other in rows[0].others),
    )
    where = f"the columns default {unit} and to best fixed" if rows[0].others else "the last two columns"
    caption = (
        f"At matched mean {measure.noun}, averaged over log-spaced budgets: share of the gap from mix to "
        f"budgeted oracle, and points above the mix; {where} are at the default price"
        f"{describe_seeds(list(rows[0].trainings))}"
    )
    return Table(caption, header, tuple(cells), "transfer")


def _find_default_cost(row: Row) -> float:
    """Return the mean cost at the default price; every policy has one."""
    estimate = row.find(default_cost)
    assert estimate is not None
    return float(estimate.value)


def describe_seeds(seeds: Sequence[int]) -> str:
    """Return the end of a caption for values over several training seeds; empty for one."""
    return "" if len(seeds) == 1 else f"; means over training seeds {', '.join(map(str, seeds))}"


def tabulate_stability(
    stabilities: Mapping[tuple[str, str], Stability], seeds: Sequence[int] = (0,)
) -> Table:
    """Tabulate the stability of choices, and what is lost, per pair of versions of the same samples."""
    rows = [
        (
            f"{changed}, {stability.num_samples:,} samples of {original}",
            *(format_share(share) for share in (stability.same_scale, stability.within_one_step)),
            write_estimate(stability.tokens, lambda value: write_number(value, "+.1f")),
            *(
                format_difference(loss)
                for loss in (stability.lost, stability.lost_finest, stability.lost_by_choices)
            ),
        )
        for (original, changed), stability in stabilities.items()
    ]
    header = (
        *("changed version", "same scale", "within one step", "tokens more"),
        *("points lost", "lost at the finest", "lost by changed choices"),
    )
    caption = (
        "The same questions in another version, at the default price of the original: shares of the samples "
        "with the same scale and with one at most a step away, visual tokens more, and points lost: with the "
        "choices of each version, with the finest scale, and on the changed version by its choices in place "
        f"of those of the original{describe_seeds(seeds)}"
    )
    return Table(caption, header, tuple(rows), "stability")
