"""Evaluate trained predictors on the test split: fronts, intervals, a report.

Writes `report.html`, its tables in `tables/`, its plots as PDF and SVG, `metrics.json`, `draws.safetensors`
and, if these predictors were timed on this machine, `milliseconds.json`. In Python:
`experiments.reporting.evaluation.evaluate_predictors` and `write_evaluation`.

Examples:
    tokenscale evaluate  # the predictors that `tokenscale train` trained
    tokenscale evaluate predictor=mlp task=textvqa backbone=m3_llava_7b  # another predictor, task and model
    tokenscale evaluate sensitive.only=sensitive  # only questions that need resolution, after `resample`
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> float:
    """Evaluate, and return the validation metric `optimized_metric`: a sweep never sees the test split."""
    from experiments.reporting.configured import evaluate_configured, format_results

    findings, value = evaluate_configured(config)
    print(format_results(config, findings))
    return value


if __name__ == "__main__":
    main()
