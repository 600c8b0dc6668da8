"""Files of a task: images inside its image folder, variants of their names, and errors for missing files."""

import difflib
import functools
import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from m3_backbone.images import MAX_PIXELS, MAX_SIDE, UnreadableImage, explain, open_picture

__all__ = ["MAX_PIXELS", "MAX_SIDE", "UnreadableImage", "open_image"]

# Environment variable with the folder of the benchmark files, used in conf/task.
DATA_VARIABLE = "TOKENSCALE_DATA"


def open_image(
    folder: str | Path,
    name: str,
    *,
    apply_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """Open the image `name` within `folder` as RGB (see `open_picture`). Raises UnreadableImage.

    A path that leads out of the folder, by `..`, from the root or through a symbolic link, is refused.
    """
    return open_picture(
        locate_file(Path(folder), name),
        name=name,
        apply_orientation=apply_orientation,
        max_pixels=max_pixels,
        max_side=max_side,
    )


def locate_file(folder: Path, name: str) -> Path:
    """Return the path of the regular file `name` inside of `folder`. Raises UnreadableImage."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        inside = path.is_relative_to(root) and not Path(name).is_absolute()
        if inside and path.is_file():
            return path
        exists = inside and path.exists()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a null byte, a loop of links, no permission
        raise UnreadableImage(name, f"not a usable path: {explain(error)}") from error
    if not inside:
        raise UnreadableImage(name, "the path leads out of the image folder")
    raise UnreadableImage(name, "not a file" if exists else "no such file in the image folder")


def find_written_form(folder: Path, name: str) -> str:
    """Return the name in the Unicode form and with the separators that exist in `folder`.

    macOS writes accents as separate characters (NFD), other systems as one character with the letter (NFC),
    and Windows separates folders by backslashes. Each image must have one name, or it could be in two splits.
    """
    if (name.isascii() and "\\" not in name) or _is_file(folder, name):
        return name
    slashed = posixpath.normpath(name.replace("\\", "/"))
    forms = [unicodedata.normalize(form, path) for path in (name, slashed) for form in ("NFC", "NFD")]
    return next((form for form in [slashed, *forms] if _is_file(folder, form)), name)


def find_similar(folder: Path, name: str) -> str | None:
    """Suggest another, existing image for a missing name. None if the name exists or nothing is similar.

    Tries the name without surrounding white space, percent-encoding or leading folders, in another case, and
    with another file extension.
    """
    if _is_file(folder, name):
        return None
    plain = urllib.parse.unquote(name).strip().replace("\\", "/")
    parts = [part for part in plain.split("/") if part]
    shorter = ["/".join(parts[start:]) for start in range(len(parts))]
    for path in [plain, *shorter]:
        if path and _is_file(folder, path):
            return path
    parent, _, last = plain.rpartition("/")
    for key in (last.lower(), posixpath.splitext(last)[0].lower()):
        if key and _is_inside(parent) and (similar := _list_folder(folder / parent).get(key)):
            path = posixpath.join(parent, similar)
            # The name itself may be that of a folder, a pipe or a link out of the image folder.
            return None if path == name else path
    return None


def check_present(
    task: str, files: Mapping[str, Sequence[str | Path]], folders: Mapping[str, str | Path]
) -> None:
    """Raise an OSError that names all missing files and folders of a task.

    `files` and `folders` map the option that sets them to paths. The message names similar paths that exist,
    and the options or the environment variable to set.
    """
    paths = [(option, Path(path)) for option, option_paths in files.items() for path in option_paths]
    absent_files = [(option, path) for option, path in paths if not path.is_file()]
    absent_folders = [(option, Path(path)) for option, path in folders.items() if not Path(path).is_dir()]
    missing = absent_files + absent_folders
    if not missing:
        return
    listed = "; ".join(
        [f"no file {path}{_suggest(path)}" for _, path in absent_files]
        + [f"no image folder {path}{_suggest(path)}" for _, path in absent_folders]
    )
    options = " and ".join(dict.fromkeys(f"{option}=..." for option, _ in missing))
    root = Path(os.environ.get(DATA_VARIABLE, "data"))
    if any(path.is_relative_to(root) for _, path in missing):
        options = f"the environment variable {DATA_VARIABLE} (now {root}), or {options}"
    error = FileNotFoundError if absent_files else NotADirectoryError
    raise error(f"task {task}: {listed}; give the right paths with {options}")


def _suggest(path: Path) -> str:
    """Suggest the path most similar to a missing one, as a parenthesis to append to it."""
    absent = path
    while absent.parent != absent and not absent.parent.is_dir():
        absent = absent.parent
    similar = difflib.get_close_matches(absent.name, _read_names(absent.parent), n=1)
    return f" (there is {absent.with_name(similar[0])})" if similar else ""


def _is_file(folder: Path, name: str) -> bool:
    try:
        return _is_inside(name) and (folder / name).is_file()
    except (OSError, ValueError):  # too long, a null byte
        return False


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


@functools.lru_cache(maxsize=8)
def _list_folder(folder: Path) -> dict[str, str]:
    """Map lower-case names, with and without extension, to the names in a folder."""
    by_name: dict[str, str] = {}
    for name in _read_names(folder):
        by_name.setdefault(name.lower(), name)
        by_name.setdefault(posixpath.splitext(name)[0].lower(), name)
    return by_name


def _read_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        return []
