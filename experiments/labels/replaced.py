"""Replaced answers: moved or copied to a folder beside the labels, never deleted."""

import shutil
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from experiments.labels.names import make_exclusively

# The folder of a label folder that holds answers given again (`labels.resampled`).
RESAMPLED = "resampled"


def move_aside(folder: Path, files: Iterable[Path]) -> Path | None:
    """Move those of `files` below `folder` that are there into a new folder beside it, to the same places.

    Returns that folder, `FOLDER.replaced-YYYY-MM-DD_HH-MM-SS`; None where there is nothing to move.
    """
    return _transfer(folder, files, Path.rename)


def copy_aside(folder: Path, files: Iterable[Path]) -> Path | None:
    """Copy files as `move_aside` moves them, before they are written anew."""
    return _transfer(folder, files, shutil.copy2)


def _transfer(folder: Path, files: Iterable[Path], transfer: Callable[[Path, Path], object]) -> Path | None:
    present = [path for path in files if path.exists()]
    if not present:
        return None
    target = _make_folder(folder)
    for path in present:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        transfer(path, place)
    return target


def _make_folder(folder: Path) -> Path:
    place = folder.resolve()  # a link may lead to another disk, where nothing can be renamed to from here
    return make_exclusively(place.with_name(f"{place.name}.replaced-{datetime.now():%Y-%m-%d_%H-%M-%S}"))
