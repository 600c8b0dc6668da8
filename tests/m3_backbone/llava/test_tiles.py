import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3_backbone.llava.preprocessing import Tiling, parse_resolutions

PUBLISHED = Tiling(((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), 336)
SIDES = st.integers(1, 4000)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((640, 480), (7, 37, 166, 594, 2340)),
        ((300, 700), (7, 37, 134, 508, 1976)),
        ((336, 336), (5, 25, 78, 300, 1176)),
        ((1000, 420), (5, 33, 126, 492, 1992)),
    ],
)
def test_token_counts_of_the_official_code(size, counts):
    assert tuple(PUBLISHED.num_tokens(size, scale) for scale in (1, 9, 36, 144, 576)) == counts


@given(SIDES, SIDES, st.sampled_from([1, 9, 36]))
def test_the_count_known_beforehand_is_the_count_that_comes_out(width, height, scale):
    tiles = torch.zeros(PUBLISHED.num_tiles((width, height)), scale, 2)
    packed = PUBLISHED.pack(tiles, (width, height), torch.ones(2))
    assert len(packed) == PUBLISHED.num_tokens((width, height), scale)


def test_tokens_stand_row_by_row_with_a_newline_after_each():
    # Two tiles side by side, four tokens each; the image fills them, so nothing is cut off.
    base, left, right = torch.arange(12.0).reshape(3, 4, 1)
    packed = PUBLISHED.pack(torch.stack([base, left, right]), (672, 336), torch.tensor([-1.0]))
    assert packed.flatten().tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


def test_padding_is_cut_off():
    # 672 x 168 on 672 x 336: a quarter of the height is padding above, a quarter below.
    tiles = torch.arange(3 * 16.0).reshape(3, 16, 1)
    packed = PUBLISHED.pack(tiles, (672, 168), torch.tensor([-1.0]))
    rows = packed[16:].reshape(2, 9).tolist()
    assert rows == [[20, 21, 22, 23, 36, 37, 38, 39, -1], [24, 25, 26, 27, 40, 41, 42, 43, -1]]


def test_shape_is_rows_by_columns():
    assert PUBLISHED.shape((2000, 300)) == (1, 3)
    assert PUBLISHED.shape((300, 2000)) == (3, 1)
    assert PUBLISHED.num_tiles((600, 600)) == 5


@pytest.mark.parametrize("pinpoints", [[], [[336]], [336, 672], [["a", "b"]], None])
def test_pinpoints_that_are_no_pairs_are_refused(pinpoints):
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        parse_resolutions(pinpoints)
