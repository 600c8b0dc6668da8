import base64
import hashlib
import html
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.evaluation.costs import TOKENS, CostMeasure, Part
from experiments.evaluation.needs import map_attributes, tabulate_needs
from experiments.labels.held_out import EvaluationRecord
from experiments.reporting.calibration_display import draw_reliability, list_dots
from experiments.reporting.draw import draw_panels, draw_paper
from experiments.reporting.findings import Findings
from experiments.reporting.front_plot import plot_comparison, refine_line
from experiments.reporting.gallery import CATEGORIES, Gallery, build_cards, find_categories, pick_samples
from experiments.reporting.needs import draw_needs
from experiments.reporting.page import cut_name, render_figure
from experiments.reporting.report import Figures, write_report
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.experiments.evaluation.test_evaluate import compare
from tests.pages import check_downloads, check_structure, read_downloads

HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }} {% raw %} ${x} %{y} <!-- </style> & \"quoted\" 'too'"


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text of scripts and of everything else."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.text, self._inside = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self._inside != "style":
            self.text += data


# Of a terminal, and a change of the direction of writing.
CONTROL = "\x1b\u202e"


def read_image(image_id):
    if image_id.endswith("7"):
        raise OSError(f"{image_id}: {HOSTILE}")
    return Image.effect_noise((64, 48), 50).convert("RGB")


@pytest.fixture(scope="module")
def hostile_test():
    table = make_outcomes("test", 60)
    return replace(
        table,
        question=np.array([f"{HOSTILE}{CONTROL} {row}" for row in range(len(table))], dtype=object),
        kind=np.array([f"{kind} {HOSTILE}{CONTROL}" for kind in table.kind], dtype=object),
        references=[[HOSTILE]] * len(table),
        answer=[[HOSTILE + CONTROL] * 4] * len(table),
    )


@pytest.fixture(scope="module")
def comparisons(hostile_test):
    def estimate(table):
        kind = np.array([name.split()[0] for name in table.kind], dtype=object)
        return estimate_outcomes(replace(table, kind=kind))

    def compare_in(account):
        return compare(
            make_outcomes("calibration", 40),
            hostile_test,
            estimators={HOSTILE: estimate, "question_only": estimate},
            measure=account,
        )

    flops = CostMeasure(
        "flops",
        "GFLOPs",
        "mean GFLOPs",
        [Part("prefill", lambda table: table.prefill_flops / 1e9)],
        {HOSTILE: 0.5},
    )
    return [compare_in(TOKENS), compare_in(flops)]


@pytest.fixture(scope="module")
def comparison(comparisons):
    return comparisons[0]


@pytest.fixture(scope="module")
def page(hostile_test, comparisons, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    record = EvaluationRecord(HOSTILE, HOSTILE, (HOSTILE,), HOSTILE, 3, 2, True, 0, 0, Path(HOSTILE))
    write_report(
        path,
        Findings(comparisons[0], comparisons[1:], record=record),
        hostile_test,
        np.full(hostile_test.score.shape, 0.5),
        title=HOSTILE,
        figures=Figures(render_figure(draw_paper(plot_comparison(comparisons[0]), "picture"), "png")),
        gallery=Gallery(read_image, per_category=4),
        provenance=Provenance(command=HOSTILE, config=f"key: {HOSTILE}", made=HOSTILE),
    )
    return path.read_text(encoding="utf-8")


def test_text_from_data_appears_as_text(page):
    parsed = Page(page)
    assert len(parsed.scripts) == 3
    assert not any("alert(1)" in text for attrs, text in parsed.scripts if "type" not in attrs)
    # Title, headline, kinds, questions, references, answers, reasons, command and configuration: all in full.
    assert parsed.text.count(HOSTILE) > 100
    assert sum(tag == "style" for tag, _ in parsed.elements) == 1


def test_chart_data_is_json_that_names_predictors_as_text(page):
    attrs, text = Page(page).scripts[0]
    assert attrs["type"] == "application/json"
    assert "<" not in text and "&" not in text
    charts = json.loads(text)
    titles = [chart["layout"]["xaxis2"]["title"]["text"] for chart in charts]
    assert titles == ["mean visual tokens per question", "mean GFLOPs"]
    for chart in charts:
        names = [trace["name"] for trace in chart["data"] if "name" in trace]
        # Plotly reads labels as HTML: escaped, they show as they are.
        assert html.escape(cut_name(HOSTILE), quote=False) in names
        assert not any("<script" in name for name in names)


def test_page_allows_its_own_scripts_and_nothing_else(page):
    parsed = Page(page)
    policy = next(attrs["content"] for tag, attrs in parsed.elements if attrs.get("http-equiv"))
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for attrs, text in parsed.scripts
        if "type" not in attrs
    }
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert set(directives["script-src"].split()) == hashes
    assert directives["img-src"] == "data: blob:"


def test_page_loads_nothing(page):
    for tag, attrs in Page(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
    assert "@import" not in page.split("</style>")[0] and "url(" not in page.split("</style>")[0]


def test_hostile_names_leave_the_page_and_its_downloads_whole(page):
    check_structure(page)
    assert not set(CONTROL) & set(page)
    files = read_downloads(page)
    check_downloads(files)
    assert HOSTILE in files["points.csv"].decode().replace('""', '"')


def test_unreadable_image_leaves_its_reason(hostile_test, comparison):
    row = next(row for row, image_id in enumerate(hostile_test.image_id) if image_id.endswith("7"))
    choice = comparison.policies[0].default.choice
    estimates = np.zeros(hostile_test.score.shape)
    card, other = build_cards(
        hostile_test, [row, 0], choice=choice, estimates=estimates, read_image=read_image
    )
    assert card.picture is None and HOSTILE in card.problem
    assert other.picture is not None and other.picture.startswith("data:image/webp;base64,")
    assert (other.width, other.height) == (64, 48)
    assert [answer.is_chosen for answer in other.answers].index(True) == choice[0]


def test_categories():
    score = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    found = find_categories(score, np.array([3, 0, 2, 3, 2]))
    assert {name: np.flatnonzero(rows).tolist() for name, rows in found.items()} == {
        "fine": [0, 4],
        "well": [0, 4],
        "coarse": [1],
        "costly": [2],
        "never": [3],
    }
    assert found.keys() == CATEGORIES.keys()


def test_gallery_is_drawn_reproducibly_from_every_category_and_kind():
    test = make_outcomes("test", 100)
    choice = np.random.default_rng(0).integers(0, 4, len(test))
    rows = pick_samples(test, choice, per_category=4, seed=1)
    assert rows == pick_samples(test, choice, per_category=4, seed=1)
    assert rows != pick_samples(test, choice, per_category=4, seed=2)
    assert len(rows) == len(set(rows)) == 4 * len(CATEGORIES)
    assert len(set(test.image_id[rows])) == len(rows)
    for position, shown in enumerate(find_categories(test.score, choice).values()):
        assert shown[rows[4 * position : 4 * position + 4]].all()
    # The first four show the first category, one kind after the other.
    assert len(set(test.kind[rows[4:8]])) == 4


def test_gallery_shows_what_there_is():
    test = make_outcomes("test", 1, questions_per_image=3)
    rows = pick_samples(test, np.zeros(3, int), per_category=4, seed=0)
    shown = np.any(list(find_categories(test.score, np.zeros(3, int)).values()), axis=0)
    assert sorted(rows) == np.flatnonzero(shown).tolist()


def test_line_between_two_points_is_linear_in_the_cost():
    cost, score = refine_line(np.array([1.0, 9.0, 144.0]), np.array([0.2, 0.6, 0.7]))
    assert {1.0, 9.0, 144.0} <= set(cost) and len(cost) >= 160
    np.testing.assert_allclose(score, np.interp(cost, [1, 9, 144], [0.2, 0.6, 0.7]))


def test_displays_draw_on_the_axes_they_are_given(comparison):
    figure = Figure()
    upper, lower = figure.subplots(2)
    draw_panels(plot_comparison(comparison), upper, lower)
    labels = upper.get_legend_handles_labels()[1]
    assert {"question_only", "mix of fixed scales", "budgeted oracle", "fixed scales"} <= set(labels)
    assert lower.lines and lower.get_ylabel() == "points above the mix"
    assert upper.get_xscale() == lower.get_xscale() == "log"


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_picture_is_the_same_bytes_again(comparison, kind, start):
    picture = render_figure(draw_paper(plot_comparison(comparison), "title"), kind)
    assert picture == render_figure(draw_paper(plot_comparison(comparison), "title"), kind)
    assert picture.startswith(start)


def test_dollar_signs_in_names_are_no_formula():
    """`$\\frac$` is a formula that cannot be parsed: drawn as one, it would end the report."""
    table = make_outcomes("test", 30)
    name = r"costs $\frac$ or $5$"
    table = replace(table, kind=np.array([name] * len(table), dtype=object))
    figures = [draw_needs(tabulate_needs(table), map_attributes(table), table.scales, name)]
    calibration, test = make_outcomes("calibration", 20), make_outcomes("test", 20)
    comparison = compare(calibration, test, estimators={name: estimate_outcomes})
    figures.append(draw_paper(plot_comparison(comparison), name))
    reliability = comparison.policies[0].reliability
    assert reliability is not None
    figures.append(draw_reliability(reliability, comparison.scales, name))
    for figure in figures:
        assert render_figure(figure, "svg").startswith(b"<?xml")


def test_reliability_is_drawn_where_estimates_and_scores_are(comparison):
    """All estimates at one scale in one bin: one dot, at their means."""
    reliability = comparison.policies[0].reliability
    assert reliability is not None
    for column in range(4):
        dots = list_dots(reliability, column)
        assert sum(dot.count for dot in dots) == comparison.num_samples
        assert sum(dot.share for dot in dots) == pytest.approx(1)
        mean = sum(dot.score * dot.share for dot in dots)
        assert mean == pytest.approx(float(comparison.fixed_score.value[column]))


def test_page_shows_errors_and_calibration(page, comparison):
    parsed = Page(page)
    assert sum(tag == "svg" for tag, _ in parsed.elements) == 4
    confusion = comparison.policies[0].default.confusion
    titles = [attrs["title"] for tag, attrs in parsed.elements if tag == "td" and "title" in attrs]
    assert [text for text in titles if text.endswith(" questions")] == [
        f"{count:,} questions" for count in confusion.ravel()
    ]
