"""Pictures of an image as each family sees it: pixels are those of the processors, cells are the tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3_backbone.conformance.subject import draw_image
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from m3_backbone.views import Panel, draw_view
from tests.query_checkpoint import write_query_checkpoint

WIDE = draw_image((448, 320))


def to_pixels(image):
    """Pixels `[3, height, width]` in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def normalise(image, processor):
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (
            getattr(processor, "image_mean", None) or processor.mean,
            getattr(processor, "image_std", None) or processor.std,
        )
    )
    return (to_pixels(image) - mean) / std


@pytest.mark.parametrize("scale", [1, 9, 36, 144])
def test_pooled_tokens_divide_the_pixels_of_the_tower(scale):
    backbone = LlavaBackbone("tiny_m3")
    (panel,) = backbone.view_image(WIDE, scale)
    pixels = backbone.processor.images(WIDE)[0]
    assert torch.allclose(normalise(panel.image, backbone.processor.images), pixels, atol=1e-6)
    side = {1: 1, 9: 3, 36: 6, 144: 12}[scale]
    assert (panel.grid, panel.box) == ((side, side), None)


def test_shrunk_images_get_smaller_with_the_scale():
    backbone = DownsampledLlavaBackbone("tiny_m3")
    panels = [backbone.view_image(WIDE, scale)[0] for scale in backbone.scales]
    assert [panel.image.size for panel in panels] == [(16, 16), (48, 48), (96, 96), (192, 192)]
    assert [panel.num_cells for panel in panels] == [1, 9, 36, 144]


def test_tiles_have_tokens_where_the_image_is(tiled):
    """A base tile and a grid of tiles, without the padding; a newline token ends each row."""
    backbone = tiled.backbone
    for image in [*tiled.images, draw_image((640, 480))]:
        for scale in backbone.scales:
            base, rest = backbone.view_image(image, scale)
            assert base.num_cells == scale
            num_newlines = rest.grid[0]
            assert base.num_cells + rest.num_cells + num_newlines == backbone.num_visual_tokens(
                image.size, scale
            )
        tiles = backbone.processor.images(image)
        size = backbone.processor.images.image_size
        corner = rest.image.crop((0, 0, size, size))
        assert torch.allclose(normalise(base.image, backbone.processor.images), tiles[0], atol=1e-6)
        assert torch.allclose(normalise(corner, backbone.processor.images), tiles[1], atol=1e-6)


def test_queries_have_no_place(tmp_path):
    backbone = LlavaBackbone(write_query_checkpoint(tmp_path / "mqt"), scales=[2, 16])
    (panel,) = backbone.view_image(WIDE, 16)
    assert panel.grid is None and panel.num_cells == 0
    assert panel.image.size == (backbone.processor.images.image_size,) * 2


def test_qwen_pixels_are_those_of_its_processor():
    backbone = open_random_backbone(model_type="qwen3_vl", name="q", scales=[16, 64])
    (panel,) = backbone.view_image(WIDE, 16)
    assert panel.grid is not None
    rows, columns = panel.grid
    assert panel.num_cells == backbone.num_visual_tokens(WIDE.size, 16) and panel.image.size[0] < WIDE.width
    images = backbone.checkpoint.image_processor
    merge, patch = images.merge_size, images.patch_size
    # Patches are in order of tokens, and within a token in order of its rows.
    patches = backbone.preprocess([WIDE], 16)["pixel_values"].reshape(
        rows, columns, merge, merge, 3, images.temporal_patch_size, patch, patch
    )[:, :, :, :, :, 0]
    seen = patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * merge * patch, columns * merge * patch)
    assert torch.allclose(normalise(panel.image, images), seen, atol=1e-5)


def test_gemma_pixels_are_those_of_its_processor():
    backbone = open_random_backbone(model_type="gemma4", name="g", scales=[70, 140])
    (panel,) = backbone.view_image(WIDE, 70)
    images = backbone.checkpoint.image_processor
    num_patches = panel.num_cells * images.pooling_kernel_size**2
    patch = images.patch_size
    patches = backbone.preprocess([WIDE], 70)["pixel_values"][0, :num_patches]
    rows = panel.image.height // patch
    seen = patches.reshape(rows, -1, patch, patch, 3).permute(4, 0, 2, 1, 3).reshape(3, rows * patch, -1)
    assert panel.num_cells == backbone.num_visual_tokens(WIDE.size, 70)
    assert torch.allclose(to_pixels(panel.image), seen, atol=1e-6)


@pytest.mark.parametrize("model_type", ["smolvlm", "internvl"])
def test_tiled_models_show_their_thumbnail_and_their_tiles(model_type):
    backbone: Any = open_random_backbone(model_type=model_type, name="s")
    coarse, fine = (backbone.view_image(WIDE, scale) for scale in (backbone.scales[0], backbone.scales[-1]))
    assert len(coarse) == 1 and len(fine) == 2
    for panels, scale in ((coarse, backbone.scales[0]), (fine, backbone.scales[-1])):
        assert sum(panel.num_cells for panel in panels) == backbone.num_visual_tokens(WIDE.size, scale)
    tile = coarse[0].image.width
    rows, columns = backbone.grid(WIDE.size, backbone.scales[-1])
    assert fine[1].image.size == (columns * tile, rows * tile)
    pixels = backbone._tile_pixels(WIDE, backbone.scales[-1])
    corner = fine[1].image.crop((0, 0, tile, tile))
    levels = 1 / 255 / min(backbone.checkpoint.image_processor.image_std)
    assert (normalise(corner, backbone.checkpoint.image_processor) - pixels[0]).abs().max() < levels


def test_unknown_scales_and_images_are_refused():
    with pytest.raises(ValueError, match=r"^scale 7 is not on the ladder of this backbone: choose one of 1,"):
        LlavaBackbone("tiny_m3").view_image(WIDE, 7)
    qwen = open_random_backbone(model_type="qwen3_vl", name="q", scales=[16, 64])
    with pytest.raises(ValueError, match=r"^an image of 4000x2 pixels is too long"):
        qwen.view_image(Image.new("RGB", (4000, 2)), 16)


def test_grid_is_drawn_over_the_pixels():
    """A black picture of 4 x 2 pixels, enlarged to 80 x 40 with 2 x 4 cells of 20 pixels."""
    drawn = draw_view([Panel(Image.new("RGB", (4, 2)), (2, 4))], side=80)
    assert drawn.size == (80, 40)
    is_line = np.asarray(drawn)[:, :, 0] > 0
    assert np.flatnonzero(is_line[10]).tolist() == [0, 20, 40, 60, 79]
    assert np.flatnonzero(is_line[:, 10]).tolist() == [0, 20, 39]


def test_what_has_no_token_is_darker():
    """Only the middle two of four columns have tokens."""
    panel = Panel(Image.new("RGB", (40, 40), "white"), (1, 1), (10, 0, 30, 40))
    pixels = np.asarray(draw_view([panel], side=40))[20, :, 0]
    assert (pixels[:10] < 200).all() and (pixels[30:] < 200).all() and (pixels[12:29] == 255).all()


def test_panels_without_a_grid_stay_as_they_are_and_stand_side_by_side():
    image = Image.new("RGB", (30, 30), "red")
    drawn = draw_view([Panel(image), Panel(image)], side=30)
    assert drawn.size == (68, 30)
    assert drawn.getpixel((15, 15)) == (255, 0, 0) and drawn.getpixel((34, 15)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"^0 panels of 30 pixels: give at least one panel"):
        draw_view([], side=30)
