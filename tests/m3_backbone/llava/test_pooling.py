import pytest
import torch

from m3_backbone.ladder import ScaleLadder
from m3_backbone.llava.pooling import pool

METHODS = ("average", "spatial", "sequential")


@pytest.fixture
def tokens():
    return torch.randn(2, 3, 24 * 24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_every_coarser_set_derives_from_every_finer_one(tokens, method):
    ladder = ScaleLadder.of_grid(24)
    for fine in ladder:
        pooled = pool(tokens, fine, method)
        assert pooled.shape == (2, 3, fine, 5)
        for coarse in ladder.scales[: ladder.index(fine) + 1]:
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
