"""Evaluate trained predictors on the test split: fronts, intervals, a report.

`evaluate_predictors` is the plain function behind the command: it reads labels and predictors, and writes
`metrics.json`, `draws.safetensors`, `milliseconds.json`, `report.html`, its tables in `tables/` and its
figures as PDF and SVG.

Examples:
    tokenscale evaluate  # the predictors that `tokenscale train` trained
    tokenscale evaluate predictor=mlp task=textvqa backbone=m3_llava_7b  # others of each
    tokenscale evaluate num_resamples=1000 gallery=0                     # a faster one, without a gallery
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import Provenance, entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> float:
    """Evaluate, and return the validation metric `optimized_metric`: a sweep never sees the test split."""

    from experiments.labels.division import check_labels
    from experiments.reporting.evaluation import evaluate_predictors
    from experiments.training.configured import open_configured
    from experiments.training.trained import VALIDATION_METRICS

    measure = VALIDATION_METRICS[config.optimized_metric]
    hydra = HydraConfig.get()
    check_labels(config.paths.labels, ("calibration", "test"), allow_small=config.allow_small)
    trained = open_configured(config)
    evaluate_predictors(
        trained,
        labels=Path(config.paths.labels),
        latency=Path(config.paths.latency),
        batch_size=config.latency.batch_size,
        task=instantiate(config.task, _convert_="all"),
        output=Path(hydra.runtime.output_dir),
        records=Path(config.paths.evaluations),
        allow_unrecorded=config.allow_unrecorded,
        provenance=Provenance.of(config),
        cascades=[instantiate(entry) for entry in config.get("cascades", {}).values()],
        reference=config.reference,
        num_budgets=config.num_budgets,
        num_prices=config.num_prices,
        num_resamples=config.num_resamples,
        confidence=config.confidence,
        bootstrap_seed=config.bootstrap_seed,
        alpha=config.guarantee.alpha,
        delta=config.guarantee.delta,
        joint=config.guarantee.joint,
        most_questions=config.guarantee.most_questions,
        num_resplits=config.guarantee.num_resplits,
        gallery=config.gallery,
        seed=config.seed,
    )
    return measure(trained[0].record)


if __name__ == "__main__":
    main()
