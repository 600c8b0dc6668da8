"""Label, train, measure latency and evaluate: everything up to the report.

Each step is the command of that name with the same configuration. Steps that are up to date are skipped, so
that running again without changes only evaluates. Imported outcomes (`experiment=imported`) are not labelled
or timed, as they have no backbone. `main` returns the validation metric `optimized_metric`, for sweeps.

Examples:
    tokenscale run                                                # the embedded backbone on `scenes`
    tokenscale run task=textvqa backbone=m3_llava_7b trainer=gpu  # published weights, on a GPU
    tokenscale run -m predictor=cross_attention,mlp seed=0,1  # a sweep of four jobs, compared at the end
"""

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments import label, latency
from experiments.config import entry_point, is_sweep

if TYPE_CHECKING:
    from experiments.reporting.summary import Steps

log = logging.getLogger(__name__)


@entry_point("run")
def main(config: DictConfig) -> float:
    from experiments.labels.division import check_labels
    from experiments.reporting.console import format_records
    from experiments.reporting.summary import Steps, describe_comparison
    from experiments.results.run_folders import check_link, point_link
    from experiments.tasks.base import SPLITS
    from experiments.tasks.imported import BACKBONE
    from experiments.training.configured import make_predictors, make_tracker, train_configured
    from experiments.training.trainer import quiet_lightning
    from m3_backbone.outcomes.manifest import read_manifest
    from m3_backbone.outcomes.options import Options

    quiet_lightning()
    # Objects that cannot be built are refused before hours of labelling.
    make_predictors(config)
    make_tracker(config)
    instantiate(config.trainer)
    latest, folder = Path(config.latest), Path(HydraConfig.get().runtime.output_dir)
    check_link(latest, folder)
    steps = Steps()
    is_imported = config.backbone.name == BACKBONE
    if is_imported:
        check_labels(config.paths.labels, SPLITS, allow_small=config.allow_small)
    else:
        summary = label.label_configured(config, needed=SPLITS)
        steps.add("labelled", summary.describe(), config.paths.labels)
        if config.print_tables:
            print(summary)
    records = train_configured(config)
    names = ", ".join(record.name for record in records)
    steps.add("trained", names, config.paths.predictors)
    if config.print_tables:
        print(format_records(records, Options.of(read_manifest(Path(config.paths.labels)))))
    if config.latency.num_images and not is_imported:
        measure(config, steps)
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


def measure(config: DictConfig, steps: "Steps") -> None:
    """Time backbone and predictors; a folder that cannot be written is only logged."""
    from experiments.reporting.latency import describe_latency, format_latency

    try:
        path, timings = latency.measure_configured(config)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        log.warning(
            "no cost is counted in milliseconds, as timings cannot be written: %s; paths.latency=FOLDER "
            "names another folder for them",
            error,
        )
    else:
        steps.add("timed", describe_latency(timings), path)
        if config.print_tables:
            print(format_latency(timings))


if __name__ == "__main__":
    main()
