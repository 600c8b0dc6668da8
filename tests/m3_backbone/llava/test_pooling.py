from itertools import pairwise

import pytest
import torch

from m3_backbone.llava.pooling import describe_tokens, exact_scales, grid_scales, pool

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


def test_tower_statistics_of_a_two_by_two_grid():
    """Tokens (3, 0), (3, 0) above (0, 4), (0, 4): the mean is (1.5, 2), each lies 2.5 from it."""
    tokens = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 4.0]]])
    found = describe_tokens(tokens, [1, 4])
    assert found == pytest.approx(
        {
            "tower/variance_kept_1": 0,
            "tower/norm_mean": 3.5,
            "tower/norm_std": 0.5,
            "tower/norm_max": 4,
            # Two pairs side by side are alike, the two that lie above each other are orthogonal.
            "tower/neighbour_cosine": 0.5,
        }
    )


def test_variance_that_lies_between_blocks_is_kept():
    """Four blocks of four tokens, all alike in a block: scale 4 keeps all; with noise in them, a share."""
    blocks = torch.tensor([1.0, -1.0, -1.0, 1.0]).reshape(2, 2)
    smooth = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    noise = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    for amount, kept in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.2)):
        found = describe_tokens((smooth + amount * noise).reshape(1, 16, 1), [1, 4, 16])
        assert found["tower/variance_kept_4"] == pytest.approx(kept)
        assert found["tower/variance_kept_1"] == pytest.approx(0)


def test_tokens_that_are_all_alike_lose_nothing():
    found = describe_tokens(torch.ones(2, 4, 3), [1, 4])
    assert found["tower/variance_kept_1"] == 1 and found["tower/neighbour_cosine"] == pytest.approx(1)


def test_variance_is_taken_about_the_mean_of_all_tiles():
    tokens = torch.stack([torch.full((4, 1), 1.0), torch.full((4, 1), 3.0)])
    assert describe_tokens(tokens, [1, 4])["tower/variance_kept_1"] == pytest.approx(1)
