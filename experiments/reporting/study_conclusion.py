"""What a finished search leaves: a table, a picture, and the best as experiment files.

All trials share one validation part: it chooses within each trial (epochs, trees, neighbours, shares) and
ranks the trials. So the values are optimistic, that of the best trial most; every output with them says so.
"""

from collections.abc import Sequence
from pathlib import Path

import optuna

from experiments.reporting.export import save_figure
from experiments.reporting.study_display import draw_study
from experiments.reporting.text_table import format_table
from experiments.training.space import format_overrides, write_experiment
from experiments.training.study import FINISHED, OBJECTIVES
from m3_backbone.outcomes.shards import write_text

SELECTION = (
    "Values are of the validation part that also chose each trial's epochs, trees, neighbours or shares: "
    "they are optimistic, that of the best trial most. Evaluate it on the test split for an unbiased value."
)


def conclude(
    study: optuna.Study, folder: Path, name: str, objectives: Sequence[str], fixed: Sequence[str]
) -> float:
    """Write picture and experiment files, print the best trials, return the best first value.

    `fixed` are the overrides that every trial had. With several objectives each trial that no other one beats
    gets a file of its own, and the first of them, by the first objective, the plain name as well.
    """
    first = OBJECTIVES[objectives[0]]
    best = sorted(study.best_trials, key=lambda trial: trial.values[0], reverse=first.direction == "maximize")
    num_finished = len(study.get_trials(deepcopy=False, states=FINISHED))
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    files = {f"tuned_{name}": best[0]}
    if len(objectives) > 1:
        files |= {f"tuned_{name}_{trial.number}": trial for trial in best}
    for file, trial in files.items():
        result = ", ".join(f"{key} {value:.4g}" for key, value in zip(objectives, trial.values, strict=True))
        comments = [
            f"Command: python -m experiments.run --config-dir {folder} experiment={file}",
            "  or, once this file is in conf/experiment/, without --config-dir",
            f"Result: {result} on validation, trial {trial.number} of {num_finished} finished ones;",
            "  the same validation part chose its epochs, trees, neighbours or shares and ranked the trials,",
            "  so the value is optimistic: evaluate on the test split for an unbiased one",
        ]
        content = write_experiment([*fixed, *format_overrides(trial.params)], comments)
        write_text(folder / "experiment" / f"{file}.yaml", content)
    pictures = save_figure(
        draw_study(study, [OBJECTIVES[objective].label for objective in objectives]),
        folder / ("history" if len(objectives) == 1 else "pareto"),
        ("png", "pdf"),
    )
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len(objectives) == 1:
        shown = sorted(complete, key=lambda trial: trial.values[0], reverse=first.direction == "maximize")
    else:
        shown = best
    print(_format_trials(shown[:10], objectives))
    print(SELECTION)
    print(f"{num_finished} finished trials, {num_finished - len(complete)} of them pruned")
    print(f"picture: {pictures[0]}")
    print(f"python -m experiments.run --config-dir {folder} experiment=tuned_{name}")
    return float(best[0].values[0])


def _format_trials(trials: Sequence[optuna.trial.FrozenTrial], objectives: Sequence[str]) -> str:
    names = sorted({name for trial in trials for name in trial.params})
    rows = [["trial", *objectives, *(name.removeprefix("predictor.") for name in names)]]
    for trial in trials:
        values = [f"{value:.4g}" for value in trial.values]
        settings = [trial.params.get(name, "-") for name in names]
        texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings]
        rows.append([str(trial.number), *values, *texts])
    return format_table(rows)
