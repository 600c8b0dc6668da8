"""Check of a configuration against the settings of its command, before anything is read, run or deleted.

An object in a configuration is a mapping with `_target_`, the dotted name of a class or function, and its
keyword arguments. These are checked against the signature without building anything, so that a wrong argument
of the last step of a command is refused before the first step.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)
from pydantic import ConfigDict, TypeAdapter, ValidationError

from experiments.command_line.script import describe_missing
from experiments.settings.base import (
    MISSING,
    Built,
    Deferred,
    Described,
    FolderName,
    Settings,
    Words,
    convert,
    read_words,
)
from m3_backbone.arguments import accepts, describe_type, find_mapping, read_hints, show
from predictor.moved import find_name

# `get_object` logs each error that it raises, and errors of configurations are printed in one line.
logging.getLogger(get_object.__module__).setLevel(logging.CRITICAL)

_TARGET = "_target_"
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Keys of Hydra besides the arguments.
_FLAGS = ("_partial_", "_recursive_")
_KEYS_OF_HYDRA = {_TARGET, "_partial_", "_convert_", "_recursive_", "_args_"}


@dataclass(frozen=True)
class Signature:
    """Parameters of a class or function.

    `types` maps names to annotations, `names` to whether the parameter is required. `is_open` is True if
    other keyword arguments are accepted too.
    """

    types: Mapping[str, Any]
    names: Mapping[str, bool]
    is_open: bool


def check_built(node: Any, key: str, words: Words, *, is_built: bool = True) -> Iterator[str]:
    """Yield one sentence for each wrong argument of the objects in `node`, the value of the option `key`.

    Values are converted in place (`base.convert`). With `is_built=False`, only the argument `name` may not be
    missing.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from check_built(item, f"{key}[{index}]", words, is_built=is_built)
    if not isinstance(node, dict):
        return
    target = node.get(_TARGET)
    if isinstance(target, str):
        target = node[_TARGET] = find_name(target)
    signature = Signature({}, {}, True)
    if _TARGET in node:
        try:
            if not isinstance(target, str):
                raise ValueError("it is not text")
            signature = read_signature(get_object(target))
        except Exception as error:  # importing a module may raise anything
            if isinstance(error.__cause__, ModuleNotFoundError) and describe_missing(error.__cause__):
                raise error.__cause__ from None
            reason = " ".join(str(error).split())
            yield (
                f"{key}.{_TARGET}={show(target)}: give the dotted name of a class that can be imported "
                f"({reason})"
            )
            return
    for name in _FLAGS:
        if not isinstance(node.get(name, False), bool):
            yield f"{key}.{name}={show(node[name])}: give true or false"
            return
    if is_built and not node.get("_partial_") and "_args_" not in node:
        absent = [name for name, is_required in signature.names.items() if is_required and name not in node]
        yield from (f"{key}.{name} is missing: {target} needs it, give {key}.{name}=..." for name in absent)
    for name, value in list(node.items()):
        option = f"{key}.{name}"
        if name in _KEYS_OF_HYDRA:
            continue
        if value == MISSING:
            if is_built or name == "name":
                yield f"{option} has no default: give {option}=..."
            continue
        if name not in signature.names and not signature.is_open:
            known = ", ".join(sorted(signature.names)) or "nothing"
            yield f"{option}={show(value)}: {target} has no such argument, give one of its own: {known}"
        elif isinstance(value, dict) and _TARGET in value:
            yield from check_built(value, option, words, is_built=is_built)
        elif name in signature.types:
            yield from _check_argument(node, name, option, signature.types[name], words)
        else:
            yield from check_built(value, option, words, is_built=is_built)


def find_nameless(node: Any, key: str) -> Iterator[str]:
    """Yield one sentence if `node`, the value of the option `key`, is a mapping that names no class."""
    if isinstance(node, dict) and _TARGET not in node:
        yield f"{key}.{_TARGET} is missing: give the dotted name of a class with {key}.{_TARGET}=..."


def _check_argument(
    arguments: dict[str, Any], name: Any, option: str, annotation: Any, words: Words
) -> Iterator[str]:
    """Yield one sentence for each wrong value of an argument or of a mapping; convert values in place."""
    value = arguments[name] = convert(arguments[name], annotation, words.get(option))
    items = find_mapping(annotation)
    if isinstance(value, dict) and items is not None:
        for key in value:
            yield from _check_argument(value, key, f"{option}.{key}", items, words)
    elif not accepts(annotation, value):
        yield f"{option}={show(value)}: give {describe_type(annotation)}"


def read_signature(target: Callable[..., Any]) -> Signature:
    """Return the parameters that can be given by name, including those passed on by `**kwargs`."""
    functions = [target]
    if inspect.isclass(target):
        classes = [base for base in target.__mro__ if "__init__" in vars(base) and base is not object]
        functions = [vars(base)["__init__"] for base in classes]
    types: dict[str, Any] = {}
    names: dict[str, bool] = {}
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # written in C
            return Signature(types, names, True)
        hints = read_hints(inspect.unwrap(function))
        for parameter in parameters:
            if parameter.kind in _BY_NAME and parameter.name != "self" and parameter.name not in names:
                # A required parameter of a base class may be set by the subclass.
                is_required = function is functions[0] and parameter.default is inspect.Parameter.empty
                names[parameter.name] = is_required
                if parameter.name in hints:
                    types[parameter.name] = hints[parameter.name]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return Signature(types, names, False)
    return Signature(types, names, bool(functions))


# Module -> commands whose settings it has, as `LabelSettings` of `label`. Only the modules that the running
# command needs are imported: building all classes is a quarter of the time of `label --help`.
_COMMANDS_OF_MODULES = {
    "analysis": (
        *("compare", "compare_backbones", "failures", "granularity", "label_curve", "paper", "transfer"),
        "tune",
    ),
    "backbone": ("figure2", "train_backbone"),
    "benches": (
        *("bench_adaptive", "bench_evaluation", "bench_labelling", "check_backbone", "gpu_check", "parity"),
    ),
    "outcomes": ("estimate", "export", "import_outcomes", "model_card", "status"),
    "pipeline": ("evaluate", "label", "latency", "resample", "run", "train"),
    "use": ("answer", "demo", "publish", "recalibrate", "serve"),
}
_MODULE_OF = {command: module for module, commands in _COMMANDS_OF_MODULES.items() for command in commands}
COMMANDS = tuple(sorted(_MODULE_OF))


def find_settings(command: str) -> type[Settings] | None:
    """Return the class of the settings of a command; None for a command of the user."""
    if command not in _MODULE_OF:
        return None
    module = import_module(f"experiments.settings.{_MODULE_OF[command]}")
    name = "".join(part.capitalize() for part in command.split("_"))
    settings: type[Settings] = getattr(module, f"{name}Settings")
    return settings


@cache
def _list_known() -> frozenset[str]:
    """Return the settings of all commands: overlays (conf/experiment) are for several of them."""
    settings = filter(None, map(find_settings, COMMANDS))
    return frozenset(key for group in settings for key in group.model_fields)


def check_settings(command: str, config: DictConfig) -> DictConfig:
    """Return the configuration with converted values (`base.convert`) and `max_epochs` applied.

    Raises ValueError with one line per wrong setting: option, value and allowed values.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    words = read_words(overrides)
    content = _to_plain(config)
    settings = find_settings(command)
    if settings is None:
        # A command of the user: only the objects of its configuration can be checked.
        mistakes = [line for key, value in content.items() for line in check_built(value, key, words)]
    else:
        is_own = HydraConfig.initialized() and HydraConfig.get().job.config_name == command
        mistakes = list(_find_unknown(settings, content, overrides if is_own else []))
        mistakes += _check_group(settings, content, "", words)
        mistakes += _check_names(settings, content)
        mistakes = mistakes or list(_check_together(settings, content))
    # An option that interpolates another one is not the cause of the error.
    mistakes = [line for line in mistakes if not _is_interpolated(config, line.partition("=")[0])] or mistakes
    if mistakes:
        raise ValueError("\n".join(dict.fromkeys(mistakes)))
    return _apply(config, content)


def _find_unknown(
    settings: type[Settings], content: Mapping[str, Any], overrides: Sequence[str]
) -> Iterator[str]:
    added = {text.lstrip("+").partition("=")[0].split(".")[0] for text in overrides if text.startswith("+")}
    for key in content:
        if key not in settings.model_fields and (key in added or key not in _list_known()):
            known = ", ".join(sorted(settings.model_fields))
            yield f"{key}={show(content[key])}: no such setting, give one of {known}"


def _check_group(
    settings: type[Settings], values: dict[str, Any], prefix: str, words: Words
) -> Iterator[str]:
    """Yield one sentence for each wrong value of a group; convert the others in place."""
    hints = get_type_hints(settings, include_extras=True)
    for name, field in settings.model_fields.items():
        option, hint = f"{prefix}{name}", hints[name]
        if name not in values:
            if field.is_required():
                yield f"{option} is missing: give {option}=..."
            continue
        value = values[name] = convert(values[name], hint, words.get(option))
        is_group = isinstance(hint, type) and issubclass(hint, Settings)
        if value == MISSING:
            yield f"{option} has no default: give {option}=..."
        elif is_group and isinstance(value, dict):
            yield from _check_group(hint, value, f"{option}.", words)
        elif is_group:
            yield f"{option}={show(value)}: give {option}.NAME=... for {', '.join(hint.model_fields)}"
        else:
            yield from _check_value(option, value, hint, field.description)
            if hint in (Built, Built | None, Deferred):
                yield from find_nameless(value, option)
            elif hint == dict[str, Built] and isinstance(value, dict):
                for key, item in value.items():
                    yield from find_nameless(item, f"{option}.{key}")
            yield from _check_classes(value, option, hint, words)
    if prefix:
        for name in values.keys() - settings.model_fields.keys():
            known = ", ".join(settings.model_fields)
            yield f"{prefix}{name}={show(values[name])}: no such setting, give one of {known}"


def _check_classes(value: Any, option: str, hint: Any, words: Words) -> Iterator[str]:
    """Yield one sentence for each wrong argument of the objects in the value of an option.

    Importing a class may take seconds. A class that the command may never build is imported only if arguments
    of it are on the command line, or if there is no command line.
    """
    is_imported = hint not in (Described, Deferred) or not HydraConfig.initialized()
    if is_imported or any(key.startswith(f"{option}.") for key in words):
        yield from check_built(value, option, words, is_built=hint != Described)
    elif isinstance(value, dict) and value.get("name") == MISSING:
        yield f"{option}.name has no default: give {option}.name=..."


def _check_value(option: str, value: Any, hint: Any, meaning: str | None) -> Iterator[str]:
    try:
        TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        # Members of a union may raise a more specific error than the type.
        refusals = [str(line["ctx"]["error"]) for line in error.errors() if line["type"] == "value_error"]
        about = f" ({' '.join(meaning.split())})" if meaning else ""
        yield f"{option}={show(value)}: {refusals[0] if refusals else f'give {describe_type(hint)}{about}'}"


def _check_names(settings: type[Settings], content: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each name of backbone or task that cannot name a folder."""
    for key in {"backbone", "task"} & settings.model_fields.keys():
        part = content.get(key)
        if isinstance(part, dict) and "name" in part and part["name"] != MISSING:
            yield from _check_value(f"{key}.name", part["name"], FolderName, None)


def _check_together(settings: type[Settings], content: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each combination of valid values that is not allowed."""
    own = {key: value for key, value in content.items() if key in settings.model_fields}
    try:
        settings.model_validate(own)
    except ValidationError as error:
        for line in error.errors():
            prefix = "".join(f"{part}." for part in line["loc"])
            sentence = str(line.get("ctx", {}).get("error", line["msg"]))
            yield sentence if sentence.startswith(prefix) else prefix + sentence


def _is_interpolated(config: DictConfig, option: str) -> bool:
    *path, name = option.split(".")
    try:
        node = OmegaConf.select(config, ".".join(path)) if path else config
        if not isinstance(node, DictConfig) or OmegaConf.is_interpolation(node, name):
            return isinstance(node, DictConfig)
        value = node._get_node(name)
        return isinstance(value, ListConfig) and any(
            OmegaConf.is_interpolation(value, position) for position in range(len(value))
        )
    except OmegaConfBaseException:
        return False


def _to_plain(node: Any) -> Any:
    """Convert a node to plain values, leaving out keys whose interpolations cannot be resolved.

    A setting of `paths` may interpolate a group that a command does not have, or a missing name.
    """
    if isinstance(node, DictConfig):
        values = {}
        for key in node:
            if OmegaConf.is_missing(node, key):
                values[key] = MISSING
                continue
            with suppress(InterpolationKeyError, InterpolationToMissingValueError):
                values[key] = _to_plain(node[key])
        return values
    if isinstance(node, ListConfig):
        return [
            MISSING if OmegaConf.is_missing(node, index) else _to_plain(node[index])
            for index in range(len(node))
        ]
    return node


def _apply(config: DictConfig, content: Mapping[str, Any]) -> DictConfig:
    """Return a copy of the configuration with the values of `content`."""
    checked = copy.deepcopy(config)
    OmegaConf.set_readonly(checked, False)
    with open_dict(checked):
        _replace(checked, content)
        _limit_epochs(checked)
    return checked


def _replace(node: Any, content: Any) -> None:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if value == MISSING:
            continue
        current = node[key]
        if isinstance(current, DictConfig | ListConfig):
            _replace(current, value)
        elif type(current) is not type(value) or current != value:
            node[key] = value


def _limit_epochs(config: DictConfig) -> None:
    """Lower `max_epochs` of every predictor that trains in epochs to that of the command, if it has one."""
    most = config.get("max_epochs")
    if most is None:
        return

    def lower(node: Any) -> None:
        if isinstance(node, DictConfig):
            if not OmegaConf.is_missing(node, "max_epochs") and node.get("max_epochs") is not None:
                node.max_epochs = min(node.max_epochs, most)
            for key in node:
                if not OmegaConf.is_missing(node, key):
                    lower(node[key])

    for key in ("predictor", "baselines"):
        lower(config.get(key))
