"""The predictor folder: `config.json` describes the predictor, `weights.safetensors` holds its arrays.

All code that loads a predictor calls `read`. A folder may name concrete classes that derive from `Buildable`
and are defined in a module of this package, and classes that the caller trusts. First, every name in the
description must be trusted or belong to a module file of this package; only then are modules imported and
their classes checked.
"""

import dataclasses
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from predictor.files import (
    FolderError,
    check_keys,
    damaged,
    read_arrays,
    read_json,
    shorten,
    write_arrays,
    write_json,
)
from predictor.moved import rename_classes

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
FINGERPRINTS = ("weights", "data", "prompt", "decoding")
_MAX_SCALES = 64


class Buildable:
    """Base of the classes of this package that a folder may name without being trusted.

    Predictors, networks, objectives, calibrators and the dataclasses among their arguments derive from it.
    Classes of other packages must be trusted even if they derive from it.
    """


def describe(target: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a class and its keyword arguments, as JSON types.

    An argument that is itself a class, a `functools.partial` of a class or a dataclass instance is described
    in the same way. Raises ValueError for a function: loading calls every name in a folder, so only classes
    are allowed.
    """
    if not isinstance(target, type):
        raise ValueError(
            f"{target!r} is not a class, and only classes can be saved with a predictor: make it one"
        )
    encoded = {name: _encode(value) for name, value in arguments.items()}
    return {"class": name_class(target), "arguments": encoded}


def name_class(target: type) -> str:
    """Return the dotted name of a class, as it is written into folders."""
    return f"{target.__module__}.{target.__qualname__}"


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A field that is None by default is left out, so that a new one changes no description.
        fields = {
            field.name: content
            for field in dataclasses.fields(value)
            if (content := getattr(value, field.name)) is not None or field.default is not None
        }
        return {"object": describe(type(value), fields)}
    if not callable(value):
        return value
    if isinstance(value, functools.partial):
        assert not value.args, "keyword arguments only"
        return {"partial": describe(value.func, value.keywords)}
    return {"partial": describe(value, {})}


def list_classes(description: Any) -> set[str]:
    """Return the dotted names of all classes in a description and in its arguments.

    Every name under "class" counts, even if no object would be built from it. Raises ValueError for a
    description that `describe` does not write.
    """
    return set(_walk_classes(description))


def _walk_classes(description: Any) -> Iterator[str]:
    if not isinstance(description, dict) or not {"class", "arguments"} <= description.keys():
        raise ValueError("the description of a class lacks 'class' or 'arguments'")
    name, arguments = description["class"], description["arguments"]
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{shorten(repr(name), 80)} is not the name of a class")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} are not a JSON object")
    yield name
    for value in arguments.values():
        nested = _get_nested(value)
        if nested is not None:
            if not isinstance(nested, dict) or nested.keys() != {"class", "arguments"}:
                raise ValueError(f"the description of an argument of {name} has unknown keys")
            yield from _walk_classes(nested)
        else:
            yield from _walk_values(value)


def _get_nested(value: Any) -> Any:
    """Return the description in an argument that is a class, partial or dataclass instance; None for data."""
    if isinstance(value, dict) and value.keys() in ({"partial"}, {"object"}):
        (nested,) = value.values()
        return {} if nested is None else nested
    return None


def _walk_values(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("class"), str):
        yield value["class"]
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _walk_values(item)


def check_classes(descriptions: Sequence[Any], file: Path | str, trust: Sequence[str] = ()) -> None:
    """Raise FolderError if a description from `file` names a class that is neither our own nor trusted.

    `trust` holds dotted names of packages, modules or classes. Modules of this package are imported after all
    names have been checked; no other module is imported.
    """
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    try:
        names = set().union(*map(list_classes, descriptions))
    except ValueError as error:
        raise damaged(file, error) from error
    untrusted = sorted(
        name for name in names if not any(name == entry or name.startswith(f"{entry}.") for entry in trusted)
    )
    for is_allowed in (_is_in_this_package, is_own):
        for name in untrusted:
            if not is_allowed(name):
                raise FolderError(
                    f"{file} is built from {shorten(name, 100)}, which is not one of tokenscale's own "
                    "classes: name its package in trust=[...] if you trust it"
                )


def is_own(name: str) -> bool:
    """Return whether a dotted name is that of a class that a folder may name without being trusted."""
    if not _is_in_this_package(name):
        return False
    try:
        target = _import_class(name)
    except AttributeError:
        return False
    if target in (None, Buildable) or inspect.isabstract(target):
        return False
    return issubclass(target, Buildable)


def _is_in_this_package(name: str) -> bool:
    """Return whether the module of a dotted name is a file of this package. Nothing is imported."""
    return name.rpartition(".")[0] in _list_modules()


@functools.cache
def _list_modules() -> frozenset[str]:
    """Return the dotted names of the modules whose files are in the folder of this package."""
    package = Path(__file__).parent
    files = (path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py"))
    return frozenset(".".join(file.parts) for file in files)


def _import_class(name: str) -> type | None:
    """Return the class of a dotted name, or None if its module does not define it as a class.

    Names that a module only imports are not accepted: through them, a folder of a stranger could reach any
    code. Raises ImportError or AttributeError if there is no such module or attribute.
    """
    module_name, _, class_name = name.rpartition(".")
    target = getattr(importlib.import_module(module_name), class_name)
    return target if isinstance(target, type) and target.__module__ == module_name else None


def build(description: dict[str, Any], file: Path | str) -> Any:
    """Return the object of a checked description: its class, called with its arguments."""
    target, arguments = _resolve(description, file)
    return target(**arguments)


def find_class(name: str, file: Path | str) -> type:
    """Return the class of a dotted name. Raises FolderError if its module does not define such a class."""
    try:
        target = _import_class(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FolderError(
            f"{file} is built from {name}, which cannot be imported: install the code that it was trained "
            "with"
        ) from error
    if target is None:
        raise FolderError(
            f"{file} is built from {name}, which is not a class of the module {name.rpartition('.')[0]}: "
            "only classes of their own module are built from a folder"
        )
    return target


def _resolve(description: dict[str, Any], file: Path | str) -> tuple[Any, dict[str, Any]]:
    target = find_class(description["class"], file)
    arguments = {}
    for key, value in description["arguments"].items():
        nested = _get_nested(value)
        if nested is not None:
            function, keywords = _resolve(nested, file)
            value = function(**keywords) if "object" in value else functools.partial(function, **keywords)
        arguments[key] = value
    return target, arguments


def write(folder: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write both files, the configuration last: a folder with a configuration is complete.

    Raises ValueError for arrays with nan.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"{name} contains nan: the training diverged, lower its learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    write_arrays(folder / WEIGHTS, arrays)
    write_json(folder / CONFIG, config)


def read(
    folder: Path, trust: Sequence[str] = (), root: Path | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return configuration and arrays of a predictor folder that names only our own and trusted classes.

    `root` is as in `files.check_file`. Raises FileNotFoundError if there is no configuration, FolderError for
    files that `write` does not write.
    """
    path = folder / CONFIG
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(
            f"no trained predictor in {folder}: train one with `tokenscale train "
            f"predictor={folder.name}` (and task and backbone, if they are not the default ones)"
        )
    required = frozenset({"class", "arguments", "scales", "fingerprints", "state"})
    config = check_keys(path, rename_classes(read_json(path, root)), required, frozenset({"calibrator"}))
    check_classes([config, *([config["calibrator"]] if "calibrator" in config else [])], path, trust)
    check_scales(path, config["scales"])
    check_fingerprints(path, config["fingerprints"], FINGERPRINTS)
    if not isinstance(config["state"], dict):
        raise damaged(path, "the state is not a JSON object")
    return config, read_arrays(folder / WEIGHTS, root)


def check_scales(path: Path, scales: Any) -> None:
    """Raise FolderError unless `scales` is a list of increasing scales."""
    is_list = isinstance(scales, list) and 0 < len(scales) <= _MAX_SCALES
    if not is_list or any(type(scale) is not int or scale < 1 for scale in scales):
        raise damaged(path, "the scales are not a list of whole numbers from 1 up")
    if any(finer <= coarser for coarser, finer in itertools.pairwise(scales)):
        raise damaged(path, "the scales are not increasing")


def check_fingerprints(path: Path, fingerprints: Any, required: Sequence[str]) -> None:
    """Raise FolderError unless all `required` fingerprints are present and every fingerprint is a text."""
    if not isinstance(fingerprints, dict):
        raise damaged(path, "the fingerprints are not a JSON object")
    for key in (*required, *fingerprints):
        value = fingerprints.get(key)
        if not isinstance(value, str) or not value:
            raise damaged(path, f"the fingerprint of {shorten(key, 40)} is missing or not a text")
