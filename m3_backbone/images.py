"""Images as 8-bit RGB, opened and converted in the same way for labelling, training and use.

As in the M3 authors' code (`Image.open(path).convert("RGB")`), only the first frame of an animated file is
used, colour profiles and text in the file are ignored, and an EXIF rotation is not applied by default: the
published values come from pixels as they are stored. (Hugging Face `datasets` has applied EXIF rotations
since 2024.) Two cases differ, because the authors' code loses the image content: 16-bit greyscale is scaled
to 8 bits (`convert` clips it to white), and transparent pixels are composited onto white (`convert` shows the
colour stored under them, usually black).

Every problem with an image raises `UnreadableImage`, which is an OSError and a ValueError. Sizes are checked
before pixels are decoded, and conversions work on bands of rows, so that memory holds at most two copies of
an image's pixels.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from m3_backbone.reading import POINTER_REASON, is_pointer

Picture = Image.Image | str | Path | bytes | np.ndarray

# Raster formats that may be decoded. Some of Pillow's other plugins start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's decompression-bomb limit; 0.36 GB at 4 bytes per pixel
MAX_SIDE = 16_384  # photographs and scans have shorter sides
PREFIX = "cannot read"  # start of every skip reason that concerns an image and not a question
_BAND_PIXELS = 2**22
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks with text and colour profiles. Pillow refuses an image in which they exceed its size limits.
_PNG_IGNORED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MAX_PNG_BYTES = 2**30


class UnreadableImage(OSError, ValueError):
    """An image that cannot be read: its name (relative to its image folder, if it has one) and the reason."""

    def __init__(self, name: str | None, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        subject = "the image" if self.name is None else f"image {self.name!r}"
        return f"{PREFIX} {subject}: {self.reason}"


def open_picture(
    picture: Picture,
    *,
    name: str | None = None,
    apply_orientation: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """Open an image and return it as 8-bit RGB.

    Args:
        picture: PIL image, path or bytes of a file, or array of pixels `[height, width]`,
            `[height, width, 1]`, `[height, width, 3]` or `[height, width, 4]` (red, green, blue, opacity) of
            uint8, uint16, bool, or floats from 0 to 1. A PIL image in RGB is returned unchanged.
        name: name of the image in errors; by default the path.
        apply_orientation: whether to apply the EXIF rotation.
        max_pixels, max_side: largest number of pixels, and longest side in pixels; checked before decoding.

    Raises UnreadableImage for an image that cannot be read or is too large, ValueError for any other type.
    """
    if not isinstance(picture, Picture):
        raise ValueError(
            f"a {type(picture).__name__} is not an image: give a PIL image, a path, the bytes of a file or "
            "an array"
        )
    if name is None and isinstance(picture, str | Path):
        name = str(picture)

    def convert(image: Image.Image) -> Image.Image:
        _check_size(name, image.size, max_pixels, max_side)
        image.load()
        return to_rgb(_rotate(image) if apply_orientation else image, name)

    with _naming(name):
        match picture:
            case Image.Image():
                return convert(picture)
            case np.ndarray():
                _check_size(name, picture.shape[1::-1], max_pixels, max_side)
                return convert(_from_array(name, picture))
            case bytes():
                return _decode(picture, name, convert)
        return _decode(_find_file(Path(picture).expanduser(), name), name, convert)


def read_size(content: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> tuple[int, int]:
    """Return (width, height) of the image in a file, from its header alone.

    Raises UnreadableImage for a file without a header, and for an image that is too large.
    """
    sizes: list[tuple[int, int]] = []

    def keep_size(image: Image.Image) -> Image.Image:
        _check_size(None, image.size, max_pixels, max_side)
        sizes.append(image.size)
        return Image.new("L", (1, 1))  # in place of the decoded image

    with _naming(None):
        _decode(content, None, keep_size)
    return sizes[-1]


def to_rgb(image: Image.Image, name: str | None = None) -> Image.Image:
    """Return the image as 8-bit RGB, unchanged if it is RGB without transparency. Raises UnreadableImage.

    Greyscale of up to 16 bits is scaled and transparent pixels are composited onto white. Pillow converts all
    other modes.
    """
    if 0 in image.size:
        raise UnreadableImage(name, f"it has no pixels: {image.width} x {image.height}")
    if image.mode.startswith("F"):
        raise UnreadableImage(name, "floating-point pixels: their range is not known")
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" holds 16-bit PNM and TIFF files
        return _in_bands(image, lambda band: _scale_16_bits(band, name))
    if image.has_transparency_data:
        return _in_bands(image, _lay_on_white)
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        reason = f"pixels of mode {image.mode}, which Pillow does not convert: save it as RGB"
        raise UnreadableImage(name, reason) from error


@contextmanager
def _naming(name: str | None) -> Iterator[None]:
    """Turn every error about an image into UnreadableImage with this name."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(name, f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"too large: {error}") from error
    except PermissionError as error:
        raise UnreadableImage(name, explain(error)) from error
    except MemoryError as error:
        raise UnreadableImage(name, "not enough memory to open it") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError, ... on damaged files
        raise UnreadableImage(name, f"damaged: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Return the message of an error without the file path that system errors append.

    Skip reasons are stored with the labels and must not contain paths of this machine.
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _find_file(path: Path, name: str | None) -> Path:
    """Return `path` if it is a regular file. Raises UnreadableImage otherwise."""
    try:
        is_file, exists = path.is_file(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        raise UnreadableImage(name, f"not a usable path: {explain(error)}") from error
    if not is_file:
        raise UnreadableImage(name, "not a file" if exists else "no such file")
    return path


def _decode(
    source: Path | bytes, name: str | None, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Return `convert(image)` of the image in a file or in the bytes of a file."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(256)
        if not head:
            raise UnreadableImage(name, "the file is empty")
        if is_pointer(head):
            raise UnreadableImage(name, POINTER_REASON)
        file.seek(0)
        try:
            with Image.open(file, formats=FORMATS) as image:
                return _detach(image, convert)
        except UnreadableImage:
            raise
        except ValueError:
            if not head.startswith(_PNG_SIGNATURE):
                raise
            file.seek(0)
            content = _remove_texts(file.read(_MAX_PNG_BYTES))
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _detach(image, convert)


def _detach(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return the converted image as an independent copy that does not need the open file."""
    converted = convert(image)
    return image.copy() if converted is image else converted


def _remove_texts(content: bytes) -> bytes:
    """Return a PNG file without its text and colour-profile chunks, on which no pixel depends."""
    chunks, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in _PNG_IGNORED:
            chunks.append(content[start:end])
        start = end
    return b"".join(chunks)


def _rotate(image: Image.Image) -> Image.Image:
    """Return the image rotated by its EXIF orientation, or unchanged if the EXIF data are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data raise many types of errors
        return image


def _from_array(name: str | None, pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    is_color = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    dtype = "float" if pixels.dtype.kind == "f" else str(pixels.dtype)
    if dtype not in ("uint8", "uint16", "bool", "float") or not (is_color or pixels.ndim == 2):
        raise UnreadableImage(
            name,
            f"an array of {pixels.dtype} {list(pixels.shape)} is not an image: give uint8 pixels, [height, "
            "width], [height, width, 3] or [height, width, 4]",
        )
    if not pixels.size:
        raise UnreadableImage(name, f"it has no pixels: {pixels.shape[1]} x {pixels.shape[0]}")
    if dtype == "float":
        # Comparisons with nan are false, so that nan fails this check.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise UnreadableImage(
                name, "floating-point pixels that are not all from 0 to 1: their range is not known"
            )
        pixels = (pixels * np.float32(255)).round().astype(np.uint8)
    elif dtype == "bool":
        pixels = pixels.astype(np.uint8) * 255
    elif dtype == "uint16" and is_color:
        pixels = (pixels >> 8).astype(np.uint8)  # as Pillow reads files with 16 bits per channel
    return Image.fromarray(np.ascontiguousarray(pixels))


def _check_size(name: str | None, size: tuple[int, ...], max_pixels: int, max_side: int) -> None:
    if len(size) == 2 and (size[0] * size[1] > max_pixels or max(size) > max_side):
        raise UnreadableImage(
            name,
            f"too large: {size[0]} x {size[1]} pixels (at most {max_pixels:,} pixels, {max_side:,} a side)",
        )


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return the RGB image that `convert` gives, computed in bands of rows to limit memory."""
    width, height = image.size
    num_rows = max(1, _BAND_PIXELS // width)
    if num_rows >= height:
        return convert(image)
    result = Image.new("RGB", image.size)
    for top in range(0, height, num_rows):
        band = image.crop((0, top, width, min(top + num_rows, height)))
        result.paste(convert(band), (0, top))
    return result


def _lay_on_white(image: Image.Image) -> Image.Image:
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _scale_16_bits(image: Image.Image, name: str | None) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImage(name, "pixels of more than 16 bits: their range is not known")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 0xFFFF
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def shrink_and_enlarge(image: Image.Image, num_pixels: int) -> Image.Image:
    """Return an RGB image shrunk to about `num_pixels` pixels and enlarged again; a smaller one as it is."""
    factor = math.sqrt(num_pixels / (image.width * image.height))
    if factor >= 1:
        return image
    small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
