"""Arguments of the classes that a configuration names, checked against their signatures.

An object in a configuration is a mapping with `_target_`, the dotted name of a class or function, and its
keyword arguments. Nothing is built here: a wrong argument of the last step of a command is refused before the
first one.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object

from experiments.settings.words import MISSING, Words, convert
from m3_backbone.arguments import accepts, describe_type, find_mapping, read_hints, show

_TARGET = "_target_"
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Hydra's own keys beside the arguments.
_FLAGS = ("_partial_", "_recursive_")
_KEYS_OF_HYDRA = {_TARGET, "_partial_", "_convert_", "_recursive_", "_args_"}


@dataclass(frozen=True)
class Signature:
    """Parameters of a class or function by name, with their types; `is_open` if any other is taken too.

    `names` says of each whether it has to be given.
    """

    types: Mapping[str, Any]
    names: Mapping[str, bool]
    is_open: bool


def check_built(node: Any, key: str, words: Words, *, is_built: bool = True) -> Iterator[str]:
    """Yield one sentence for each wrong argument of the objects in `node`, the value of the option `key`.

    Numbers where the signature has text become that text, in place. Of objects that are not built only names
    must not be missing.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from check_built(item, f"{key}[{index}]", words, is_built=is_built)
    if not isinstance(node, dict):
        return
    target = node.get(_TARGET)
    signature = Signature({}, {}, True)
    if _TARGET in node:
        try:
            if not isinstance(target, str):
                raise ValueError("it is no text")
            signature = read_signature(get_object(target))
        except Exception as error:  # whatever importing a module raises
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
    """Parameters that can be given by name, including those passed to base classes by `**kwargs`."""
    functions = [target]
    if inspect.isclass(target):
        kinds = [kind for kind in target.__mro__ if "__init__" in vars(kind) and kind is not object]
        functions = [vars(kind)["__init__"] for kind in kinds]
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
                # What a base class needs its subclass may give it.
                is_required = function is functions[0] and parameter.default is inspect.Parameter.empty
                names[parameter.name] = is_required
                if parameter.name in hints:
                    types[parameter.name] = hints[parameter.name]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return Signature(types, names, False)
    return Signature(types, names, bool(functions))
