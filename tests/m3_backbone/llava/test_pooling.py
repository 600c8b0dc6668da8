from itertools import pairwise

import pytest
import torch

from m3_backbone.llava.pooling import exact_scales, grid_scales, pool

METHODS = ("average", "spatial", "sequential")


@pytest.fixture
def tokens():
    return torch.randn(2, 3, 24 * 24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_every_coarser_set_derives_from_every_finer_one(tokens, method):
    scales = grid_scales(24)
    for position, fine in enumerate(scales):
        pooled = pool(tokens, fine, method)
        assert pooled.shape == (2, 3, fine, 5)
        for coarse in scales[: position + 1]:
            torch.testing.assert_close(pool(pooled, coarse, method), pool(tokens, coarse, method))


def test_average_is_the_mean_of_every_block(tokens):
    image = tokens[0].transpose(1, 2).reshape(3, 5, 24, 24)
    for scale, kernel in [(1, 24), (9, 8), (36, 4), (144, 2), (576, 1)]:
        # Not by `avg_pool2d`, as the authors: that is what `pool` calls, and it would agree with itself.
        blocks = image.unfold(2, kernel, kernel).unfold(3, kernel, kernel)
        expected = blocks.mean(dim=(-2, -1)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(pool(tokens[0], scale), expected)


def test_samplings_by_hand():
    tokens = torch.arange(16.0).reshape(16, 1)
    assert pool(tokens, 4, "average").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool(tokens, 4, "spatial").flatten().tolist() == [0, 2, 8, 10]
    assert pool(tokens, 4, "sequential").flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_an_inexact_scale_names_the_possible_ones(tokens, method):
    for scale in (0, 2, 100, 1000):
        with pytest.raises(ValueError, match="1, 4, 9, 16, 36, 64, 144, 576"):
            pool(tokens, scale, method)


def test_other_mistakes_are_named(tokens):
    with pytest.raises(ValueError, match="not a square grid"):
        pool(tokens[..., :575, :], 9)
    with pytest.raises(ValueError, match="average, spatial, sequential"):
        pool(tokens, 9, "maximal")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grid", "scales"),
    [
        (24, (1, 9, 36, 144, 576)),
        (12, (1, 9, 36, 144)),
        (16, (1, 4, 16, 64, 256)),
        (27, (1, 9, 81, 729)),
        (1, (1,)),
    ],
)
def test_scales_of_a_grid(grid, scales):
    assert grid_scales(grid) == scales


def test_every_scale_derives_from_the_next_finer_one():
    for grid in range(1, 50):
        sides = [round(scale**0.5) for scale in grid_scales(grid)]
        assert all(fine % coarse == 0 for coarse, fine in pairwise(sides))


def test_given_scales_are_ordered():
    assert grid_scales(12, [144, 1, 9, 9]) == (1, 9, 144)


@pytest.mark.parametrize("scales", [(1, 10), (0,), (-9,), (1, 16)])
def test_scales_that_the_grid_cannot_give_are_refused(scales):
    with pytest.raises(ValueError, match="1, 9, 25, 225"):
        grid_scales(15, scales)
    with pytest.raises(ValueError, match="at least one"):
        grid_scales(15, ())


def test_exact_scales_are_the_squares_of_the_divisors():
    assert exact_scales(24) == (1, 4, 9, 16, 36, 64, 144, 576)
