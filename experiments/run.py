"""Label, train, measure latency and evaluate: everything up to the report.

Each step is the command of that name with the same configuration. Steps that are up to date are skipped, so
that running again without changes only evaluates. Imported outcomes (`experiment=imported`) are not labelled
or timed, as they have no backbone. `main` returns the validation metric `optimized_metric`, for sweeps.

Examples:
    tokenscale run                                                # the embedded backbone on `scenes`
    tokenscale run task=textvqa backbone=m3_llava_7b trainer=gpu  # published weights, on a GPU
    tokenscale run -m predictor=cross_attention,mlp seed=0,1  # a sweep of four jobs, compared at the end
"""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import (
    format_given_command,
    is_one_after_another,
    is_sweep,
    record_command,
)

log = logging.getLogger(__name__)


@entry_point("run")
def main(config: DictConfig) -> float:
    from experiments.labels.configured import label_configured
    from experiments.labels.division import check_labels
    from experiments.reporting.console import format_records
    from experiments.reporting.latency import describe_latency, format_latency
    from experiments.reporting.summary import Steps, describe_comparison
    from experiments.results.run_folders import check_link, point_link
    from experiments.tasks.base import SPLITS
    from experiments.tasks.imported import BACKBONE
    from experiments.training.configured import check_objects, measure_if_writable, train_configured
    from m3_backbone.outcomes.manifest import read_manifest
    from m3_backbone.outcomes.options import Options

    check_objects(config)
    latest, folder = Path(config.latest), Path(HydraConfig.get().runtime.output_dir)
    check_link(latest, folder)
    steps = Steps(config.print_tables)
    is_imported = config.backbone.name == BACKBONE
    if is_imported:
        check_labels(config.paths.labels, SPLITS, allow_small=config.allow_small)
    else:
        summary = label_configured(
            config,
            command=format_given_command(),
            make_record=record_command,
            is_one_after_another=is_one_after_another(),
            needed=SPLITS,
        )
        steps.add("labelled", summary.describe(), config.paths.labels, lambda: summary)
    records = train_configured(config)
    options = Options.of(read_manifest(Path(config.paths.labels)))
    names = ", ".join(record.name for record in records)
    steps.add("trained", names, config.paths.predictors, lambda: format_records(records, options))
    measured = measure_if_writable(config) if config.latency.num_images and not is_imported else None
    if measured is not None:
        path, timings = measured
        steps.add("timed", describe_latency(timings), path, lambda: format_latency(timings))
    # Imported here: the libraries of plots take seconds, and nothing before needs them.
    from experiments.reporting.configured import evaluate_configured, format_results

    findings, value = evaluate_configured(config)
    steps.add("evaluated", describe_comparison(findings.comparison), folder)
    try:
        point_link(latest, folder)
    except OSError as error:
        log.warning("%s still points at an earlier run: %s", latest, error)
    if not is_sweep():
        print(f"\n{steps}\n")
    print(format_results(config, findings))
    return value


if __name__ == "__main__":
    main()
