"""Answers that others take the place of: moved aside, never deleted."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

# The folder of a label folder that holds answers given again (`evaluation.resampled`).
RESAMPLED = "resampled"


def move_aside(folder: Path, files: Iterable[Path]) -> Path | None:
    """Move those of `files` below `folder` that are there into a new folder beside it, to the same places.

    Returns that folder, `FOLDER.replaced-YYYY-MM-DD_HH-MM-SS`; None where there is nothing to move.
    """
    present = [path for path in files if path.exists()]
    if not present:
        return None
    target = _make_folder(folder)
    for path in present:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return target


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
