"""Types of numeric arguments with their ranges, and checks of values against types.

A constructor declares the values it accepts in its signature, such as `batch_size: PositiveInt`; `checked`
raises a one-sentence ValueError for any other value. Settings of commands use the same types.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
# Seeds that the generators of NumPy, PyTorch and scikit-learn all accept.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
# Fractions between 0 and 1: both ends included, only 0 included, neither included.
ClosedFraction = Annotated[float, Ge(0), Le(1)]
HalfOpenFraction = Annotated[float, Ge(0), Lt(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]

# Text that becomes part of a prompt. On a command line, \n in it stands for a line break (`settings.words`).
PromptText = Annotated[str, "prompt"]

_LISTS = (list, tuple, Sequence, Collection)
_MAPPINGS = (dict, Mapping)
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Return a function, usually `__init__`, that checks its arguments against their annotations.

    The returned function raises ValueError that names the argument, its value and the allowed values.
    Annotations that `accepts` does not support are not checked.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        hints = read_hints(function)
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            if name in hints:
                check_argument(name, value, hints[name])
        return function(*args, **kwargs)

    return typing.cast(_Function, check_and_call)


@functools.lru_cache
def read_hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations of a function's parameters that can be resolved at run time."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    namespace = getattr(function, "__globals__", {})
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in variadic and parameter.annotation is not inspect.Parameter.empty:
            holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
            try:
                hints |= typing.get_type_hints(holder, namespace, include_extras=True)
            except (NameError, TypeError):
                continue
    return hints


def check_argument(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError that describes the allowed values if `annotation` does not accept `value`."""
    if not accepts(annotation, value):
        raise ValueError(f"{name}={show(value)}: give {describe_type(annotation)}")


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether a type accepts a value.

    Supported types are bool, int, float, str, None, Literal, ranges, unions, lists, mappings, callables and
    dataclasses; any other type accepts every value. A bool is not a number. float accepts whole numbers but
    neither nan nor infinity. A list type accepts any sized collection except text and mappings.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return accepts(arguments[0], value) and _lies_within(annotation.__metadata__, value)
    if origin in (Union, types.UnionType):
        return any(accepts(member, value) for member in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation in (None, type(None)):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is str:
        return isinstance(value, str)
    if origin in _LISTS:
        return _accepts_items(origin, arguments, value)
    if origin in _MAPPINGS:
        keys, values = arguments
        return isinstance(value, Mapping) and all(
            accepts(keys, key) and accepts(values, item) for key, item in value.items()
        )
    if _is_callable(annotation):
        return callable(value)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return isinstance(value, annotation)
    return True


def _is_callable(annotation: Any) -> bool:
    """Return whether a type is `Callable[...]` or a protocol with `__call__`."""
    is_protocol = getattr(annotation, "_is_protocol", False) and "__call__" in vars(annotation)
    return get_origin(annotation) is Callable or annotation is Callable or is_protocol


def find_mapping(annotation: Any) -> Any:
    """Return the value type of a mapping type, also within a union; None if there is no mapping."""
    if get_origin(annotation) in _MAPPINGS:
        return get_args(annotation)[1]
    if get_origin(annotation) in (Union, types.UnionType):
        return next(filter(None, map(find_mapping, get_args(annotation))), None)
    return None


def _accepts_items(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if isinstance(value, str | Mapping) or not isinstance(value, Collection):
        return False
    if origin is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    return all(accepts(arguments[0], item) for item in value)


def _lies_within(bounds: Sequence[Any], value: Any) -> bool:
    for bound in bounds:
        if (
            (isinstance(bound, Ge) and not value >= bound.ge)
            or (isinstance(bound, Gt) and not value > bound.gt)
            or (isinstance(bound, Le) and not value <= bound.le)
            or (isinstance(bound, Lt) and not value < bound.lt)
            or (isinstance(bound, Len) and not len(value) >= bound.min_length)
        ):
            return False
    return True


def describe_type(annotation: Any) -> str:
    """Return a description of the values that a type accepts, such as `a whole number from 1 up, or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{describe_type(arguments[0])}{_describe_range(annotation.__metadata__)}"
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(describe_type(member) for member in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(show, arguments))}" if len(arguments) > 1 else show(arguments[0])
    if annotation in (None, type(None)):
        return "null"
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}: {'; '.join(map(describe_type, arguments))}"
    if origin in _LISTS:
        return f"a list [...] whose items are each {describe_type(arguments[0])}"
    if origin in _MAPPINGS and arguments[1] is Any:
        return "a mapping {NAME: VALUE, ...}"
    if origin in _MAPPINGS:
        return f"a mapping {{NAME: VALUE, ...}} whose values are each {describe_type(arguments[1])}"
    if _is_callable(annotation):
        return "an object {_target_: CLASS, _partial_: true, ...}"
    return f"an object {{_target_: {getattr(annotation, '__name__', annotation)}, ...}}"


def _describe_range(bounds: Sequence[Any]) -> str:
    lower = upper = ""
    for bound in bounds:
        if isinstance(bound, Len):
            return f", at least {bound.min_length} of them"
        if isinstance(bound, Ge):
            lower = f"from {bound.ge}"
        elif isinstance(bound, Gt):
            lower = f"above {bound.gt}"
        elif isinstance(bound, Le):
            upper = f"up to {bound.le}"
        elif isinstance(bound, Lt):
            upper = f"below {bound.lt}"
    if not (lower and upper):
        return f" {lower} up" if lower.startswith("from") else f" {lower or upper}".rstrip()
    if lower.startswith("from") and upper.startswith("up"):
        return f" {lower} {upper.removeprefix('up ')}"
    return f" {lower} {'to' if lower.startswith('from') else 'and'} {upper}"


def show(value: Any) -> str:
    """Return a value formatted as in a configuration file, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{show(key)}: {show(item)}' for key, item in value.items())}}}"
    # Escape line breaks and unprintable characters.
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(value)
    )
    return text or "''"
