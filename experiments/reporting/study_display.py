"""Draws a study: how the best value rose, or which trials no other one beats in every objective."""

from collections.abc import Sequence

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.study import StudyDirection
from optuna.trial import TrialState

from experiments.reporting.displays import NEUTRAL, PALETTE


def draw_study(study: optuna.Study, labels: Sequence[str]) -> Figure:
    """The history of a study with one objective, the Pareto plot (first over second) of one with several."""
    figure = Figure(figsize=(7, 4.4), layout="constrained", facecolor="white")
    ax: Axes = figure.subplots()
    if len(labels) == 1:
        _draw_history(ax, study, labels[0])
    else:
        _draw_pareto(ax, study, labels)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", lw=0.7)
    ax.set_axisbelow(True)
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
    ax.plot(front[:, 0], front[:, 1], "o-", color=PALETTE[0], ms=6, label="beaten by none")
    if points[:, 1].min() > 0:
        ax.set_xscale("log")
    ax.set(xlabel=labels[1], ylabel=labels[0])
