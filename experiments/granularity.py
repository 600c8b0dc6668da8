"""Tabulate which scale the questions of a labelled task need, by question type and size.

Tabulates, per question type and per size and number of items, the smallest scale within a point of the best;
how well question and image predict the smallest sufficient scale of a sample; and whether a policy that knows
the attributes of a sample gains more than one that has question and image, with intervals and an equivalence
margin.

The tables and figures of the needed scale are printed and written first. Then the models are fitted on the
train split, which takes minutes, and their prices chosen on calibration; their comparison on the test split
is recorded like an evaluation, with a digest of each model.

Examples:
    tokenscale granularity                                    # the embedded backbone on `scenes`
    tokenscale granularity task=textvqa backbone=m3_llava_7b  # another task and backbone
    tokenscale granularity margin=0.02  # a scale suffices within two points of the best
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import make_recorder


@entry_point("granularity")
def main(config: DictConfig) -> None:
    from experiments.evaluation.known_facts import check_margin
    from experiments.evaluation.statistics import Bootstrap
    from experiments.reporting.granularity import report_granularity

    check_margin(config.equivalence_margin)
    report_granularity(
        Path(config.paths.labels),
        Path(HydraConfig.get().runtime.output_dir),
        margin=config.margin,
        equivalence_margin=config.equivalence_margin,
        bootstrap=Bootstrap(config.num_resamples, config.confidence, config.bootstrap_seed),
        seed=config.seed,
        recorder=make_recorder(config),
    )


if __name__ == "__main__":
    main()
