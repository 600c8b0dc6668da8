"""Text of `--help`: description, examples, and options with defaults and meanings.

Description and examples are the docstring of the module of the command, which is not imported; the options
are its typed settings (`experiments.settings`), the defaults its configuration in `conf/`.
"""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.command_line.script import SCRIPT, find_config_dir, read_docstring
from experiments.settings.base import Settings
from m3_backbone.arguments import show

# Columns to the left of the meanings; largest number of characters of a value that is not shortened.
_INDENT = 34
_MAX_VALUE = 60


def format_help(command: str, config: DictConfig) -> str:
    """Return the help of a command; the values of `config`, which includes `hydra`, are shown as defaults."""
    description, examples = split_docstring(command)
    path = find_config_dir() / f"{command}.yaml"
    return "\n".join(
        [
            description,
            "",
            f"usage: {SCRIPT} {command} OPTION=VALUE ...",
            f"       python -m experiments.{command} OPTION=VALUE ...",
            "",
            "Examples:",
            textwrap.indent("\n".join(examples), "  "),
            "",
            "Options, with their current values:",
            *(option.format(_line_width()) for option in list_options(command, config)),
            "",
            "Full configuration, with the arguments of every object (backbone.NAME=VALUE sets one):",
            f"  {SCRIPT} {command} --cfg job",
            f"  {path}",
            "A sweep, one job for each combination: -m OPTION=VALUE,VALUE. Options of Hydra: --hydra-help.",
        ]
    )


def split_docstring(command: str) -> tuple[str, list[str]]:
    """Return the description of a command and its examples, one line each, from the docstring."""
    description, _, examples = read_docstring(command).partition("\nExamples:\n")
    return description.strip(), textwrap.dedent(examples).strip().splitlines()


@dataclass(frozen=True)
class Option:
    """One option: its name as typed, its value as typed, and what it means."""

    name: str
    value: str
    meaning: str

    def format(self, width: int) -> str:
        """Return the option in lines of at most `width` columns where words allow it."""
        head = f"  {self.name}={self.value}"
        meaning = textwrap.wrap(self.meaning, max(width - _INDENT, 30), break_on_hyphens=False) or [""]
        if len(head) + 2 <= _INDENT:
            head, *meaning = [f"{head:{_INDENT}}{meaning[0]}".rstrip(), *meaning[1:]]
        return "\n".join([head, *(" " * _INDENT + line for line in meaning if line)])


def list_options(command: str, config: DictConfig) -> list[Option]:
    """Return the options of a command: config groups first, folders of results last.

    A command of the user has no settings that could be described.
    """
    from experiments.settings.check import find_settings

    settings = find_settings(command)
    if settings is None:
        return []
    choices = {
        group: choice
        for group, choice in config.hydra.runtime.choices.items()
        if not group.startswith(("hydra/", "paths"))
    }
    return sorted(
        _walk(settings, config, choices),
        key=lambda option: (option.name.startswith("paths."), "; one of" not in option.meaning),
    )


def _walk(
    settings: type[Settings], config: DictConfig, choices: Mapping[str, str | None], prefix: str = ""
) -> Iterator[Option]:
    """Yield the options of a group of settings; config groups with the names to choose from."""
    hints = get_type_hints(settings, include_extras=True)
    for name, field in settings.model_fields.items():
        key, meaning = f"{prefix}{name}", " ".join((field.description or "").split())
        groups = [group for group in choices if f"{_find_package(group)}.".startswith(f"{key}.")]
        for group in groups:
            folder = group.partition("@")[0]
            names = f"those of {folder}" if folder != group and folder in choices else _list_choices(group)
            yield Option(group, show(choices[group]), f"{meaning}; one of {names}")
        if isinstance(hints[name], type) and issubclass(hints[name], Settings):
            yield from _walk(hints[name], config, choices, f"{key}.")
        elif not groups and (value := _read_value(config, key)) is not None:
            yield Option(key, value, f"{meaning}{_list_literals(hints[name])}")
    if not prefix and "experiment" in choices:
        meaning = f"settings of one experiment; one of {_list_choices('experiment')}"
        yield Option("experiment", show(choices["experiment"]), meaning)


def _list_choices(group: str) -> str:
    """Return the names that a config group has, without former names, separated by commas."""
    files = (find_config_dir() / group.partition("@")[0]).glob("*.yaml")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in files}
    return ", ".join(sorted(name for name, text in texts.items() if not text.startswith("# Former name")))


def _find_package(group: str) -> str:
    """Return the key that a config group fills, as `baselines.mine` for `predictor@baselines.mine`."""
    folder, _, package = group.partition("@")
    return (package or folder.replace("/", ".")).removeprefix("_global_.")


def _read_value(config: DictConfig, key: str) -> str | None:
    """Return the value of an option as typed; None if the command does not have it."""
    *path, name = key.split(".")
    parent = OmegaConf.select(config, ".".join(path)) if path else config
    if not isinstance(parent, DictConfig) or name not in list(
        parent
    ):  # `in` is False for missing mandatory values
        return None
    if OmegaConf.is_missing(parent, name):
        return "..."
    try:
        value: Any = parent[name]
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException:  # an interpolation of a missing mandatory value
        unresolved: Any = OmegaConf.to_container(parent)
        value = unresolved[name]
    text = show(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def _list_literals(hint: Any) -> str:
    return f"; one of {', '.join(map(str, get_args(hint)))}" if get_origin(hint) is Literal else ""


def _line_width() -> int:
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
