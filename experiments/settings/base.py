"""Base class of all groups of settings, and types of text that names files and folders."""

import re
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# A mapping with `_target_` and the arguments of that class.
Built = dict[str, Any]
# The same for what the command takes names from and does not build: values may be missing, as checkpoint=???.
Described = Annotated[dict[str, Any], "described"]
# Longer ones would not leave room for suffixes in the 255 bytes of a file name.
_MAX_NAME_BYTES = 120


class Refusal(ValueError):
    """Error whose message completes a sentence that begins with the option and its value."""


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
# Of one resample there is no interval.
NumResamples = Annotated[int, Ge(2), Le(1_000_000)]
# More images than any data set has are a slip.
NumImages = Annotated[int, Ge(0), Le(1_000_000_000)]
# Each is a process of its own.
NumWorkers = Annotated[int, Ge(0), Le(256)]


class Settings(BaseModel):
    """A group of settings. Values have exactly these types; keys that are not here are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)


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


class Labelled(Settings):
    """Settings shared by the commands on one task and one backbone."""

    paths: Paths
    backbone: Described = Field(default={})
    task: Described = Field(default={})
