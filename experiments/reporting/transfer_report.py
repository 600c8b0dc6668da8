"""What travels from task to task: a table, a front for every target, and a page with all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

from experiments.evaluation.comparison import Comparison, PolicyResult
from experiments.evaluation.metrics import default_cost, mean_gap_share, mean_to_mix, to_best_fixed
from experiments.evaluation.statistics import Estimate
from experiments.labels.held_out import EvaluationRecord
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.findings import describe_record
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.numbers import format_difference, format_share, format_tokens, is_known
from experiments.reporting.page import Provenance, encode_picture, save_figure, write_page
from experiments.reporting.tables import Table, write_tables
from experiments.tasks.sizes import Banner, is_too_few
from predictor.files import write_json

PAGE, FIGURES = "transfer.html", "transfer.json"


@dataclass(frozen=True, eq=False)
class Row:
    """One way to use a predictor on a target: what it was trained and priced on, and how it compares there.

    `comparison` is of that one predictor on the target's test split, in visual tokens.
    """

    target: str
    trained_on: str
    priced_on: str
    comparison: Comparison
    record: EvaluationRecord | None = None

    @property
    def name(self) -> str:
        """For legends."""
        if self.trained_on == self.priced_on:
            return f"trained on {self.trained_on}"
        return f"trained on {self.trained_on}, prices from {self.priced_on}"

    @property
    def result(self) -> PolicyResult:
        return self.comparison.policies[0]

    @property
    def gap_share(self) -> Estimate | None:
        """Share of the gap from mix to budgeted oracle over log-spaced budgets; None if there is no gap."""
        return self.result.find(mean_gap_share)

    @property
    def to_mix(self) -> Estimate:
        """Score above the mix at matched mean visual tokens, averaged over log budgets."""
        return self.result[mean_to_mix]


def write_transfer(
    rows: Sequence[Row],
    output: Path,
    *,
    predictor: str,
    backbone: str,
    fingerprints: Mapping[str, Mapping[str, str]],
    provenance: Provenance,
    banners: Sequence[Banner] = (),
) -> Table:
    """Write `transfer.json`, `tables/`, `TARGET.pdf` and `.svg`, and `transfer.html`; the table.

    `fingerprints` are those of the labels, by target. What no file can be called stands in names of files as
    it would in an address.
    `banners` warn of small numbers of images and samples.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = tabulate(rows)
    write_tables(output / "tables", [table])
    plain = [
        {name: getattr(row, name) for name in ("target", "trained_on", "priced_on")}
        | {
            name: found and asdict(found)
            for name, found in (("gap_share", row.gap_share), ("to_mix", row.to_mix))
        }
        for row in rows
    ]
    write_json(output / FIGURES, json.loads(json.dumps(plain, default=float)))
    comparisons, pictures = join_ways(rows), {}
    for target, comparison in comparisons.items():
        figure = draw_paper(plot_comparison(comparison), f"{predictor}, {backbone} on {target}, test split")
        save_figure(figure, output / quote(target, safe=""))
        pictures[target] = encode_picture(figure)
    write_page(
        output / PAGE,
        "transfer.html.j2",
        title=f"{predictor} of {backbone}",
        comparisons=comparisons,
        pictures=pictures,
        table=table,
        sentences=[*write_sentences(comparisons), *write_records(rows)],
        charts=[draw_page(plot_comparison(each)) for each in comparisons.values()],
        fingerprints=fingerprints,
        provenance=provenance,
        banners=banners,
    )
    return table


def join_ways(rows: Sequence[Row]) -> dict[str, Comparison]:
    """Target -> one comparison with all ways to use the predictor there, which share the test samples."""
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    return {
        target: replace(rows[0].comparison, policies=[row.result.rename(row.name) for row in rows])
        for target, rows in targets.items()
    }


def write_records(rows: Sequence[Row]) -> list[str]:
    """Which evaluation on its test split that of each target is, in words."""
    records = {row.target: row.record for row in rows if row.record is not None}
    return [f"{target}: {describe_record(record)}" for target, record in records.items()]


def write_sentences(comparisons: Mapping[str, Comparison]) -> list[str]:
    """What each way recovers on each target, in words."""
    sentences = []
    for target, comparison in comparisons.items():
        ways = [
            f"{format_share(result.find(mean_gap_share))} {result.name}"
            for result in comparison.policies
            if is_known(result.find(mean_gap_share))
        ]
        if is_too_few(comparison.num_images):
            result = f"there is no finding: test images are too few ({comparison.num_images})."
        elif ways and not comparison.nothing_to_gain:
            result = f"of the gap from mix to budgeted oracle are recovered: {'; '.join(ways)}."
        else:
            result = "no choice of scales beats the mix, so there is nothing to recover."
        sentences.append(f"On {target} {result}")
    return sentences


def tabulate(rows: Sequence[Row]) -> Table:
    """Per target and way: share of the gap, points above the mix, and what the default price does."""
    cells = []
    for row in rows:
        cells.append(
            (
                f"{row.target}, {row.name}",
                format_share(row.gap_share),
                format_difference(row.to_mix),
                format_tokens(row.result[default_cost].value),
                format_difference(row.result[to_best_fixed]),
            )
        )
    header = (
        "tested on, trained on", "of the gap", "points above the mix", "default tokens", "to best fixed"
    )  # fmt: skip
    caption = (
        "At matched mean visual tokens, averaged over log budget: share of the gap from mix to budgeted "
        "oracle, and points above the mix; and at the default price"
    )
    return Table(caption, header, tuple(cells), "transfer")
