"""Answers that others take the place of: moved aside, never deleted."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

# The folder of a label folder that holds answers given again (`evaluation.resampled`).
RESAMPLED = "resampled"


def move_aside(folder: Path, paths: Iterable[Path]) -> Path | None:
    """Move those of `paths` in `folder` that are there and hold something into a new folder beside it.

    Returns that folder, `FOLDER.replaced-YYYY-MM-DD_HH-MM-SS`; None where there is nothing to move.
    """
    filled = [path for path in paths if _holds_anything(path)]
    if not filled:
        return None
    target = _make_folder(folder)
    for path in filled:
        path.rename(target / path.name)
    return target


def _holds_anything(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _make_folder(folder: Path) -> Path:
    place = folder.resolve()  # a link may lead to another disk, where nothing can be renamed to from here
    name = f"{place.name}.replaced-{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in itertools.count(1):
        target = place.with_name(name if number == 1 else f"{name}_{number}")
        try:
            target.mkdir()
        except FileExistsError:
            continue
        return target
    raise AssertionError
