"""The evaluation of a configuration: what `tokenscale evaluate` and `tokenscale run` do and print."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.command_line.next_commands import format_next
from experiments.command_line.running import Provenance, is_sweep, make_recorder
from experiments.evaluation.fronts import Grid
from experiments.evaluation.guarantee import GuaranteeTerms
from experiments.evaluation.sensitive_groups import Deciding
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.division import check_labels
from experiments.reporting.evaluation import REPORT, EvaluationPlan, evaluate_predictors, write_evaluation
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.failures import FailuresLink, find_failures
from experiments.reporting.findings import Findings, write_sentences
from experiments.reporting.gallery import Gallery
from experiments.reporting.summary import write_line, write_summary
from experiments.reporting.views import find_configured_viewer
from experiments.results.tracked import show_evaluation
from experiments.tasks.imported import BACKBONE
from experiments.tasks.sizes import frame_banners
from experiments.training.configured import make_tracker, open_configured
from experiments.training.trained import VALIDATION_METRICS
from m3_backbone.outcomes.manifest import read_manifest

log = logging.getLogger(__name__)


def evaluate_configured(config: DictConfig) -> tuple[Findings, float]:
    """Evaluate the predictors of a configuration; return the findings and its validation metric."""
    measure = VALIDATION_METRICS[config.optimized_metric]
    check_labels(config.paths.labels, ("calibration", "test"), allow_small=config.allow_small)
    trained, tracker = open_configured(config), make_tracker(config)
    task = instantiate(config.task, _convert_="all")
    output = Path(HydraConfig.get().runtime.output_dir)
    runs = (output.parent, Path(config.paths.outputs) / "runs")
    fingerprints = read_manifest(Path(config.paths.labels))["fingerprints"]
    next_failures = format_next(*_list_next(config)[:1], config=config).removeprefix("next: ")
    failures = FailuresLink(find_failures(runs, fingerprints), output, next_failures)
    viewer = find_configured_viewer(config.backbone)
    evaluation = evaluate_predictors(
        trained,
        labels=Path(config.paths.labels),
        task=task,
        recorder=make_recorder(config),
        plan=read_plan(config),
        latency=Path(config.paths.latency),
        batch_size=config.latency.batch_size,
    )
    write_evaluation(
        evaluation,
        output,
        provenance=Provenance.of(config),
        gallery=Gallery(task.image, config.gallery, config.seed),
        viewer=viewer,
        failures=failures,
    )
    if tracker is not None and is_sweep():
        log.info("a tracker shows no evaluation of a sweep, as a search must not read the test split")
    elif tracker is not None:
        settings: Any = OmegaConf.to_container(config, resolve=True)
        show_evaluation(tracker, output, name=config.predictor.name, configuration=settings)
    return evaluation.findings, measure(trained[0].record)


def read_plan(config: DictConfig) -> EvaluationPlan:
    """Return the evaluation plan of a configuration."""
    return EvaluationPlan(
        cascades=[instantiate(entry) for entry in config.get("cascades", {}).values()],
        reference=config.reference,
        grid=Grid(config.num_budgets, config.num_prices),
        bootstrap=Bootstrap(config.num_resamples, config.confidence, config.bootstrap_seed),
        guarantee=GuaranteeTerms(**config.guarantee),
        deciding=Deciding(**config.sensitive),
        ladders=list(config.ladders),
        tariff=instantiate(config.tariff, _convert_="all") if config.get("tariff") else None,
    )


def _list_next(config: DictConfig) -> tuple[str, ...]:
    """Return the commands that may come next; imported outcomes have no backbone to use."""
    return () if config.backbone.name == BACKBONE else ("failures", "answer", "publish")


def format_results(config: DictConfig, findings: Findings) -> str:
    """Return the terminal output of an evaluation: a summary, one line in a sweep, or all tables."""
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    if config.print_tables:
        banners = [frame_banners(findings.banners)] if findings.banners else []
        parts = [*map(str, list_tables(findings)), "\n".join(write_sentences(findings)), *banners]
    elif is_sweep():
        return write_line(findings, folder)
    else:
        parts = [write_summary(findings)]
    last_lines = [f"report: {folder / REPORT}", format_next(*_list_next(config), config=config)]
    return "\n\n".join([*parts, "\n".join(filter(None, last_lines))])
