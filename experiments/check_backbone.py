"""Check that a backbone keeps its contract: costs, answers, unusual inputs, fingerprints.

Each check of `m3_backbone.conformance` prints ok, failed with what was expected and found, or why it does not
apply. The exit status is 1 if any check failed.

Examples:
    tokenscale check-backbone backbone=tiny_m3             # the embedded backbone
    tokenscale check-backbone backbone=random_vlm      # a small Qwen3-VL with random weights
    tokenscale check-backbone 'checks=[drafts, fingerprints]'  # checks whose names contain these words
"""

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("check_backbone")
def main(config: DictConfig) -> None:
    from experiments.labels.progress import show_progress
    from experiments.reporting.console import format_checks
    from experiments.serving.conformance import adaptive_model_is_saved_and_loaded
    from m3_backbone.conformance import CHECKS, Subject, run_checks, select_checks

    subject = Subject(partial(instantiate, config.backbone, _convert_="all"))
    checks = select_checks((*CHECKS, adaptive_model_is_saved_and_loaded), config.checks)
    name, results = subject.backbone.name, []
    with show_progress("checks", total=len(checks), unit="checks") as bar:
        for result in run_checks(subject, checks):
            results.append(result)
            bar.update()
    print(format_checks(name, results))
    if any(result.outcome == "failed" for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
