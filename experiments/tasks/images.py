"""Images from disk, opened safely and turned into 8-bit RGB.

As in the M3 authors' code (`Image.open(path).convert("RGB")`), an animated file is its first frame, colour
profiles are ignored and an EXIF rotation is *not* applied: published numbers were made that way. Two cases
differ, where theirs loses the picture: 16-bit greyscale is scaled to 8 bits (`convert` clips it to white),
and transparent pixels lie on white (`convert` uncovers the colour stored under them, black as a rule).
"""

from pathlib import Path

import numpy as np
from PIL import Image

# What a decoder may be asked for: plain rasters. Pillow's other plugins include some that start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion, a quarter of a gigabyte as RGB
MAX_SIDE = 16_384  # the models pad to a square of the longer side: this one is 0.8 gigabytes as RGB


class UnreadableImage(OSError):
    """An image that cannot be had, with its name within the image folder and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.name!r}: {self.reason}"


def open_image(
    folder: str | Path, name: str, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """The image `name` within `folder` as RGB. Raises UnreadableImage.

    A path that leads out of the folder is refused, be it by `..`, from the root or over a symbolic link. An
    image of more than `max_pixels` or with a side over `max_side` is refused by its header, undecoded.
    """
    path = _locate(Path(folder), name)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(name, image.size, max_pixels, max_side)
            image.load()
            return _to_rgb(name, image)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(name, f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError, ... on damaged files
        raise UnreadableImage(name, f"damaged: {_explain(error)}") from error


def _locate(folder: Path, name: str) -> Path:
    """The regular, non-empty file that `name` leads to inside of `folder`."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        inside = path.is_relative_to(root) and not Path(name).is_absolute()
        if inside and path.is_file():
            if path.stat().st_size == 0:
                raise UnreadableImage(name, "the file is empty")
            return path
        exists = inside and path.exists()
    except UnreadableImage:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a null byte, a loop of links, no permission
        raise UnreadableImage(name, f"not a usable path: {_explain(error)}") from error
    if not inside:
        raise UnreadableImage(name, "the path leads out of the image folder")
    raise UnreadableImage(name, "not a file" if exists else "no such file in the image folder")


def _explain(error: Exception) -> str:
    """The message without the full path that errors of the system end in: reasons travel with the labels."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _check_size(name: str, size: tuple[int, int], max_pixels: int, max_side: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > max_side:
        raise UnreadableImage(
            name,
            f"too large: {width} x {height} pixels (at most {max_pixels:,} pixels, {max_side:,} a side)",
        )


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage(name, "floating-point pixels: their range is not known")
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" holds 16-bit PNM and TIFF files
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnreadableImage(name, "pixels of more than 16 bits: their range is not known")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
