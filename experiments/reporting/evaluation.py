"""Evaluation of trained predictors, from label folder to report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line.running import Provenance
from experiments.evaluation.comparing import check_names, compare_policies
from experiments.evaluation.comparison import Comparison
from experiments.evaluation.costs import CostMeasure, list_cost_measures
from experiments.evaluation.fronts import Floats, Grid
from experiments.evaluation.guarantee import (
    CheckedGuarantee,
    Guarantee,
    GuaranteeTerms,
    apply_guarantee,
    check_guarantee,
    find_guarantee,
    find_unseen,
)
from experiments.evaluation.needs import map_attributes, tabulate_needs
from experiments.evaluation.policies import (
    CascadeEntry,
    PredictorPolicy,
    check_starts,
    read_signal,
    rename_duplicates,
)
from experiments.evaluation.published import find_published, relate
from experiments.evaluation.sensitive_groups import Deciding
from experiments.evaluation.sensitivity import divide_by_sensitivity
from experiments.evaluation.statistics import Bootstrap
from experiments.evaluation.tariff import MeasuredTariff, Tariff, measure_savings
from experiments.labels.division import find_label_banners
from experiments.labels.held_out import EvaluationRecorder
from experiments.labels.resampled import check_resampled
from experiments.reporting.calibration_display import draw_reliability
from experiments.reporting.draw import draw_paper
from experiments.reporting.evaluation_tables import OPTIONAL_TABLES, list_tables
from experiments.reporting.failures import FailuresLink
from experiments.reporting.findings import Findings
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.gallery import Gallery
from experiments.reporting.needs import draw_needs
from experiments.reporting.opened_test import OpenedTest, find_ladders, open_test
from experiments.reporting.page import render_figure, save_figure
from experiments.reporting.report import Figures, write_report
from experiments.reporting.sensitive import find_other_labels
from experiments.reporting.tables import delete_tables, write_tables
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


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """Settings of `evaluate`: what is compared with the trained predictors, and how it is measured.

    A cascade pays for every scale that it tries. `reference` names the policy that the others are compared
    with. Only runs with the same `bootstrap` can be compared with each other. `deciding` says whose answers
    divide the test questions by their need of resolution; it may name backbones whose labels are beside the
    evaluated ones, as `ladders` does: backbones whose fixed scales are compared with the first predictor. If
    `deciding` selects one group of questions, no guarantees are reported, since these hold for all
    questions together. With a `tariff`, costs are also measured by it.
    """

    cascades: Sequence[CascadeEntry] = ()
    reference: str | None = "question_only"
    grid: Grid = Grid()
    bootstrap: Bootstrap = Bootstrap()
    guarantee: GuaranteeTerms = GuaranteeTerms()
    deciding: Deciding = Deciding()
    ladders: Sequence[str] = ()
    tariff: Tariff | MeasuredTariff | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation: findings, content of `metrics.json`, and the test samples for the report.

    `estimates` `[num_samples, num_scales]` are those of the first predictor on the test samples.
    """

    findings: Findings
    metrics: Mapping[str, Any]
    test: Labels
    estimates: Floats

    @property
    def title(self) -> str:
        """Backbone and task."""
        return f"{self.metrics['backbone']} on {self.metrics['task']}"


def evaluate_predictors(
    trained: Sequence[TrainedPredictor],
    *,
    labels: Path,
    task: Task,
    recorder: EvaluationRecorder,
    plan: EvaluationPlan = EvaluationPlan(),
    latency: Path | None = None,
    batch_size: int = 1,
) -> Evaluation:
    """Compare trained predictors, the first of which is the main one, and return their evaluation.

    Operating points and guarantees come from calibration samples on which no calibrator of these predictors
    was fitted, default prices from training, and metrics from the test split. The test split is opened last,
    after the evaluation has been recorded. Milliseconds come from the folder `latency`, if it has timings of
    these predictors in batches of `batch_size` on this machine. Raises ValueError if labels, predictors and
    task do not belong together.
    """
    check_names([predictor.name for predictor in trained])
    manifest = read_manifest(labels)
    check_data(task, manifest, labels)
    # Unusable inputs are refused before the test split is opened.
    check_resampled(labels, manifest["fingerprints"])
    other_labels = find_other_labels(labels, plan.deciding)
    ladder_labels = find_ladders(labels, plan.ladders)
    prepared = _prepare(trained, labels, plan, latency, batch_size)
    test = open_test(trained, labels, recorder, plan.deciding, other_labels, ladder_labels)
    outcomes = test.labels.outcomes
    policies = list_policies(trained, prepared.estimates, test.labels)
    comparison, *others = _compare(policies, prepared, test, plan)
    findings = Findings(
        comparison,
        others,
        guarantees=[] if test.subset else _check_guarantees(trained, policies, prepared, test.labels, plan),
        starts_from={entry.name: entry.predictor for entry in prepared.cascades},
        units={entry.name: entry.prices.default.unit for entry in trained},
        stored_unit=1.0 if outcomes.options is None else outcomes.options.unit,
        published=relate(
            find_published(manifest["backbone"], manifest["task"]),
            task,
            manifest.get("limit", {}).get("test"),
        ),
        record=test.record,
        banners=[
            *find_label_banners(labels, ("train", "calibration")),
            *find_banners(test_images=comparison.num_images),
        ],
        subset=test.subset,
        sensitive=None
        if test.membership is None
        else divide_by_sensitivity(comparison, outcomes, test.membership),
        savings=None
        if plan.tariff is None
        else measure_savings(comparison, outcomes, plan.tariff, prepared.by_length),
        cost_parts={measure.key: measure.mean_parts(outcomes) for measure in prepared.measures},
    )
    metrics = _collect(findings, outcomes, manifest, {entry.name: entry.seed for entry in trained})
    return Evaluation(findings, metrics, test.labels, policies[0].test)


def _collect(
    findings: Findings, test: OutcomeTable, manifest: Mapping[str, Any], seeds: Mapping[str, int | None]
) -> dict[str, Any]:
    """Return the content of `metrics.json`; a cascade has the seed of the predictor that it starts from."""
    starts_from = findings.starts_from
    metrics = collect_metrics(
        findings.comparison,
        test,
        task=manifest["task"],
        backbone=manifest["backbone"],
        seeds={**seeds, **{name: seeds.get(str(start)) for name, start in starts_from.items()}},
        starts_from=starts_from,
    )
    metrics |= collect_extras(findings.guarantees, findings.units, findings.published, findings.stored_unit)
    if findings.sensitive is not None:
        metrics["sensitive"] = collect_sensitive(findings.sensitive)
    if findings.savings is not None:
        metrics["output_lengths"] = collect_savings(findings.savings)
    return metrics


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Inputs of the comparison that are known before the test split is opened.

    `estimates` and `guarantees` are by predictor. `by_length` are cost measures of the tariff for answers of
    several lengths; the first one is also in `measures`.
    """

    calibration: Labels
    estimates: Mapping[str, Floats]
    guarantees: Mapping[str, Guarantee]
    cascades: Sequence[CascadeEntry]
    measures: Sequence[CostMeasure]
    by_length: Sequence[CostMeasure]


def _prepare(
    trained: Sequence[TrainedPredictor],
    labels: Path,
    plan: EvaluationPlan,
    latency: Path | None,
    batch_size: int,
) -> _Prepared:
    calibration = read_unseen(labels, trained)
    options = calibration.outcomes.options
    predictors = {entry.name: entry.predictor for entry in trained}
    estimates = {name: predictor.predict(calibration.inputs) for name, predictor in predictors.items()}
    terms = plan.guarantee
    guarantees = {
        name: find_guarantee(
            estimates[name],
            predictor.features.charge(calibration),
            alpha=terms.alpha,
            delta=terms.delta,
            num_joint=len(trained) if terms.joint else 1,
            most_questions=terms.most_questions,
        )
        for name, predictor in predictors.items()
    }
    cascades = rename_duplicates(plan.cascades, predictors)
    if options is not None and not options.has_confidence and cascades:
        log.info("the imported outcomes have no confidences, which cascades read: cascades are left out")
        cascades = []
    check_starts(cascades, predictors)
    for entry in cascades:
        read_signal(calibration.outcomes, entry.signal)  # refuses labels without it
    timings = None
    if latency and options is None:
        timings = find_timings(
            latency,
            calibration.outcomes.fingerprints,
            {entry.name: entry.digest for entry in trained},
            batch_size,
            long_answers=isinstance(plan.tariff, MeasuredTariff),
        )
    measures = list_cost_measures(
        calibration.outcomes,
        predictors,
        calibration.inputs,
        starts_from={entry.name: entry.predictor for entry in cascades if entry.predictor is not None},
        timings=timings,
    )
    if plan.ladders and options is not None:
        raise ValueError("ladders: imported outcomes have costs of their own: leave it out")
    by_length = []
    if plan.tariff is not None:
        if options is not None:
            raise ValueError("tariff: imported outcomes have costs of their own: leave it out")
        by_length = plan.tariff.list_measures(measures)
        measures.append(by_length[0])
    return _Prepared(calibration, estimates, guarantees, cascades, measures, by_length)


def _compare(
    policies: Sequence[PredictorPolicy], prepared: _Prepared, test: OpenedTest, plan: EvaluationPlan
) -> list[Comparison]:
    """Return the comparison in each cost measure."""
    on_both = {policy.name: (policy.calibration, policy.test) for policy in policies}
    return [
        compare_policies(
            prepared.calibration.outcomes,
            test.labels.outcomes,
            [*policies, *(entry.enter(on_both) for entry in prepared.cascades)],
            measure=measure,
            resampled=test.resampled,
            ladders=test.ladders,
            reference=plan.reference,
            grid=plan.grid,
            bootstrap=plan.bootstrap,
        )
        for measure in prepared.measures
    ]


def _check_guarantees(
    trained: Sequence[TrainedPredictor],
    policies: Sequence[PredictorPolicy],
    prepared: _Prepared,
    test: Labels,
    plan: EvaluationPlan,
) -> list[CheckedGuarantee]:
    checked = []
    for entry, policy in zip(trained, policies, strict=True):
        guarantee, charged = prepared.guarantees[entry.name], entry.predictor.features.charge(test)
        check = check_guarantee(
            guarantee,
            policy.test,
            charged,
            num_resplits=plan.guarantee.num_resplits,
            confidence=plan.bootstrap.confidence,
            seed=plan.bootstrap.seed,
        )
        realized = apply_guarantee(guarantee, policy.test, charged, plan.bootstrap)
        checked.append(CheckedGuarantee(entry.name, guarantee, realized, check))
    return checked


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


def write_evaluation(
    evaluation: Evaluation,
    output: Path,
    *,
    provenance: Provenance,
    gallery: Gallery,
    viewer: Viewer | None = None,
    failures: FailuresLink | None = None,
) -> None:
    """Write metrics, tables, figures and report of an evaluation into the folder `output`.

    `viewer` shows the images of the gallery as the backbone sees them. `failures` says where the report links
    to images with wrong answers.
    """
    findings, test, title = evaluation.findings, evaluation.test.outcomes, evaluation.title
    output.mkdir(parents=True, exist_ok=True)
    delete_tables(output / "tables", OPTIONAL_TABLES)
    write_results(output, evaluation.metrics, findings.comparison, findings.others, findings.guarantees)
    write_tables(output / "tables", list_tables(findings))
    figures = write_figures(output, findings.comparison, test, title)
    page_tables = write_report(
        output / REPORT,
        findings,
        test,
        evaluation.estimates,
        title=title,
        figures=figures,
        gallery=replace(gallery, view=make_view(test, viewer, evaluation.test.inputs.statistic_names)),
        provenance=provenance,
        failures=failures,
    )
    write_tables(output / "tables", page_tables)


def write_figures(output: Path, comparison: Comparison, test: OutcomeTable, title: str) -> Figures:
    """Write every figure as PDF and SVG, the front also as PNG."""
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
    return Figures(picture, files)
