"""Pictures of extreme shapes give the same tiles as steps that make every intermediate picture whole."""

import numpy as np
import pytest
from PIL import Image

from m3_backbone.images import UnreadableImage
from m3_backbone.llava import preprocessing
from m3_backbone.llava.preprocessing import (
    ImagePreprocessor,
    Tiling,
    crop_middle,
    pad_to_square,
    resize_middle,
    resize_padded,
)

MEAN = (0.48, 0.46, 0.41)
EXTREME = [(3, 200), (200, 3), (1, 150), (150, 1), (7, 500), (640, 333), (333, 640), (1000, 999)]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", EXTREME)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_padding_without_the_square_gives_the_same_pixels(monkeypatch, size, resample):
    monkeypatch.setattr(preprocessing, "MAX_WHOLE_PIXELS", 4 * max(size) * 11)  # bands of 11 rows
    image = noise(*size)
    whole = pad_to_square(image, MEAN).resize((48, 48), resample)
    np.testing.assert_array_equal(np.asarray(resize_padded(image, MEAN, 48, resample)), np.asarray(whole))


@pytest.mark.parametrize("size", [(3, 200), (200, 3), (1, 150), (150, 1), (7, 500), (500, 7), (5, 1000)])
def test_cutting_before_enlarging_gives_the_same_pixels(size):
    """But for a rounding by one level: Pillow takes the place of a cut in single precision."""
    image, (width, height) = noise(*size), size
    short = min(size)
    target = (336 * width // short, 336 * height // short)
    whole = np.asarray(crop_middle(image.resize(target, Image.Resampling.BICUBIC), 336)).astype(int)
    cut = np.asarray(resize_middle(image, target, 336, Image.Resampling.BICUBIC))
    assert cut.shape == (336, 336, 3)
    assert np.abs(cut - whole).max() <= 1
    assert (cut != whole).mean() < 1e-4


@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_tiles_do_not_depend_on_how_much_may_be_made_whole(monkeypatch, aspect):
    images = ImagePreprocessor(48, 12, aspect)
    for size in EXTREME:
        whole = images(noise(*size))
        with monkeypatch.context() as patch:
            patch.setattr(preprocessing, "MAX_WHOLE_PIXELS", 48 * 48)
            # One level of 256, by the smallest deviation.
            assert (images(noise(*size)) - whole).abs().max() < 1.01 / 255 / min(images.std)


def test_a_picture_is_converted_as_everywhere():
    images = ImagePreprocessor(2, 1, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert images(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).unique().tolist() == [1.0]
    deep = Image.fromarray(np.full((2, 2), 257 * 51, np.uint16))
    assert images(deep).unique().tolist() == [pytest.approx(0.2)]
    with pytest.raises(UnreadableImage, match="no pixels"):
        images(Image.new("RGB", (0, 2)))


@pytest.mark.parametrize("resolution", [(0, 336), (-336, 336), (336 * 100, 336 * 100)])
def test_grids_of_tiles_have_a_size_that_fits_into_memory(resolution):
    with pytest.raises(
        ValueError, match=rf"{resolution[0]}x{resolution[1]} in image_grid_pinpoints: give sides"
    ):
        Tiling((resolution,), 336)
