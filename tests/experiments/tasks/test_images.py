"""Good and bad image files: what is opened, what it looks like, and why the others are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.tasks.images import UnreadableImage, open_image
from tests.bombs import make_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    return images


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_good_images_are_what_pillow_makes_of_them(folder):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name, mode in [("a.png", "RGB"), ("b.jpg", "L"), ("c.jpg", "CMYK"), ("d.bmp", "1"), ("e.png", "P")]:
        Image.fromarray(noise).convert(mode).save(folder / name)
        image = open_image(folder, name)
        assert (image.mode, image.size) == ("RGB", (30, 20))
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(folder / name).convert("RGB")))


def test_a_cmyk_jpeg_keeps_its_colours(folder):
    Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK").save(folder / "red.jpg", quality=95)
    red, green, blue = pixel(open_image(folder, "red.jpg"))
    assert red > 220 and green < 60 and blue < 60


def test_16_bit_colour_is_scaled(folder):
    rows = b"\0" + struct.pack(">6H", 0xFFFF, 0x8080, 0, 0x0101, 0xFFFF, 0x4040)
    (folder / "deep.png").write_bytes(make_png(2, 1, rows, depth=16))
    assert np.asarray(open_image(folder, "deep.png")).tolist() == [[[255, 128, 0], [1, 255, 64]]]


def test_pixels_of_unknown_range_are_refused(folder):
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((2, 2), 1 << 20, dtype=np.int32)).save(folder / "wide.tif")
    for name in ("float.tif", "wide.tif"):
        with pytest.raises(UnreadableImage, match="range is not known"):
            open_image(folder, name)


def test_transparent_palette_colours_lie_on_white(folder):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((1, 0), 1)
    image.save(folder / "palette.png", transparency=0)
    opened = open_image(folder, "palette.png")
    assert [pixel(opened, 0), pixel(opened, 1)] == [(255, 255, 255), (10, 200, 30)]


def test_an_animated_gif_is_its_first_frame(folder):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixel(open_image(folder, "moving.gif")) == (255, 0, 0)


def write_bad_files(folder: Path) -> dict[str, str]:
    """Bad files by name, with a word of the reason that each must be refused for."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name, kept in [("cut.jpg", 0.5), ("stump.jpg", 0.02), ("cut.png", 0.5)]:
        Image.fromarray(noise).save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * kept)])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 100)
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (folder / "folder.png").mkdir()
    (folder / "bomb.png").write_bytes(make_png(30_000, 30_000, b"\0" * 1000, color=0))
    (folder / "large.png").write_bytes(make_png(9_500, 9_500, b"\0" * 1000, color=0))
    (folder / "ribbon.png").write_bytes(make_png(20_000, 1, b"\0" * 1000, color=0))
    return {
        "cut.jpg": "damaged: .*truncated",
        "stump.jpg": "not an image|damaged",
        "cut.png": "damaged",
        "empty.png": "empty",
        "text.jpg": "not an image",
        "garbage.png": "not an image|damaged",
        "script.eps": "not an image",
        "folder.png": "not a file",
        "missing.png": "no such file",
        "bomb.png": "too large",
        "large.png": "too large: 9500 x 9500",
        "ribbon.png": "too large: 20000 x 1 ",
        "a\0b.png": "not a usable path",
        "x" * 5000: "not a usable path",
        "": "not a file",
        ".": "not a file",
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused_by_name_and_reason(folder):
    for name, reason in write_bad_files(folder).items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            open_image(folder, name)
        assert caught.value.name == name
        assert repr(name) in str(caught.value)
        assert str(folder) not in caught.value.reason  # reasons travel with the labels


def test_paths_out_of_the_folder_are_refused(folder):
    outside = folder.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    Image.new("RGB", (4, 4)).save(folder / "in.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "way").symlink_to(folder.parent)
    (folder / "inner.png").symlink_to(folder / "in.png")
    names = (
        "../secret.png",
        "../../etc/passwd",
        "link.png",
        "way/secret.png",
        str(outside),
        str(folder / "in.png"),
    )
    for name in names:
        with pytest.raises(UnreadableImage, match="leads out of the image folder"):
            open_image(folder, name)
    assert open_image(folder, "inner.png").size == (4, 4)


def test_a_loop_of_links_is_refused(folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.raises(UnreadableImage):
        open_image(folder, "loop.png")


def test_the_folder_itself_may_be_a_link(folder):
    Image.new("RGB", (4, 4)).save(folder / "in.png")
    (folder.parent / "data").symlink_to(folder)
    assert open_image(folder.parent / "data", "in.png").size == (4, 4)


def test_the_size_limit_is_an_argument(folder):
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    assert open_image(folder, "a.png", max_pixels=200, max_side=20).size == (20, 10)
    with pytest.raises(UnreadableImage, match="20 x 10 pixels"):
        open_image(folder, "a.png", max_pixels=199)
    with pytest.raises(UnreadableImage, match="20 x 10 pixels"):
        open_image(folder, "a.png", max_side=19)
