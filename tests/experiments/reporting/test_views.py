"""Shapes of token grids from labels, and pictures as a backbone shows them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation.comparison import DefaultPrice
from experiments.evaluation.policies import Paths
from experiments.reporting.gallery import trace_path
from experiments.reporting.views import GridRule, make_view, view_sample
from tests.experiments.evaluation.synthetic import make_outcomes

TOWER = ("tower/variance_kept_1", "image/width")


def make_table(scales, tokens, family="pooled"):
    """Outcomes with these numbers of visual tokens, one list for each sample."""
    table = make_outcomes("test", 1, questions_per_image=len(tokens))
    columns: dict[str, Any] = {
        name: np.resize(getattr(table, name), (len(tokens), len(scales))) for name in COLUMNS
    }
    columns["visual_tokens"] = np.array(tokens, dtype=np.int32)
    answers = [["a"] * len(scales)] * len(tokens)
    return replace(table, scales=tuple(scales), answer=answers, family=family, vision_flops=None, **columns)


COLUMNS = ("score", "nll", "reference_tokens", "confidence", "margin", "prefill_flops")


@pytest.mark.parametrize(
    ("scales", "tokens", "family", "size", "grids"),
    [
        # M3 pools a square grid to nested squares.
        ([1, 9, 36, 144], [[1, 9, 36, 144]], "pooled", (96, 96), [(1, 1), (3, 3), (6, 6), (12, 12)]),
        # Whether an image that is no square was padded or cropped, labels do not tell.
        ([1, 9, 36, 144], [[1, 9, 36, 144]], "pooled", (96, 64), [None] * 4),
        # Gemma 4's and Qwen2.5-VL's tokens for an image of 640 x 480 pixels.
        ([70, 140, 560], [[63, 130, 540]], "native", (640, 480), [(7, 9), (10, 13), (20, 27)]),
        ([4, 16, 64, 1024], [[2, 12, 54, 391]], "native", (640, 480), [(1, 2), (3, 4), (6, 9), (17, 23)]),
        # SmolVLM's tiles of 64 tokens, and LLaVA-NeXT's with a newline token per row, are no single grid.
        ([64, 320, 1088], [[64, 320, 1088]], "native", (1700, 2200), [None] * 3),
        ([1, 9, 36], [[7, 37, 166]], "pooled", (640, 480), [None] * 3),
        # A prime number of tokens in a row is no grid of a square image.
        ([10], [[7], [11]], "native", (100, 100), [None]),
    ],
)
def test_grids_follow_from_numbers_of_tokens(scales, tokens, family, size, grids):
    rule = GridRule.of(make_table(scales, tokens, family), TOWER)
    assert [rule.find(number, size) for number in tokens[0]] == grids


def test_learned_queries_have_no_grid_and_without_statistics_nobody_knows():
    table = make_table([1, 4, 16], [[1, 4, 16]])
    assert GridRule.of(table, ("tower/prefix_cosine_1",)).find(16, (9, 9)) is None
    assert GridRule.of(table, None).find(16, (9, 9)) is None
    assert GridRule.of(table, TOWER).find(16, (9, 9)) == (4, 4)


@dataclass
class Halves:
    """A backbone that sees the left half of an image, `scale` pixels wide, with tokens in its top half."""

    num_tokens: int = 2

    @dataclass
    class Panel:
        image: Image.Image
        grid: tuple[int, int] | None
        box: tuple[float, float, float, float] | None

    def view_image(self, image, scale):
        left = image.crop((0, 0, image.width // 2, image.height)).resize((scale, 2 * scale))
        return [self.Panel(left, (1, 2), (0, 0, scale, scale)), self.Panel(left, None, None)]

    def num_visual_tokens(self, image_size, scale):
        return self.num_tokens


def test_a_backbone_shows_what_it_sees_and_equal_pictures_are_stored_once():
    table = make_table([4, 8], [[2, 2]])
    image = Image.new("RGB", (64, 32), "red")
    views = make_view(table, Halves(), TOWER)(0, image)
    assert len(views.pictures) == 2 and views.pictures[0].startswith("data:image/webp;base64,")
    (first, second), _ = views.at_scales
    assert (first.picture, first.grid, first.size) == (0, (1, 2), (4, 8))
    assert first.box == (0, 0, 1, 0.5) and second.box == (0, 0, 1, 1)
    # Another backbone than that of the labels, which gives the image other numbers of tokens.
    rule = GridRule.of(table, TOWER)
    assert view_sample(image, table.scales, [2, 2], rule, Halves(3)) == rule.view([2, 2], image.size)


def test_the_path_of_a_cascade_tries_coinciding_scales_once():
    table = make_table([1, 9, 36, 144], [[1, 9, 9, 144], [1, 9, 36, 144]])
    table = replace(table, score=np.array([[0, 0, 0, 1], [0, 1, 0, 0]], dtype=np.float32))
    paths, start, stop = Paths.escalating(4), np.array([0, 1]), np.array([3, 1])
    default = DefaultPrice(
        price=0.1,
        choice=stop,
        paths=paths,
        path=paths.find(start, stop),
        start=start,
        cost=np.zeros(2),
        score=np.zeros(2),
        is_best_fixed=False,
        confusion=np.zeros((5, 4), int),
    )
    assert trace_path(table, 0, "hybrid", default).tried == ("1", "9", "144")
    path = trace_path(table, 1, "hybrid", default)
    assert (path.tried, path.score) == (("9",), 1.0)
