from itertools import pairwise

import pytest

from m3_backbone.ladder import ScaleLadder, exact_scales


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
def test_ladder_of_a_grid(grid, scales):
    ladder = ScaleLadder.of_grid(grid)
    assert ladder.scales == tuple(ladder) == scales
    assert (ladder.coarsest, ladder.finest, len(ladder)) == (1, grid**2, len(scales))


def test_every_scale_derives_from_the_next_finer_one():
    for grid in range(1, 50):
        sides = [round(scale**0.5) for scale in ScaleLadder.of_grid(grid)]
        assert all(fine % coarse == 0 for coarse, fine in pairwise(sides))


def test_a_ladder_is_ordered_and_hashable():
    ladder = ScaleLadder([144, 1, 9, 9], 12)
    assert ladder.scales == (1, 9, 144)
    assert ladder.index(144) == 2
    assert {ladder: "value"}[ScaleLadder((1, 9, 144), 12)] == "value"


def test_a_scale_beside_the_ladder_names_the_possible_ones():
    with pytest.raises(ValueError, match=r"scale 4 .* 1, 9, 144"):
        ScaleLadder((1, 9, 144), 12).check(4)


@pytest.mark.parametrize("scales", [(1, 10), (0,), (-9,), (1, 16)])
def test_a_ladder_refuses_scales_that_the_grid_cannot_give(scales):
    with pytest.raises(ValueError, match="1, 9, 25, 225"):
        ScaleLadder(scales, 15)
    with pytest.raises(ValueError, match="at least one"):
        ScaleLadder((), 15)


def test_exact_scales_are_the_squares_of_the_divisors():
    assert exact_scales(24) == (1, 4, 9, 16, 36, 64, 144, 576)
