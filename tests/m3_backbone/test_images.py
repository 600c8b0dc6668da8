"""One conversion for files, bytes, arrays and PIL images; what it refuses, and why."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from m3_backbone.images import Picture, UnreadableImage, open_picture, to_rgb
from tests.bombs import make_png

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colors(image: Image.Image) -> list[tuple[int, int, int]]:
    """Of the first row."""
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def forms(image: Image.Image, folder: Path) -> list[Picture]:
    """The image itself, its file by path and by text, the bytes of it and its pixels."""
    image.save(folder / "image.png")
    path = folder / "image.png"
    return [image, Image.open(path), path, str(path), path.read_bytes(), np.asarray(image)]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        # Opaque red, see-through black and half see-through black: (0 * 128 + 255 * 127) / 255 = 127.
        (
            np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], np.uint8),
            [RED, (255,) * 3, (127,) * 3],
        ),
        # 16 bits: 257 of 65535 are 1 of 255.
        (np.array([[0, 257, 128 * 257, 65535]], np.uint16), [(v,) * 3 for v in (0, 1, 128, 255)]),
        (np.array([[0, 7, 255]], np.uint8), [(v,) * 3 for v in (0, 7, 255)]),
        (np.array([[True, False]]), [(255,) * 3, (0,) * 3]),
        (np.array([[[1, 2, 3]]], np.uint8), [(1, 2, 3)]),
    ],
)
def test_a_picture_is_the_same_in_every_form(tmp_path, pixels, expected):
    for form in forms(Image.fromarray(pixels), tmp_path):
        assert colors(open_picture(form)) == expected


def test_floats_from_0_to_1_and_16_bit_colors_are_scaled():
    assert colors(open_picture(np.array([[0.0, 0.5, 1.0]]))) == [(0,) * 3, (128,) * 3, (255,) * 3]
    assert colors(open_picture(np.array([[[0xFFFF, 0x8080, 0x0101]]], np.uint16))) == [(255, 128, 1)]
    assert colors(open_picture(np.array([[[7], [8]]], np.uint8))) == [(7,) * 3, (8,) * 3]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa"]
)
def test_every_mode_of_pillow_becomes_rgb(mode):
    opaque = Image.new("RGB", (3, 2), "white")
    for step in {"La": ("LA", "La"), "RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA")}.get(mode, (mode,)):
        opaque = opaque.convert(step)
    assert colors(to_rgb(opaque)) == [(255,) * 3] * 3


def test_transparent_colors_of_greyscale_and_of_rgb_lie_on_white():
    deep = Image.fromarray(np.array([[0, 514]], np.uint16))
    assert colors(open_picture(encode(deep, transparency=0))) == [(255,) * 3, (2,) * 3]
    plain = Image.new("RGB", (2, 1), (9, 9, 9))
    plain.putpixel((1, 0), RED)
    assert colors(open_picture(encode(plain, transparency=(9, 9, 9)))) == [(255,) * 3, RED]


def test_large_pictures_are_converted_band_by_band_alike(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 4), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (50, 7), dtype=np.uint16)
    pictures: list[np.ndarray] = [pixels, deep]
    whole = [np.asarray(open_picture(each)) for each in pictures]
    monkeypatch.setattr("m3_backbone.images._BAND_PIXELS", 30)
    for each, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(open_picture(each)), expected)


def test_orientation_is_applied_only_if_asked_for():
    image = Image.new("RGB", (2, 1), BLUE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    content = encode(image, exif=exif)
    assert colors(open_picture(content)) == [RED, BLUE]
    assert colors(open_picture(content, apply_orientation=True)) == [BLUE, RED]
    assert colors(open_picture(Image.open(io.BytesIO(content)), apply_orientation=True)) == [BLUE, RED]
    assert colors(open_picture(encode(image), apply_orientation=True)) == [RED, BLUE]
    damaged = encode(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert colors(open_picture(damaged, apply_orientation=True)) == [RED, BLUE]


def test_large_texts_and_profiles_in_a_png_are_no_reason_to_refuse_it():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    profile = b"\0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    for content in (
        encode(Image.new("RGB", (2, 1), RED), pnginfo=texts),
        encode(Image.new("RGB", (2, 1), RED), icc_profile=profile),
    ):
        with pytest.raises(ValueError, match=r"[Dd]ecompress"):
            Image.open(io.BytesIO(content)).load()  # Pillow alone refuses it
        assert colors(open_picture(content)) == [RED, RED]


def test_an_rgb_image_is_returned_itself_and_a_file_is_let_go(tmp_path):
    image = Image.new("RGB", (2, 1))
    assert open_picture(image) is image
    image.save(tmp_path / "a.png")
    opened = open_picture(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert opened.size == (2, 1) and type(opened) is Image.Image


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("RGB", (0, 4)), "cannot read the image: it has no pixels: 0 x 4"),
        (np.zeros((0, 4, 3), np.uint8), "cannot read the image: it has no pixels: 4 x 0"),
        (np.full((2, 2), 200.0), "not all from 0 to 1: their range is not known"),
        (np.full((2, 2), -0.1), "not all from 0 to 1"),
        (np.array([[0.5, np.nan]]), "not all from 0 to 1"),
        (np.array([[np.inf]]), "not all from 0 to 1"),
        (np.zeros((2, 2), np.int64), r"an array of int64 \[2, 2\] is not an image: give uint8 pixels"),
        (np.zeros((2, 2, 2), np.uint8), r"an array of uint8 \[2, 2, 2\] is not an image"),
        (np.zeros((1, 17_000), np.uint8), "too large: 17000 x 1 pixels"),
        (Image.new("F", (2, 2)), "range is not known"),
        (Image.new("RGB", (17_000, 1)), "too large: 17000 x 1 pixels"),
        (b"", "cannot read the image: the file is empty"),
        (b"%!PS-Adobe", "not an image of a known format"),
        (POINTER, "a Git LFS pointer and not the file itself: fetch it with `git lfs pull`"),
        ("nowhere/none.png", "cannot read image 'nowhere/none.png': no such file"),
        (".", "cannot read image '.': not a file"),
        ("a\0b", "no such file"),
    ],
)
def test_what_is_refused_is_both_errors_with_one_reason(picture, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_picture(picture)
    assert isinstance(caught.value, OSError) and isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_truncated_files_are_refused_in_every_form(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        content = encode(noise, kind)[: -len(encode(noise, kind)) // 2]
        (tmp_path / "cut").write_bytes(content)
        for form in (tmp_path / "cut", content):
            with pytest.raises(UnreadableImage, match=r"damaged|not an image"):
                open_picture(form)
    (tmp_path / "cut").write_bytes(encode(noise)[:-6000])
    with pytest.raises(UnreadableImage, match="damaged"):
        open_picture(Image.open(tmp_path / "cut"))


def test_a_bomb_is_refused_before_it_is_decoded():
    """A million rows of zeros that a few kilobytes unpack to: refused by the header."""
    with pytest.raises(UnreadableImage, match="too large"):
        open_picture(make_png(10**6, 10**6, bytes(10**6), color=0))


MEASURE = """
import resource
import sys
import numpy as np
from PIL import Image
from m3_backbone.images import open_picture
from m3_backbone.llava.preprocessing import ImagePreprocessor

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

names = sys.argv[1:]
make = {aspect: ImagePreprocessor(336, 14, aspect, resolutions=((672, 672), (336, 1008)))
        for aspect in ("pad", "crop", "anyres")}
for images in make.values():
    images(Image.new("RGB", (8, 8)))
before = peak()
for name in names:
    image = open_picture(name)
    for images in make.values():
        assert images(image).shape[1:] == (3, 336, 336)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_memory_of_any_picture_is_bounded_for_every_preprocessing(tmp_path):
    """1 x 16384 at 336 to the shorter side would be 5.5 million rows of 336 pixels: 7.4 gigabytes."""
    sizes = [(1, 16_384), (16_384, 1), (2, 12_000), (4000, 3000)]
    names = [str(tmp_path / f"{width}x{height}.png") for width, height in sizes]
    for name, size in zip(names, sizes, strict=True):
        Image.new("RGBA", size, "red").save(name)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, check=True
    )
    # 12 million pixels twice at 4 bytes, the square of 16 million pixels, and 64 more.
    assert float(result.stdout) < 250
