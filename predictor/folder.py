"""The predictor folder: `config.json` says what to build, `weights.safetensors` holds the arrays.

All that loads a predictor comes through `read`. A folder may name the classes of `CLASSES`, those that the
caller trusts, and no others; this is checked over the whole description before anything is imported.
"""

import dataclasses
import functools
import importlib
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

# All that a folder may be built from without being trusted: predictors, networks, objectives, calibrators
# and the dataclasses among their arguments.
CLASSES = frozenset(
    {
        "predictor.classical.baselines.BestScalePerTask",
        "predictor.classical.baselines.FixedScale",
        "predictor.classical.baselines.Mix",
        "predictor.classical.blend.Blend",
        "predictor.classical.boosting.GradientBoosting",
        "predictor.calibration.Isotonic",
        "predictor.calibration.Temperature",
        "predictor.classical.controls.RandomChoice",
        "predictor.classical.controls.RandomFeatures",
        "predictor.classical.controls.ShuffledLabels",
        "predictor.features.Features",
        "predictor.learned.LearnedPredictor",
        "predictor.classical.nearest.NearestNeighbours",
        "predictor.networks.avg_router.AVGRouter",
        "predictor.networks.cross_attention.CrossAttention",
        "predictor.networks.pooled.Linear",
        "predictor.networks.pooled.MLP",
        "predictor.objectives.likelihood.LikelihoodDistillation",
        "predictor.objectives.likelihood.LikelihoodRanking",
        "predictor.objectives.minimum_scale.MinimumScaleClasses",
        "predictor.objectives.minimum_scale.MinimumScaleOrdinal",
        "predictor.objectives.minimum_scale.SmallestSufficientScale",
        "predictor.objectives.base.Correctness",
        "predictor.objectives.utility.ExpectedUtility",
        "predictor.classical.question_only.QuestionOnly",
    }
)


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
    return {"class": name_class(target), "arguments": encoded}


def name_class(target: type) -> str:
    """The dotted name that a folder has for a class."""
    return f"{target.__module__}.{target.__qualname__}"


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


def list_classes(description: Any) -> set[str]:
    """Dotted names of all classes that a description names, those of its arguments included.

    ValueError for what `describe` does not write. A name counts wherever it stands, also where nothing would
    be built from it.
    """
    return set(_walk_classes(description))


def _walk_classes(description: Any) -> Iterator[str]:
    if not isinstance(description, dict) or not {"class", "arguments"} <= description.keys():
        raise ValueError("a class is described without 'class' or 'arguments'")
    name, arguments = description["class"], description["arguments"]
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{shorten(repr(name), 80)} is not the name of a class")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} are no JSON object")
    yield name
    for value in arguments.values():
        nested = _get_nested(value)
        if nested is not None:
            if not isinstance(nested, dict) or nested.keys() != {"class", "arguments"}:
                raise ValueError(f"an argument of {name} is described by other keys than class and arguments")
            yield from _walk_classes(nested)
        else:
            yield from _walk_values(value)


def _get_nested(value: Any) -> Any:
    """The description in an argument that is a class, a partial or a dataclass instance; None for data."""
    if isinstance(value, dict) and value.keys() in ({"partial"}, {"object"}):
        (nested,) = value.values()
        return {} if nested is None else nested
    return None


def _walk_values(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("class"), str):
        yield value["class"]
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _walk_values(each)


def check_classes(description: Any, file: Path, trust: Sequence[str] = ()) -> None:
    """Raise FolderError for a description, read from `file`, of a class that is neither ours nor trusted.

    `trust` holds packages, modules or classes by their dotted names. Nothing is imported.
    """
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    try:
        names = list_classes(description)
    except ValueError as error:
        raise damaged(file, error) from error
    for name in sorted(names - CLASSES):
        if not any(name == each or name.startswith(f"{each}.") for each in trusted):
            raise FolderError(
                f"{file} is built from {shorten(name, 100)}, which is none of tokenscale's own classes: name "
                "its package in trust=[...] if you trust it"
            )


def build(description: dict[str, Any], file: Path) -> Any:
    """The reverse of `describe`, called with its arguments, of a description that has been checked."""
    target, arguments = _resolve(description, file)
    return target(**arguments)


def find_class(path: str, file: Path) -> type:
    """The class that `describe` called so. FolderError for what is no class, or of another module.

    A module also holds what it imports: by that way a folder from elsewhere would reach any code at all.
    """
    module_name, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FolderError(
            f"{file} is built from {path}, which cannot be imported: is the code that it was trained with "
            "here?"
        ) from error
    if not isinstance(target, type) or target.__module__ != module_name:
        raise FolderError(
            f"{file} is built from {path}, which is not a class of the module {module_name}: nothing else is "
            "built from a folder"
        )
    return target


def _resolve(description: dict[str, Any], file: Path) -> tuple[Any, dict[str, Any]]:
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
    """Write both files. The config comes last: a folder that has one is whole."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"{name} holds nan: the training diverged, lower its learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    write_arrays(folder / WEIGHTS, arrays)
    write_json(folder / CONFIG, config)


def read(
    folder: Path, trust: Sequence[str] = (), root: Path | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and arrays of a predictor folder that names none but our own classes and those in `trust`.

    FileNotFoundError where there is no config, FolderError for files that are not as `write` left them.
    `root` is as in `files.check_file`.
    """
    path = folder / CONFIG
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(
            f"no trained predictor in {folder}: train one with `python -m experiments.train "
            f"predictor={folder.name}` (and task and backbone, if they are not the default ones)"
        )
    required = frozenset({"class", "arguments", "scales", "fingerprints", "state"})
    config = check_keys(path, rename_classes(read_json(path, root)), required, frozenset({"calibrator"}))
    for description in (config, *([config["calibrator"]] if "calibrator" in config else [])):
        check_classes(description, path, trust)
    check_scales(path, config["scales"])
    check_fingerprints(path, config["fingerprints"], FINGERPRINTS)
    if not isinstance(config["state"], dict):
        raise damaged(path, "the state is no JSON object")
    return config, read_arrays(folder / WEIGHTS, root)


def check_scales(path: Path, scales: Any) -> None:
    """Raise FolderError for what is no list of rising scales."""
    is_list = isinstance(scales, list) and 0 < len(scales) <= _MAX_SCALES
    if not is_list or any(type(scale) is not int or scale < 1 for scale in scales):
        raise damaged(path, "the scales are no list of whole numbers from 1 on")
    if any(finer <= coarser for coarser, finer in itertools.pairwise(scales)):
        raise damaged(path, "the scales do not rise")


def check_fingerprints(path: Path, fingerprints: Any, required: Sequence[str]) -> None:
    """Raise FolderError unless each of the `required` fingerprints is there, and all are texts."""
    if not isinstance(fingerprints, dict):
        raise damaged(path, "the fingerprints are no JSON object")
    for key in (*required, *fingerprints):
        value = fingerprints.get(key)
        if not isinstance(value, str) or not value:
            raise damaged(path, f"the fingerprint of {shorten(key, 40)} is missing or no text")
