"""Figures with names in any script, of any length, whatever fonts the machine has."""

import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.reporting.page import FONTS, cut_name, list_fonts, render_figure, save_figure


def make_figure(title):
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().set_title(title)
    return figure


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_characters_that_no_font_has_are_no_warning(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render_figure(
            make_figure("\u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \U0001f600"), kind
        )


def test_only_fonts_that_are_there_are_named(caplog):
    """Matplotlib has a line in the log for each other one."""
    assert list_fonts()[0] == "DejaVu Sans" and set(list_fonts()) <= set(FONTS)
    render_figure(make_figure("plain"), "png")
    assert "findfont" not in caplog.text


def test_a_figure_is_written_under_its_name(tmp_path):
    paths = save_figure(make_figure("plain"), tmp_path / "v1.5", ("png", "svg"))
    assert [path.name for path in paths] == ["v1.5.png", "v1.5.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.5.png", "v1.5.svg"]
    assert Image.open(paths[0]).size == (450, 300)  # 150 pixels an inch


@pytest.mark.parametrize(
    ("name", "length", "shown"),
    [
        ("question_only", 40, "question_only"),
        ("two\nlines  and\ttabs", 40, "two lines and tabs"),
        ("a" * 41, 40, "a" * 26 + "\u2026" + "a" * 13),
        ("abcdefghij", 6, "abc\u2026ij"),
    ],
)
def test_long_names_lose_their_middle(name, length, shown):
    assert cut_name(name, length) == shown
    assert len(shown) <= length
