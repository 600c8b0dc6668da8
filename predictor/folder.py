"""The predictor folder: `config.json` says what to build, `weights.safetensors` holds the arrays."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def describe(target: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """A class and its keyword arguments, as JSON.

    An argument that is itself a class, a `functools.partial` of one or a dataclass instance is described
    likewise. Raises ValueError for a function: what a folder names is called when it is loaded, and it may
    name nothing but classes.
    """
    if not isinstance(target, type):
        raise ValueError(
            f"{target!r} is not a class, and only classes can be saved with a predictor: make it one"
        )
    encoded = {name: _encode(value) for name, value in arguments.items()}
    return {"class": f"{target.__module__}.{target.__qualname__}", "arguments": encoded}


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"object": describe(type(value), fields)}
    if not callable(value):
        return value
    if isinstance(value, functools.partial):
        assert not value.args, "keyword arguments only"
        return {"partial": describe(value.func, value.keywords)}
    return {"partial": describe(value, {})}


def build(description: dict[str, Any]) -> Any:
    """The reverse of `describe`, called with its arguments."""
    target, arguments = _resolve(description)
    return target(**arguments)


def find_class(path: str) -> type:
    """The class that `describe` called so. ValueError for what is no class, or is defined in another module.

    A module also holds what it imports: by that way a folder from elsewhere would reach any code at all.
    """
    module_name, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be imported: is the code it was trained with here?") from error
    if not isinstance(target, type) or target.__module__ != module_name:
        raise ValueError(
            f"{path} is not a class of the module {module_name}: nothing else is built from a folder"
        )
    return target


def _resolve(description: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    target = find_class(description["class"])
    arguments = {}
    for key, value in description["arguments"].items():
        if isinstance(value, dict) and value.keys() == {"partial"}:
            function, keywords = _resolve(value["partial"])
            value = functools.partial(function, **keywords)
        elif isinstance(value, dict) and value.keys() == {"object"}:
            value = build(value["object"])
        arguments[key] = value
    return target, arguments


def write(folder: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write both files. The config comes last and by renaming: a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    write_arrays(folder / WEIGHTS, arrays)
    write_json(folder / CONFIG, config)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write safetensors by renaming, so that the file is whole or not there."""
    temporary = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON by renaming, so that the file is whole or not there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and arrays of a predictor folder, or an error that says what is wrong with it."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"no trained predictor in {folder}: train one with `python -m experiments.train "
            f"predictor={folder.name}` (and task and backbone, if they are not the default ones)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not {"class", "arguments", "scales", "fingerprints", "state"} <= config.keys():
            raise ValueError("keys are missing")
        return config, load_file(folder / WEIGHTS)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole predictor ({error}): train it again") from error
