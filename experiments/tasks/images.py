"""Images of a task's folder, opened by `m3_backbone.images`, never from outside of that folder."""

from pathlib import Path

from PIL import Image

from m3_backbone.images import MAX_PIXELS, MAX_SIDE, UnreadableImage, explain, open_picture

__all__ = ["MAX_PIXELS", "MAX_SIDE", "UnreadableImage", "open_image"]


def open_image(
    folder: str | Path,
    name: str,
    *,
    apply_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """The image `name` within `folder` as RGB (see `open_picture`). Raises UnreadableImage.

    A path that leads out of the folder is refused, be it by `..`, from the root or over a symbolic link.
    """
    return open_picture(
        _locate(Path(folder), name),
        name=name,
        apply_orientation=apply_orientation,
        max_pixels=max_pixels,
        max_side=max_side,
    )


def _locate(folder: Path, name: str) -> Path:
    """The regular file that `name` leads to inside of `folder`."""
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
