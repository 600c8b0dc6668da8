"""What a report says of few images, and of outcomes on which nothing can be gained."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.evaluation.statistics import Bootstrap, Estimate
from experiments.reporting.draw import draw_paper
from experiments.reporting.evaluation_tables import list_tables
from experiments.reporting.findings import (
    Findings,
    describe_difference,
    write_default,
    write_headline,
    write_sentences,
)
from experiments.reporting.front_plot import plot_comparison
from experiments.reporting.gallery import Gallery
from experiments.reporting.numbers import format_difference, format_score, format_share, format_tokens
from experiments.reporting.page import render_figure
from experiments.reporting.report import Figures, write_report
from experiments.tasks.sizes import find_banners
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.evaluation.test_evaluate import OUTCOMES, compare

CALIBRATION, TEST = make_outcomes("calibration", 30), make_outcomes("test", 40)
NO_GAIN = "On this task finer scales do not help: there is nothing to gain."


def with_scores(rule):
    return lambda table: replace(table, score=np.asarray(rule(table.score), dtype=np.float32))


def keep_one_scale(table):
    columns = {name: getattr(table, name)[:, 2:3] for name in OUTCOMES}
    return replace(table, scales=(36,), answer=[row[2:3] for row in table.answer], **columns)


def equalize_costs(table):
    return replace(table, visual_tokens=np.full_like(table.visual_tokens, 7))


CASES = {
    "all right": (with_scores(np.ones_like), NO_GAIN),
    "all wrong": (with_scores(np.zeros_like), NO_GAIN),
    "the coarsest alone": (with_scores(lambda s: np.tile([1, 0, 0, 0], (len(s), 1))), NO_GAIN),
    "the finest alone": (
        with_scores(lambda s: np.tile([0, 0, 0, 1], (len(s), 1))),
        "On this task no choice of scales beats mixing fixed scales: there is nothing to gain.",
    ),
    "one scale": (keep_one_scale, "These labels have scale 36 only: there is nothing to choose."),
    "equal costs": (equalize_costs, "On this task all scales cost the same: there is nothing to save."),
    "one question": (
        lambda table: table.select([0]),
        "No finding: 1 test image is too few to compare constant with mixing fixed scales.",
    ),
}


def compare_constant(calibration, test):
    """A predictor that says the same of every sample."""
    return compare(
        calibration,
        test,
        estimators={"constant": lambda table: np.full(table.score.shape, 0.5)},
        bootstrap=Bootstrap(20),
    )


def write(path, comparison, test, **arguments):
    write_report(
        path,
        Findings(comparison, **arguments),
        test,
        np.full(test.score.shape, 0.5),
        title="title",
        figures=Figures(render_figure(draw_paper(plot_comparison(comparison), "title"), "png")),
        gallery=Gallery(lambda _: Image.new("RGB", (8, 8)), per_category=1),
        provenance=Provenance("command", "a: 1", "now"),
    )
    text = path.read_text(encoding="utf-8")
    (charts,) = re.findall(r'id="chart-data">(.*?)</script>', text)
    return re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL), charts


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_written_and_claims_nothing(name, tmp_path):
    change, headline = CASES[name]
    calibration, test = change(CALIBRATION), change(TEST)
    comparison = compare_constant(calibration, test)
    page, charts = write(tmp_path / "report.html", comparison, test)
    assert write_headline(comparison) == headline
    assert not re.search(r"\b(nan|inf)\b", page) and "NaN" not in charts and "Infinity" not in charts
    assert not any("nan" in str(table) for table in list_tables(Findings(comparison)))


def test_few_test_images_stand_under_a_banner_and_allow_no_finding(tmp_path):
    test = TEST.select(np.isin(TEST.image_id, np.unique(TEST.image_id.astype(str))[:29]))
    comparison = compare_constant(CALIBRATION, test)
    banners = find_banners(test_images=comparison.num_images)
    page, _ = write(tmp_path / "report.html", comparison, test, banners=banners)
    assert '<p class="banner loud">Only 29 test images: intervals and differences mean nothing.</p>' in page
    assert "<h1>No finding: 29 test images are too few" in page
    assert 'cell best"' not in page and 'cell best needed"' not in page
    # Cells of types with fewer than 25 questions are marked, with their number.
    few = [count for count in np.unique(test.kind.astype(str), return_counts=True)[1] if count < 25]
    assert few and all(f"<small>n = {count}</small>" in page for count in few)
    assert page.count('class="cell few') >= len(few) * len(test.scales)
    assert "interval" not in " ".join(write_sentences(Findings(comparison)))
    (savings,) = (table for table in list_tables(Findings(comparison)) if table.name == "savings")
    shown = savings.header.index("shown")
    assert {row[shown] for row in savings.rows} == {"-"}

    comparison = compare_constant(CALIBRATION, TEST)
    page, _ = write(tmp_path / "more.html", comparison, TEST)
    assert "banner" not in page and "No finding" not in page and " best" in page
    assert min(np.unique(TEST.kind.astype(str), return_counts=True)[1]) >= 25
    assert 'class="cell few"' not in re.sub(r'<section id="errors">.*?</section>', "", page, flags=re.S)


def test_a_difference_that_rounds_to_nothing_is_no_finding():
    estimate = Estimate(np.array(-0.0004), np.array(-0.0008), np.array(-0.0001))
    text = "about as much as the mix (95% interval \N{MINUS SIGN}0.1 to 0.0: no difference is shown)"
    assert describe_difference(estimate, "the mix", 0.95) == text
    estimate = Estimate(np.array(0.019), np.array(0.012), np.array(0.026))
    assert describe_difference(estimate, "the mix", 0.95) == (
        "1.9 points more than the mix (95% interval 1.2 to 2.6)"
    )


def test_a_choice_that_is_always_the_best_scale_is_said_to_be_that():
    change, _ = CASES["all right"]
    assert write_default(compare_constant(change(CALIBRATION), change(TEST))) == (
        "At its default price constant always uses scale 1, the best on calibration, which spends "
        "1 visual token per question and scores 100.0%."
    )


def test_what_does_not_exist_is_a_dash():
    nothing = Estimate(*np.full((3,), np.nan))
    assert format_score(nothing) == format_share(nothing) == format_difference(nothing) == "-"
    assert format_score(None) == format_share(None) == format_difference(None) == "-"
    assert format_tokens(float("nan")) == "-"
    alone = Estimate(np.array(0.5), np.array(np.nan), np.array(np.nan))
    assert (format_score(alone), format_difference(alone), format_share(alone)) == ("50.0", "+50.0", "50%")


@pytest.mark.parametrize("num_images", [2, 7])
def test_fewer_than_eight_test_images_have_no_interval_in_tables_and_charts(tmp_path, num_images):
    test = TEST.select(np.isin(TEST.image_id, np.unique(TEST.image_id.astype(str))[:num_images]))
    comparison = compare_constant(CALIBRATION, test)
    banners = find_banners(test_images=comparison.num_images)
    page, charts = write(tmp_path / "report.html", comparison, test, banners=banners)
    assert f"Only {num_images} test images: fewer than 8 give no interval" in page
    tables = "\n".join(str(table) for table in list_tables(Findings(comparison)))
    assert not re.search(r"\[[^]]*\d, ", tables) and "nan" not in tables
    assert "NaN" not in charts and not re.search(r"\b(nan|inf)\b", page)
    assert all(difference.p_value == 1 for difference in comparison.differences)
