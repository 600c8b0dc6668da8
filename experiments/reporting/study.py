"""Conclusion of a hyperparameter search: table, figure, and the best trials as experiment files.

The same validation part selects within each trial (epochs, trees, neighbours, shares) and ranks the trials.
Therefore the values are optimistic, most of all that of the best trial; every output with them says so.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.study import StudyDirection
from optuna.trial import TrialState

from experiments.command_line.next_commands import suggest_command
from experiments.reporting.front_plot import NEUTRAL, PALETTE
from experiments.reporting.page import save_figure, style_axes
from experiments.reporting.tables import format_table
from experiments.training.space import format_overrides, write_experiment
from experiments.training.study import FINISHED, OBJECTIVES
from m3_backbone.outcomes.shards import write_text


def draw_study(study: optuna.Study, labels: Sequence[str]) -> Figure:
    """Draw the history of a study with one objective, or the Pareto plot (first over second) of several."""
    figure = Figure(figsize=(7, 4.4), layout="constrained", facecolor="white")
    ax: Axes = figure.subplots()
    if len(labels) == 1:
        _draw_history(ax, study, labels[0])
    else:
        _draw_pareto(ax, study, labels)
    style_axes(ax)
    ax.legend(fontsize="small", frameon=False)
    return figure


def _draw_history(ax: Axes, study: optuna.Study, label: str) -> None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = [
        (trial.number, trial.value)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        if trial.value is not None
    ]
    number, value = [trial.number for trial in complete], [trial.value or 0.0 for trial in complete]
    best = np.maximum if study.direction == StudyDirection.MAXIMIZE else np.minimum
    ax.plot(*np.reshape(pruned, (-1, 2)).T, "x", color=NEUTRAL, ms=5, label="pruned")
    ax.plot(number, value, "o", color=PALETTE[4], ms=5, label="trial")
    ax.step(number, best.accumulate(value), where="post", color=PALETTE[0], lw=2, label="best so far")
    ax.set(xlabel="trial", ylabel=label)


def _draw_pareto(ax: Axes, study: optuna.Study, labels: Sequence[str]) -> None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    points = np.array([trial.values[:2] for trial in complete])
    front = np.array(sorted((trial.values[1], trial.values[0]) for trial in study.best_trials))
    ax.plot(points[:, 1], points[:, 0], "o", color=PALETTE[4], ms=5, label="trial")
    ax.plot(front[:, 0], front[:, 1], "o-", color=PALETTE[0], ms=6, label="Pareto front")
    if points[:, 1].min() > 0:
        ax.set_xscale("log")
    ax.set(xlabel=labels[1], ylabel=labels[0])


SELECTION = (
    "Values are measured on the validation part that also selected each trial's epochs, trees, neighbours or "
    "shares: they are optimistic, most of all that of the best trial. Evaluate it on the test split for an "
    "unbiased value."
)


def conclude(
    study: optuna.Study, folder: Path, name: str, objectives: Sequence[str], fixed: Sequence[str]
) -> float:
    """Write figure and experiment files, print the best trials, and return the best first value.

    `fixed` are the overrides common to all trials. With several objectives each trial on the Pareto front
    gets a numbered file, and the best of them by the first objective also the file without a number.
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
            f"Command: tokenscale run --config-dir {folder} experiment={file}",
            "  or, once this file is in conf/experiment/, without --config-dir",
            f"Result: {result} on validation, trial {trial.number} of {num_finished} finished ones;",
            "  the same validation part selected its epochs, trees, neighbours or shares and ranked trials,",
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
    print(suggest_command("run", ["--config-dir", str(folder), f"experiment=tuned_{name}"]))
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
