"""Types of settings, groups that several commands share, and conversion of values from the command line."""

import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from m3_backbone.arguments import PromptText

# OmegaConf's value of a mandatory setting that is not given.
MISSING = "???"
# Boolean words of YAML 1.1; Hydra only parses true and false, and other text would count as true.
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

# Escapes of YAML that prompts may have.
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", '"': '"'}

# Option on the command line -> text after its equals sign.
Words = Mapping[str, str]


def read_words(overrides: Sequence[str]) -> dict[str, str]:
    """Map each key to its text in the overrides `key=value`."""
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: text for key, equals, text in pairs if equals}


def convert(value: Any, annotation: Any, word: str | None) -> Any:
    """Convert a value to the annotated type if its meaning is unambiguous; otherwise return it unchanged.

    Converts words of YAML 1.1 to true and false, whole floats to int, numbers to the text that was typed, and
    \\n in prompts to line breaks. `word` is the text from the command line, None for other values.
    """
    if isinstance(value, str) and word is not None and annotation == PromptText:
        return _unescape(value, word.strip())
    members = set(_list_members(annotation))
    if isinstance(value, str) and bool in members and str not in members:
        return _TRUTH.get(value.lower(), value)
    if isinstance(value, float) and int in members and float not in members and value.is_integer():
        return int(value) if abs(value) < 2**53 else value
    if isinstance(value, bool | int | float) and str in members and not members & {bool, int, float}:
        if word is not None:
            return word.strip()
        # A file does not say how true or 1e3 were written.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return value


def _unescape(value: str, word: str) -> str:
    """Replace escapes as YAML does in double quotes, unless the value was typed in single quotes.

    Hydra does not replace escapes, quoted or not. A value that differs from the typed one was converted
    before and is returned unchanged.
    """
    typed = word[1:-1].replace('\\"', '"') if re.fullmatch(r'".*"', word, re.DOTALL) else word
    if value != typed:
        return value
    return re.sub(r'\\([nt\\"])', lambda escape: _ESCAPES[escape[1]], value)


def _list_members(annotation: Any) -> list[Any]:
    """List the members of a union without their ranges."""
    if get_origin(annotation) is Annotated:
        return _list_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _list_members(part)]
    return [annotation]


# A mapping with `_target_` and the arguments of that class.
Built = dict[str, Any]
# The same for objects of which the command only uses names: values may be missing, as checkpoint=???.
Described = Annotated[dict[str, Any], "described"]
# The same for what may not be built at all: the trainer, where nothing that is trained has a network.
Deferred = Annotated[dict[str, Any], "deferred"]
# Leaves room for suffixes within the 255 bytes of a file name.
_MAX_NAME_BYTES = 120


class Refusal(ValueError):
    """Error whose message completes a sentence that begins with the option and its value."""


def accept(text: str, check: Callable[[str], object]) -> str:
    """Return `text` if `check` accepts it; else raise a Refusal with its reason, without option and value."""
    try:
        check(text)
    except ValueError as error:
        raise Refusal(str(error).partition(": ")[2]) from error
    return text


def check_folder_name(name: str) -> str:
    """Return `name` if it is a valid name of a single folder. Raises Refusal otherwise."""
    if re.search(r"[/\\\x00-\x1f\x7f]", name) or name.strip() in ("", ".", ".."):
        raise Refusal("it names a folder, so give text without / and \\ that is not empty, . or ..")
    if name.startswith((".", " ", "~")) or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        raise Refusal(
            "it names a folder, so give text that does not begin with a dot, a space or ~ and has at most "
            f"{_MAX_NAME_BYTES} bytes"
        )
    return name


def _check_path(path: str) -> str:
    if not path.strip() or "\0" in path:
        raise Refusal("give the path of a file or folder")
    return path


FolderName = Annotated[str, AfterValidator(check_folder_name)]
PathText = Annotated[str, AfterValidator(_check_path)]
# A single resample gives no interval.
NumResamples = Annotated[int, Ge(2), Le(1_000_000)]
# A number above that of any data set is a typing error.
NumImages = Annotated[int, Ge(0), Le(1_000_000_000)]
# Each worker is a separate process.
NumWorkers = Annotated[int, Ge(0), Le(256)]
NumProcesses = Annotated[int, Ge(1), Le(256)]


class Settings(BaseModel):
    """Base class of groups of settings. Types are strict; unknown keys are refused."""

    # Validators are built when a command first needs them: help needs none.
    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class Paths(Settings):
    """Folders of results."""

    outputs: PathText
    """folder of all results"""
    store: PathText = ""
    """folder of labels, predictors and timings"""
    labels: PathText = ""
    """folder of the labels of one task"""
    predictors: PathText = ""
    """folder of the trained predictors"""
    latency: PathText = ""
    """folder of the timings"""
    evaluations: PathText = ""
    """folder of the records of test evaluations"""


class Printed(Settings):
    """Settings shared by the commands that end in tables."""

    print_tables: bool
    """whether to print all tables; they are always in the folder of the run"""


class Recorded(Settings):
    """Settings shared by the commands that read the test split."""

    allow_unrecorded: bool
    """whether to continue if the evaluation cannot be recorded"""


class Labelled(Settings):
    """Settings shared by the commands on one task and one backbone."""

    paths: Paths
    backbone: Described = Field(default={})
    """frozen model that answers"""
    task: Described = Field(default={})
    """source of images, questions and scores"""
