"""Search space of a study: varied command-line overrides, and the best ones as an experiment file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from experiments.command_line.script import find_config_dir


@dataclass(frozen=True)
class Parameter:
    """Parameter of a search space: an override with the key `name`, as on the command line.

    `int` and `float` are uniform, or with `log` log-uniform, between `low` and `high`, both included.
    `choice` is one of `choices`; text among these is written after the equals sign as it is, as `[1,9]`. The
    key may be a config group, as `predictor/network`. Raises ValueError for an incomplete parameter.
    """

    name: str
    type: Literal["int", "float", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Sequence[str | int | float | bool | None] | None = None

    def __post_init__(self) -> None:
        if self.type == "choice":
            is_valid = bool(self.choices) and self.low is None and self.high is None
        else:
            is_valid = (
                self.type in ("int", "float") and not self.choices and None not in (self.low, self.high)
            )
        if not is_valid:
            raise ValueError(
                f"parameter {self.name!r} of the search needs type=int or float with low and high, or "
                f"type=choice with choices, got type={self.type}, low={self.low}, high={self.high}, "
                f"choices={self.choices}"
            )

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that a trial tries."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        assert self.low is not None and self.high is not None
        if self.type == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value is in the range or among the choices."""
        if self.choices:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


def read_space(items: Any) -> list[Parameter]:
    """Return the parameters of a configuration, from one mapping each. Raises ValueError for a wrong one."""
    space = []
    for item in items:
        try:
            space.append(Parameter(**item))
        except TypeError as error:
            raise ValueError(
                f"{dict(item)} is not a parameter of a search ({error}): give name, type and low and high, "
                "or choices"
            ) from error
    if not space:
        raise ValueError("the search has no parameters: give a search space with tune=NAME (conf/tune/)")
    return space


def find_defaults(space: Sequence[Parameter], config: DictConfig) -> dict[str, Any]:
    """Return the values of the parameters in the configuration, as far as they are in the space."""
    defaults = {}
    for parameter in space:
        value = OmegaConf.select(config, parameter.name.lstrip("+"))
        if parameter.holds(value):
            defaults[parameter.name] = value
    return defaults


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return overrides that set parameters to these values, as on a command line."""
    words = {True: "true", False: "false", None: "null"}
    return [
        f"{name}={words[value] if value is None or isinstance(value, bool) else value}"
        for name, value in values.items()
    ]


def suggest(trial: optuna.Trial, space: Sequence[Parameter]) -> list[str]:
    """Return the overrides of a trial."""
    return format_overrides({parameter.name: parameter.suggest(trial) for parameter in space})


def write_experiment(overrides: Sequence[str], comments: Sequence[str]) -> str:
    """Return the text of a file for `conf/experiment/` that is equivalent to these overrides."""
    base: list[str] = []
    groups: dict[str, str] = {}
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "experiment":
            base = [str(override.value())]  # an experiment in the same folder
        elif (find_config_dir() / override.key_or_group).is_dir():
            prefix = "" if override.is_add() else "override "
            groups[f"{prefix}/{override.key_or_group}"] = str(override.value())
        else:
            values[override.key_or_group] = _to_plain(override)
    content = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(content, key, value)
    lines = ["# @package _global_", *(f"# {comment}" for comment in comments)]
    if base or groups:
        chosen = (f"{group}: {choice}" for group, choice in groups.items())
        lines += ["defaults:", *(f"  - {entry}" for entry in (*base, *chosen))]
    return "\n".join(lines) + ("\n" + OmegaConf.to_yaml(content) if values else "\n")


def _to_plain(override: Override) -> Any:
    """Return the value after the equals sign, without quotes."""
    return OmegaConf.from_dotlist([f"value={override.get_value_element_as_str()}"])["value"]
