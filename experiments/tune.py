"""Search for the best hyperparameters of a predictor with Optuna, on validation.

Optuna chooses the parameters of the search space; every trial trains the predictor and is measured on the
validation part of the train split. Calibration and test split are not read. Any number of these commands can
work on the same study together, and running one again resumes the study.

Examples:
    tokenscale tune predictor=cross_attention tune=cross_attention           # 40 trials
    tokenscale tune predictor=mlp tune=mlp study.num_trials=100  # another predictor, more trials
    tokenscale tune predictor=mlp tune=mlp study.storage=sqlite:///study.db  # several workers, one study
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.command_line.entry_point import entry_point


@entry_point("tune")
def main(config: DictConfig) -> float:
    import optuna

    from experiments.labels.division import check_labels
    from experiments.reporting.study import conclude
    from experiments.settings.check import check_settings
    from experiments.training.configured import make_tracker, read_settings
    from experiments.training.space import find_defaults, read_space
    from experiments.training.study import SharedStudy
    from experiments.training.trainer import quiet_lightning
    from experiments.training.tuning import SEARCH_GROUPS, search
    from predictor.base import ScalePredictor

    quiet_lightning()
    check_labels(config.paths.labels, ("train",), allow_small=config.allow_small)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    hydra = HydraConfig.get()
    given = [f"predictor={hydra.runtime.choices['predictor']}", *hydra.overrides.task]

    def make_predictor(overrides: Sequence[str]) -> ScalePredictor:
        # The configuration is composed for each trial, so that it may choose config groups too.
        trial_config = check_settings("tune", compose(str(hydra.job.config_name), [*given, *overrides]))
        predictor: ScalePredictor = instantiate(trial_config["predictor"], _convert_="all")
        return predictor

    space = read_space(OmegaConf.to_container(config.tune.space, resolve=True))
    folder = Path(config.study.folder)
    study = search(
        make_predictor,
        space,
        labels=Path(config.paths.labels),
        worker=SharedStudy(
            config.study.name,
            folder,
            objectives=list(config.study.objectives),
            storage=config.study.storage,
            sampler=instantiate(config.study.sampler),
            pruner=instantiate(config.study.pruner),
            heartbeat=config.study.heartbeat,
            grace=config.study.grace,
        ),
        settings=read_settings(config),
        num_trials=config.study.num_trials,
        defaults=find_defaults(space, config),
        around=OmegaConf.to_container(config.predictor, resolve=True),
        make_trainer=partial(instantiate, config.trainer),
        tracker=make_tracker(config),
    )
    fixed = [text for text in given if re.split(r"\W", text.lstrip("+~"))[0] not in SEARCH_GROUPS]
    return conclude(study, folder, config.study.name, list(config.study.objectives), fixed)


if __name__ == "__main__":
    main()
