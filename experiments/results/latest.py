"""The symbolic link to the latest run."""

import os
import uuid
from pathlib import Path


def check_link(link: Path, folder: Path) -> None:
    """Raise OSError, with the way out, where `point_link` could not make `link`."""
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it, or give latest=PATH for this one")
    try:
        _make_link(link, folder).unlink()
    except OSError as error:
        raise OSError(
            f"the link {link} to the latest run cannot be made ({error.strerror or error}): give another "
            "place with latest=PATH"
        ) from error


def point_link(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, in one step: a reader finds the old one or the new one.

    The link is relative, so that both can be moved together.
    """
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it, or give latest=PATH for this one")
    _make_link(link, folder).replace(link)


def _make_link(link: Path, folder: Path) -> Path:
    """A symbolic link to `folder` beside `link`, under a name that no other process uses."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(folder.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(target, target_is_directory=True)
    return temporary
