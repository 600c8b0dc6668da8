"""Command lines that a command prints because they may come next."""

import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.command_line.overrides import compose
from experiments.command_line.script import SCRIPT, find_config_dir
from m3_backbone.arguments import show

# Settings that select labels, one of the predictors trained on them, and the settings of its training.
_LABELS = ("task", "backbone", "paths")
_PREDICTOR = (*_LABELS, "predictor", "seed")
_TRAINING = (
    "experiment",
    "calibrator",
    "trainer",
    "max_epochs",
    "validation_fraction",
    "labels",
    "budget",
    "tolerance",
)
# Command -> settings that it shares with the command before, and options that have to be given.
_NEXT: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": ((*_LABELS, "experiment"), ()),
    "evaluate": ((*_PREDICTOR, *_TRAINING, "baselines"), ()),
    "failures": (_LABELS, ()),
    "answer": (_PREDICTOR, ("image=FILE", "question=what is it?")),
    "publish": (_PREDICTOR, ("folder=FOLDER",)),
}


def suggest_command(command: str, options: Sequence[str]) -> str:
    """Return a command line to type next."""
    return shlex.join([SCRIPT, command, *options])


def format_next(*commands: str, config: DictConfig | None = None) -> str:
    """Return lines with the commands that may come next, on the same labels and predictor.

    `failures`, `answer` and `publish` have no settings of training. If the running command was given one,
    their lines have the options that select the labels and the predictor of `config`, its configuration after
    `check_settings`. A line is left out if there is no `config`, or if no options select them.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    names = [_find_setting(text) for text in overrides]
    lines = []
    for command in commands:
        shared_names, required = _NEXT[command]
        options: list[str] | None = [
            text for name, text in zip(names, overrides, strict=True) if name in shared_names
        ]
        if any(name in _TRAINING and name not in shared_names for name in names):
            # A predictor of a part of the labels is found by its folder only.
            if config is None or "labels" in names:
                options = None
            else:
                options = _find_options(command, config, options or [])
        if options is not None:
            lines.append(f"next: {suggest_command(command, [*options, *required])}")
    return "\n".join(lines)


def _find_setting(override: str) -> str:
    """Return the top-level setting that an override changes: `baselines` for `+predictor@baselines.a=mlp`."""
    group, _, package = override.lstrip("+~").partition("=")[0].partition("@")
    return (package or group).partition(".")[0]


def _find_options(command: str, config: DictConfig, given: Sequence[str]) -> list[str] | None:
    """Return options with which a command has the labels, predictor and seed of `config`; None if none do.

    `given` are options of the running command. Config groups precede them, single values follow.
    """
    shared_names = [name for name in _PREDICTOR if name in _NEXT[command][0]]
    required = [f"{option.partition('=')[0]}=x" for option in _NEXT[command][1]]
    # Composing takes a fifth of a second: again only after options were added.
    compose_next = functools.cache(
        lambda *options: compose(find_config_dir(), command, [*options, *required], with_hydra=True)
    )
    try:
        choices, other_choices = HydraConfig.get().runtime.choices, compose_next(*given).hydra.runtime.choices
        groups = [group for group in ("backbone", "task", "predictor") if group in shared_names]
        options = [f"{group}={choices[group]}" for group in groups if choices[group] != other_choices[group]]
        options += given
        other = compose_next(*options)
        # Compared with interpolations as text: a changed `paths.store` changes the paths below it.
        keys = [
            key
            for name in shared_names
            for key in _list_differences(_to_values(config[name]), _to_values(other[name]), name)
        ]
        for key in keys:
            value = _to_values(OmegaConf.select(config, key.lstrip("+")), resolve=True)
            options.append(f"{key}={show(value)}")
        other = compose_next(*options)
        is_same = all(
            _to_values(config[name], resolve=True) == _to_values(other[name], resolve=True)
            for name in shared_names
        )
    except (HydraException, OmegaConfBaseException, ValueError):
        return None
    return options if is_same else None


def _to_values(node: Any, *, resolve: bool = False) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _list_differences(wanted: Any, other: Any, key: str) -> Iterator[str]:
    """Yield the dotted keys at which nested values differ; keys that only `other` has are left out."""
    if isinstance(wanted, dict) and isinstance(other, dict):
        for name, value in wanted.items():
            if name in other:
                yield from _list_differences(value, other[name], f"{key}.{name}")
            else:
                yield f"+{key}.{name}"
    elif wanted != other:
        yield key
