"""Hyperparameter search of a predictor: trials and pruning."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import optuna

from experiments.training.space import Parameter, suggest
from experiments.training.study import SharedStudy, find_origin
from experiments.training.subset import SUBSET, Subset
from experiments.training.trackers.base import FitRuns, Tracker, track_fit
from experiments.training.trained import TrainingSettings, identify_labels, normalize
from experiments.training.trainer import TrainingLabels, value_bounds
from predictor.base import FitContext, ScalePredictor
from predictor.policy.front import policy_value
from predictor.policy.pricing import choose_price
from predictor.training import MONITOR

# Config groups of the search itself, as opposed to those of the predictor.
SEARCH_GROUPS = {"study", "tune", "hydra"}


def search(
    make_predictor: Callable[[Sequence[str]], ScalePredictor],
    space: Sequence[Parameter],
    *,
    labels: Path,
    worker: SharedStudy,
    settings: TrainingSettings,
    num_trials: int,
    defaults: Mapping[str, Any] | None = None,
    around: Any = None,
    make_trainer: Callable[..., lightning.Trainer] | None = None,
    tracker: Tracker | None = None,
) -> optuna.Study:
    """Run trials until the study of `worker` has `num_trials` finished ones, together with other workers.

    `make_predictor` makes the predictor for the overrides of a trial. If the study has a single objective,
    trials are pruned by the value of each epoch. `defaults` are tried first. `around` are the settings that
    all trials share, as JSON. Each trial is a run of `tracker`, with values on validation. Returns the study.
    Raises ValueError for a study that was started with other settings, labels or another space.
    """
    source, study = TrainingLabels(labels, settings), worker.study
    made_of = normalize(
        {
            **identify_labels(source.manifest),
            "validation_fraction": settings.validation_fraction,
            "seed": settings.seed,
            "objectives": worker.objectives,
            "tolerance": settings.tolerance,
            "predictor": around,
            "space": [asdict(parameter) for parameter in space],
            **({"trainer": dict(settings.trainer)} if settings.trainer else {}),
            **({} if settings.subset == Subset() else {SUBSET: settings.subset.identify(labels)}),
        }
    )
    stored = study.user_attrs.get("made_of", made_of)
    if differing := [key for key in {**stored, **made_of} if stored.get(key) != made_of.get(key)]:
        raise ValueError(
            f"study {study.study_name!r} in {worker.folder} was started with other {', '.join(differing)}, "
            "and its trials cannot be compared with these: give this study another name with study.name=NAME"
        )
    study.set_user_attr("made_of", made_of)
    worker.begin_with(dict(defaults or {}))
    folder, objectives = worker.folder / "trials", worker.objectives
    trials = _Trials(make_predictor, space, source, folder, objectives, make_trainer, tracker)
    worker.run(trials.run, num_trials)
    return study


@dataclass
class _Trials:
    """Training and measurement of one trial at a time."""

    make_predictor: Callable[[Sequence[str]], ScalePredictor]
    space: Sequence[Parameter]
    source: TrainingLabels
    folder: Path
    objectives: Sequence[str]
    make_trainer: Callable[..., lightning.Trainer] | None
    tracker: Tracker | None

    def run(self, trial: optuna.Trial) -> tuple[float, ...]:
        predictor = self.make_predictor(suggest(trial, self.space))
        # Named after the first attempt, so that a retry resumes from its last epoch.
        origin = find_origin(trial)
        name = f"{trial.study.study_name}-trial-{origin}"
        settings = {**trial.study.user_attrs["made_of"], "parameters": trial.params}
        with track_fit(
            self.tracker,
            "tune",
            name,
            settings,
            unfinished=self.folder / f"{origin}.run",
            ends_with=optuna.TrialPruned,
        ) as runs:
            values = self._measure(trial, predictor, self.folder / str(origin), runs)
            runs.show_results({f"validation/{key}": value for key, value in values.items()})
        for key, value in values.items():
            trial.set_user_attr(key, value)
        return tuple(values[objective] for objective in self.objectives)

    def _measure(
        self, trial: optuna.Trial, predictor: ScalePredictor, checkpoint_dir: Path, runs: FitRuns
    ) -> dict[str, float]:
        """Train the predictor of a trial and return the value of every objective."""
        train, validation = self.source.parts
        score = self.source.measured_parts[1].outcomes.score.astype(np.float64)
        mix, oracle = value_bounds(*self.source.measured_parts)
        gap = max(oracle - mix, 1e-9)

        make_trainer = runs.wrap(self.make_trainer)
        if make_trainer is not None and len(self.objectives) == 1 and self.objectives[0] == "recovered":
            make_trainer = partial(_make_pruned, make_trainer, _Pruning(trial, mix, gap))
        try:
            predictor.fit(train, validation, FitContext(checkpoint_dir, make_trainer))
        except optuna.TrialPruned:
            shutil.rmtree(checkpoint_dir, ignore_errors=True)
            raise
        shutil.rmtree(checkpoint_dir, ignore_errors=True)
        estimates = predictor.predict(validation.inputs)
        cost = predictor.features.count_paid_tokens(validation.inputs)
        options, tolerance = validation.outcomes.options, self.source.settings.tolerance
        default_cost = choose_price(estimates, cost, score, tolerance=tolerance).cost
        return {
            "recovered": (policy_value(estimates, cost, score) - mix) / gap,
            "tokens": default_cost * (1.0 if options is None else options.unit),
            "flops": predictor.count_flops(validation.inputs),
            "parameters": float(predictor.num_parameters),
        }


class _Pruning(lightning.Callback):
    """Reports the value of every epoch to the study, and prunes a trial that is worse than the others."""

    def __init__(self, trial: optuna.Trial, mix: float, gap: float) -> None:
        self.trial, self.mix, self.gap = trial, mix, gap

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = (trainer.callback_metrics[MONITOR].item() - self.mix) / self.gap
        self.trial.report(value, step=trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"worse than the others after epoch {trainer.current_epoch + 1}")


def _make_pruned(
    make_trainer: Callable[..., lightning.Trainer],
    pruning: _Pruning,
    *,
    callbacks: Sequence[lightning.Callback] = (),
    **arguments: Any,
) -> lightning.Trainer:
    return make_trainer(callbacks=[*callbacks, pruning], **arguments)
