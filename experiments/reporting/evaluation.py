"""Evaluation of trained predictors, from label folder to report."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Provenance
from experiments.evaluation.comparison import Comparison, check_names, compare_policies
from experiments.evaluation.costs import list_cost_measures
from experiments.evaluation.fronts import Grid
from experiments.evaluation.guarantee import (
    CheckedGuarantee,
    apply_guarantee,
    check_guarantee,
    find_guarantee,
    find_unseen,
)
from experiments.evaluation.needs import map_attributes, tabulate_needs
from experiments.evaluation.policies import CascadeEntry, PredictorPolicy, read_signal
from experiments.evaluation.published import find_published, relate
from experiments.evaluation.sensitive_groups import BY_SAMPLED, Deciding, find_membership
from experiments.evaluation.sensitivity import divide_by_sensitivity
from experiments.evaluation.statistics import Bootstrap
from experiments.evaluation.tariff import MeasuredTariff, Tariff, measure_savings
from experiments.labels.division import find_label_banners
from experiments.labels.held_out import open_test
from experiments.labels.resampled import check_resampled, read_resampled
from experiments.reporting.calibration_display import draw_reliability
from experiments.reporting.draw import draw_paper
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.failures import FailuresLink
from experiments.reporting.findings import Findings
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.needs import draw_needs
from experiments.reporting.page import render_figure, save_figure
from experiments.reporting.report import write_report
from experiments.reporting.sensitive import find_other_labels, select_group, write_subset
from experiments.reporting.tables import write_tables
from experiments.reporting.views import Viewer, make_view
from experiments.results.metrics_json import (
    PICTURE,
    collect_extras,
    collect_metrics,
    collect_savings,
    collect_sensitive,
    write_results,
)
from experiments.results.timings import find_timings
from experiments.tasks.base import Task, check_data
from experiments.tasks.sizes import find_banners
from experiments.training.trained import TrainedPredictor
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.shards import write_bytes
from m3_backbone.outcomes.table import OutcomeTable

log = logging.getLogger(__name__)

REPORT = "report.html"


def evaluate_predictors(
    trained: Sequence[TrainedPredictor],
    *,
    labels: Path,
    latency: Path | None = None,
    batch_size: int = 1,
    task: Task,
    output: Path,
    records: Path,
    provenance: Provenance,
    allow_unrecorded: bool = False,
    cascades: Sequence[CascadeEntry] = (),
    reference: str | None = "question_only",
    grid: Grid = Grid(),
    bootstrap: Bootstrap = Bootstrap(),
    alpha: float = 0.02,
    delta: float = 0.1,
    joint: bool = False,
    most_questions: int | None = None,
    num_resplits: int = 1000,
    deciding: Deciding = BY_SAMPLED,
    tariff: Tariff | MeasuredTariff | None = None,
    gallery: int = 6,
    seed: int = 0,
    viewer: Viewer | None = None,
    failures: FailuresLink | None = None,
) -> Findings:
    """Compare trained predictors, the first of which is the main one of the report, and return the findings.

    `cascades` are compared with them; a cascade pays for every scale that it tries. Operating points and
    guarantees come from calibration samples on which no calibrator of these predictors was fitted, default
    prices from training, and metrics from the test split. The test split is opened last, after the evaluation
    has been recorded in the folder `records` (`labels.held_out`). Milliseconds come from the folder
    `latency`, if it has timings of these predictors on this machine. Writes metrics, tables, figures and
    report into `output`. `task` provides the images of the gallery. Images are resampled with
    `bootstrap_seed`; only runs with the same one can be compared. `deciding` says whose answers divide the
    test questions by their need of resolution; labels of other backbones are read beside `labels`. If only
    one group of them is evaluated, there are no guarantees, which hold for all questions together. With a
    `tariff`, costs are also measured by it. `seed` selects the samples of the gallery, whose images `viewer`
    shows as the backbone sees them. `failures` says where the report links to images with wrong answers.
    Raises ValueError if labels, predictors and task do not belong together.
    """
    check_names([predictor.name for predictor in trained])
    manifest = read_manifest(labels)
    check_data(task, manifest, labels)
    # Unusable inputs are refused before the test split is opened.
    check_resampled(labels, manifest["fingerprints"])
    other_labels = find_other_labels(labels, deciding)
    calibration = read_unseen(labels, trained)
    estimates = {entry.name: entry.predictor.predict(calibration.inputs) for entry in trained}
    guarantees = {
        entry.name: find_guarantee(
            estimates[entry.name],
            entry.predictor.features.charge(calibration),
            alpha=alpha,
            delta=delta,
            num_joint=len(trained) if joint else 1,
            most_questions=most_questions,
        )
        for entry in trained
    }
    options = calibration.outcomes.options
    if options is not None and not options.has_confidence and cascades:
        log.info("the imported outcomes have no confidences, which cascades read: cascades are left out")
        cascades = ()
    cascades = rename_duplicates(cascades, estimates)
    check_starts(cascades, estimates)
    for entry in cascades:
        read_signal(calibration.outcomes, entry.signal)  # refuses labels without it
    starts_from = {entry.name: entry.predictor for entry in cascades}
    digests = {entry.name: entry.digest for entry in trained}
    measures = list_cost_measures(
        calibration.outcomes,
        {entry.name: entry.predictor for entry in trained},
        calibration.inputs,
        starts_from={name: start for name, start in starts_from.items() if start is not None},
        timings=find_timings(
            latency,
            calibration.outcomes.fingerprints,
            digests,
            batch_size,
            long_answers=isinstance(tariff, MeasuredTariff),
        )
        if latency and options is None
        else None,
    )

    opening: dict[str, Any] = {
        "records": records,
        "command": provenance.command,
        "configuration": provenance.config,
        "allow_unrecorded": allow_unrecorded,
    }
    by_length = []
    if tariff is not None:
        if options is not None:
            raise ValueError("tariff: imported outcomes have costs of their own: leave it out")
        by_length = tariff.list_measures(measures)
        measures.append(by_length[0])

    test, record = open_test(labels, predictors=digests, **opening)
    resampled = read_resampled(labels, test.outcomes)

    def read_outcomes_of(backbone: str) -> OutcomeTable:
        return open_test(other_labels[backbone], **opening)[0].outcomes

    membership = find_membership(test.outcomes, resampled, deciding, read_outcomes_of)
    subset = ""
    if deciding.only is not None and membership is not None:
        rows, subset = select_group(membership, deciding), write_subset(membership, deciding)
        test, guarantees, membership = test.select(rows), {}, None
        resampled = None if resampled is None else resampled.select(rows)
    policies = list_policies(trained, estimates, test)
    on_both = {policy.name: (policy.calibration, policy.test) for policy in policies}
    comparison, *others = (
        compare_policies(
            calibration.outcomes,
            test.outcomes,
            [*policies, *(entry.enter(on_both) for entry in cascades)],
            measure=measure,
            resampled=resampled,
            reference=reference,
            grid=grid,
            bootstrap=bootstrap,
        )
        for measure in measures
    )
    findings = Findings(
        comparison,
        others,
        guarantees=[
            CheckedGuarantee(
                policy.name,
                guarantees[policy.name],
                apply_guarantee(
                    guarantees[policy.name],
                    policy.test,
                    entry.predictor.features.charge(test),
                    bootstrap,
                ),
                check_guarantee(
                    guarantees[policy.name],
                    policy.test,
                    entry.predictor.features.charge(test),
                    num_resplits=num_resplits,
                    confidence=bootstrap.confidence,
                    seed=bootstrap.seed,
                ),
            )
            for entry, policy in zip(trained, policies, strict=True)
            if policy.name in guarantees
        ],
        starts_from=starts_from,
        units={entry.name: entry.prices.default.unit for entry in trained},
        published=relate(
            find_published(manifest["backbone"], manifest["task"]),
            task,
            manifest.get("limit", {}).get("test"),
        ),
        record=record,
        banners=[
            *find_label_banners(labels, ("train", "calibration")),
            *find_banners(test_images=comparison.num_images),
        ],
        subset=subset,
        sensitive=None
        if membership is None
        else divide_by_sensitivity(comparison, test.outcomes, membership),
        savings=None if tariff is None else measure_savings(comparison, test.outcomes, tariff, by_length),
        cost_parts={measure.key: measure.mean_parts(test.outcomes) for measure in measures},
    )
    seeds = {entry.name: entry.seed for entry in trained}
    metrics = collect_metrics(
        comparison,
        test.outcomes,
        task=manifest["task"],
        backbone=manifest["backbone"],
        seeds=seeds | {name: seeds.get(str(start)) for name, start in starts_from.items()},
        starts_from=starts_from,
    )
    output.mkdir(parents=True, exist_ok=True)
    metrics |= collect_extras(findings.guarantees, findings.units, findings.published)
    if findings.sensitive is not None:
        metrics["sensitive"] = collect_sensitive(findings.sensitive)
    if findings.savings is not None:
        metrics["output_lengths"] = collect_savings(findings.savings)
    write_results(output, metrics, comparison, others, findings.guarantees)
    title = f"{manifest['backbone']} on {manifest['task']}"
    write_tables(output / "tables", list_tables(findings))
    picture, figures = write_figures(output, comparison, test.outcomes, title)
    page_tables = write_report(
        output / REPORT,
        findings,
        test.outcomes,
        policies[0].test,
        title=title,
        picture=picture,
        read_image=task.image,
        provenance=provenance,
        per_category=gallery,
        seed=seed,
        view=make_view(test.outcomes, viewer, test.inputs.statistic_names),
        figures=figures,
        failures=failures,
    )
    write_tables(output / "tables", page_tables)
    return findings


def list_policies(
    trained: Sequence[TrainedPredictor], estimates: Mapping[str, np.ndarray], test: Labels
) -> list[PredictorPolicy]:
    """Return the policies of predictors, given their estimates on the calibration samples by name."""
    return [
        PredictorPolicy(
            entry.name, estimates[entry.name], entry.predictor.predict(test.inputs), entry.prices.default
        )
        for entry in trained
    ]


def read_unseen(labels: Path, trained: Sequence[TrainedPredictor]) -> Labels:
    """Return the calibration samples on which no calibrator of these predictors was fitted.

    Raises ValueError for predictors of another backbone.
    """
    calibration = read_labels(labels, "calibration")
    for entry in trained:
        entry.predictor.check_backbone(calibration.outcomes.fingerprints)
    if not trained:
        return calibration
    unseen = [find_unseen(entry.predictor, calibration.outcomes) for entry in trained]
    return calibration.select(np.logical_and.reduce(unseen))


def check_starts(cascades: Sequence[CascadeEntry], predictors: Collection[str]) -> None:
    """Raise ValueError if a cascade starts from a predictor that is not compared."""
    for entry in cascades:
        if entry.predictor not in (None, *predictors):
            raise ValueError(
                f"{entry.name} starts from {entry.predictor!r}, which is not among the compared predictors: "
                f"{', '.join(predictors)}"
            )


def rename_duplicates(cascades: Sequence[CascadeEntry], taken: Iterable[str]) -> list[CascadeEntry]:
    """Return the cascades, renamed if they share the name of a predictor or of an earlier cascade."""
    names, renamed = set(taken), []
    for entry in cascades:
        name = entry.name
        while name in names:
            name = f"{name} (cascade)"
        names.add(name)
        renamed.append(replace(entry, name=name))
    return renamed


def write_figures(
    output: Path, comparison: Comparison, test: OutcomeTable, title: str
) -> tuple[bytes, dict[str, list[Path]]]:
    """Write every figure as PDF and SVG, the front also as PNG; return the PNG, and the others by figure."""
    front = draw_paper(plot_comparison(comparison), f"{title}, test split")
    files = {"front": save_figure(front, output / "front")}
    maps = map_attributes(test)
    needs = draw_needs(tabulate_needs(test), maps, test.scales, f"{title}, test split")
    files["granularity"] = save_figure(needs, output / "granularity")
    first = comparison.policies[0]
    if first.reliability is not None:
        diagrams = draw_reliability(first.reliability, comparison.scales, f"{first.name}, {title}")
        files["calibration"] = save_figure(diagrams, output / "calibration")
    picture = render_figure(front, "png")
    write_bytes(output / PICTURE, picture)
    return picture, files
