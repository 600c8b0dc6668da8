"""Files that a browser has uploaded: where they may be, and the pictures in them."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from experiments.serving.errors import RequestError, refuse
from experiments.serving.limits import Limits, open_image

NO_PICTURE = "there is no picture: upload or pick one"


def find_upload(value: object, folder: Path) -> Path:
    """Return the path of an uploaded file, described as `{"path": ...}`.

    Raises RequestError for any other value, for remote files, and for files that are not in `folder`. The
    message does not repeat the path.
    """
    path = value.get("path") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or not path:
        raise refuse("the picture is not an uploaded file: upload it")
    if "://" in path:
        raise refuse("remote pictures are not fetched: upload the file")
    try:
        place = Path(path).resolve()
        is_upload = place.is_relative_to(folder.resolve()) and place.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        is_upload = False
    if not is_upload:
        raise RequestError(404, "the picture is not among the uploaded files: upload it again")
    return place


def read_upload(value: object, folder: Path, limits: Limits) -> Image.Image:
    """Return the RGB picture of an uploaded PNG, JPEG or WebP file. Raises RequestError."""
    if value is None:
        raise refuse(NO_PICTURE)
    with find_upload(value, folder).open("rb") as file:
        content = file.read(limits.image_bytes + 1)
    return open_image(content, limits)
