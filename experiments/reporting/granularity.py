"""Granularity of a labelled task: tables and figures first, then the slow comparison of models."""

from pathlib import Path

from experiments.evaluation.needs import map_attributes, tabulate_needs
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.division import find_label_banners
from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.progress import show_progress
from experiments.reporting import needs as needs_tables
from experiments.reporting.findings import describe_record
from experiments.reporting.needs import count_models, draw_needs, fit_models, judge_models
from experiments.reporting.page import save_figure
from experiments.reporting.tables import Table, write_tables
from experiments.tasks.base import SPLITS
from experiments.tasks.sizes import frame_banners
from m3_backbone.outcomes.labels import read_labels
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.shards import write_text

NAME = "granularity"


def report_granularity(
    labels: Path,
    output: Path,
    *,
    margin: float,
    equivalence_margin: float,
    bootstrap: Bootstrap,
    seed: int,
    recorder: EvaluationRecorder,
) -> None:
    """Print and write needs of the question types, then compare models of the needed scale.

    The needs are a description of the test split; the models are an evaluation. The test split is opened, and
    recorded, once for each, so that the needs are there before the models are fitted. Writes
    `granularity.md`, `tables/` and the heat maps as PNG, PDF and SVG into `output`.
    """
    manifest = read_manifest(labels)
    title = f"{manifest['backbone']} on {manifest['task']}"
    test, record = recorder.open_test(labels)
    needs = tabulate_needs(test.outcomes, margin)
    maps = map_attributes(test.outcomes, margin)
    tables = [needs_tables.tabulate_needs(needs, test.outcomes.scales, margin, title)]
    banners = frame_banners(find_label_banners(labels, SPLITS))
    output.mkdir(parents=True, exist_ok=True)
    figure = draw_needs(needs, maps, test.outcomes.scales, f"{title}, test split")
    save_figure(figure, output / NAME, ("png", "pdf", "svg"))
    _write(output, tables, [describe_record(record), banners])
    print("\n\n".join(filter(None, [*map(str, tables), banners])))
    print(f"\ntables and heat map: {output / NAME}.*", flush=True)

    num_models = count_models(test)
    with show_progress("models of the needed scale", total=num_models, unit="models") as progress:
        models = fit_models(labels, seed, progress)
        if models is None:
            print(describe_record(record))
            return
        digests = {**models[0].digests, **models[1].digests}
        test, record = recorder.open_test(labels, digests)
        calibration = read_labels(labels, "calibration")
        compared = judge_models(*models, calibration, test, bootstrap, equivalence_margin)
        progress.update(num_models - progress.n)
    notes = [describe_record(record), banners]
    _write(output, [*tables, *compared], notes)
    print("\n" + "\n\n".join([*map(str, compared), notes[0]]))
    print(f"\ntables and heat map: {output / NAME}.*")


def _write(output: Path, tables: list[Table], notes: list[str]) -> None:
    """Write the tables and notes as Markdown, and each table into `tables/`."""
    text = "\n\n".join([*(table.to_markdown() for table in tables), *filter(None, notes)])
    write_text(output / f"{NAME}.md", f"{text}\n")
    write_tables(output / "tables", tables)
