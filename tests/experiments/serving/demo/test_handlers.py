"""Calls of the page: answers as HTML, and one clear message for whatever cannot be answered."""

import io
import re

import pytest
from PIL import Image

from tests.bombs import make_png
from tests.experiments.serving.conftest import COLOR, COUNT, draw_picture
from tests.experiments.serving.demo.conftest import make_terms


def read_message(html):
    """The only message in a piece of HTML."""
    (message,) = re.findall(r'<div class="ts-error" role="alert"><b>No answer:</b> (.*)</div>', html)
    return message


def read_chosen(html):
    (scale,) = re.findall(r'<tr class="ts-chosen">\s*<th scope="row">(\d+)', html)
    return int(scale)


def write(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_question_is_answered_at_every_scale(demo, upload):
    trial, answers, views = demo.ask(upload(draw_picture()), COLOR, make_terms())
    assert [item.scale for item in trial.answers] == [1, 9, 36, 144]
    assert answers.count('<th scope="row">') == 4 and read_chosen(answers) == 1
    assert "1 visual token of 144:\n99.3% saved." in answers
    assert views.count("<img") == views.count("data:image/jpeg;base64,") == 4
    assert "<b>Scale 9</b>: 9 visual tokens<br>192 x 192 pixels, grid 3 x 3" in views


def test_terms_change_the_choice_of_a_trial(demo, upload):
    trial, answers, _ = demo.ask(upload(draw_picture()), COUNT, make_terms())
    assert read_chosen(answers) == 144
    low, high = demo.budgets
    assert (low, high) == (1.0, 100.0)
    assert demo.modes == ["default", "guarantee", "budget", "price"]
    scales = [
        read_chosen(demo.choose(trial, make_terms(**terms)))
        for terms in ({"mode": "budget", "budget": low}, {"mode": "price", "price": 0}, {"mode": "guarantee"})
    ]
    assert scales[0] == 1 and scales[1] == 144
    path = demo.choose(trial, make_terms("price", price=0.9, escalates=True))
    assert re.findall(r"<b>(\d+)</b> \(confidence [\d.]+\)", path) == ["1", "9"]
    assert read_chosen(path) == 9 and path.count('<span class="ts-tag">tried</span>') == 1
    assert "Scale <b>9</b>, 10 visual tokens of 144:" in path
    assert demo.choose(None, make_terms()) == ""


def test_texts_are_escaped(demo, upload):
    question = '<img src=x onerror="alert(1)"> {{ 7 * 7 }} & how many?'
    trial, answers, _ = demo.ask(upload(draw_picture()), question, make_terms())
    assert trial is not None and "<img" not in answers
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt; {{ 7 * 7 }} &amp; how many?" in answers


NO_UPLOAD = "the picture is not among the uploaded files: upload it again"
NO_FILE = "the picture is not an uploaded file: upload it"
NO_FORMAT = "the image is not a PNG, JPEG or WebP file"
HOSTILE_PICTURES = {
    "none": (None, "there is no picture: upload or pick one"),
    "text": ("/etc/passwd", NO_FILE),
    "number": (7, NO_FILE),
    "list": ([{"path": "a"}], NO_FILE),
    "no path": ({"url": "http://example.org/a.png"}, NO_FILE),
    "path is a list": ({"path": ["a"]}, NO_FILE),
    "other file": ({"path": "/etc/passwd"}, NO_UPLOAD),
    "null byte": ({"path": "a\0b"}, NO_UPLOAD),
    "long": ({"path": "a" * 100_000}, NO_UPLOAD),
    "remote": ({"path": "http://169.254.169.254/a.png"}, "remote pictures are not fetched: upload the file"),
    "scheme": ({"path": "file:///etc/passwd"}, "remote pictures are not fetched: upload the file"),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_what_is_no_upload_is_refused(demo, name):
    picture, message = HOSTILE_PICTURES[name]
    trial, html, views = demo.ask(picture, COLOR, make_terms())
    assert trial is None and views == "" and read_message(html) == message


def test_links_and_paths_out_of_the_folder_are_refused(demo, upload, tmp_path):
    (tmp_path / "secret.png").write_bytes(write(draw_picture(), "PNG"))
    place = demo.folder / "uploads" / "0123abcd"
    upload(draw_picture())
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (
        place / "link.png",
        place / ".." / ".." / ".." / "secret.png",
        place,
        demo.folder / "gone.png",
    ):
        _, html, _ = demo.ask({"path": str(path)}, COLOR, make_terms())
        assert read_message(html) == NO_UPLOAD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NO_FORMAT),
        (b"\x89PNG\r\n\x1a\n", "cannot read the image: "),
        (write(draw_picture(), "PNG")[:200], "cannot read the image: damaged: "),
        (write(draw_picture(), "GIF"), NO_FORMAT),
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', NO_FORMAT),
        (b"%PDF-1.7", NO_FORMAT),
        (
            make_png(9_000, 9_000, b"\0" * 100_000),
            "cannot read the image: too large: 9000 x 9000 pixels (at most 1,000,000 pixels",
        ),
        (write(Image.new("RGB", (20_000, 1)), "PNG"), "cannot read the image: too large: 20000 x 1 pixels"),
        (b"\xff\xd8\xff" + b"x" * 100, "cannot read the image: "),
    ],
    ids=["empty", "header", "cut", "gif", "svg", "pdf", "bomb", "wide", "broken jpeg"],
)
def test_files_that_are_no_pictures_are_refused(demo, upload, content, message):
    trial, html, _ = demo.ask(upload(content, "x.png"), COLOR, make_terms())
    assert trial is None and read_message(html).startswith(message)
    assert str(demo.folder) not in html and "x.png" not in html


def test_large_files_are_refused_before_they_are_opened(demo, upload):
    demo.limits = type(demo.limits)(image_bytes=100)
    _, html, _ = demo.ask(upload(write(draw_picture(), "PNG")), COLOR, make_terms())
    assert read_message(html) == "the image file is larger than 100 bytes"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty: ask something"),
        (" \n\t", "the question is empty: ask something"),
        ("why " * 100, "the question has 399 characters, and at most 200 are read"),
        (None, "the question is not a text: ask something"),
        (["what"], "the question is not a text: ask something"),
        ({"a": 1}, "the question is not a text: ask something"),
        ("half \ud800", "the question is not valid Unicode: it has half a surrogate pair"),
    ],
)
def test_questions_that_are_none_are_refused(demo, upload, question, message):
    trial, html, _ = demo.ask(upload(draw_picture()), question, make_terms())
    assert trial is None and read_message(html) == message


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"mode": "budget", "budget": float("nan")}, "the budget must be a number from 1 to 100"),
        ({"mode": "budget", "budget": float("inf")}, "the budget must be a number from 1 to 100"),
        ({"mode": "budget", "budget": "20"}, "the budget must be a number from 1 to 100"),
        ({"mode": "budget", "budget": True}, "the budget must be a number from 1 to 100"),
        ({"mode": "budget", "budget": 10**400}, "the budget must be a number from 1 to 100"),
        ({"mode": "price", "price": -1}, "the price must be a number from 0 to 1"),
        ({"mode": "price", "price": None}, "the price must be a number from 0 to 1"),
        ({"mode": "free"}, "no such operating point: choose one of default, guarantee, budget, price"),
        ({"mode": {}}, "no such operating point: choose one of default, guarantee, budget, price"),
        ({"escalates": "yes"}, "escalate is yes or no"),
    ],
)
def test_terms_that_do_not_exist_are_refused(demo, upload, terms, message):
    trial, _, _ = demo.ask(upload(draw_picture()), COLOR, make_terms())
    assert read_message(demo.choose(trial, make_terms(**terms))) == message


def test_errors_of_the_program_are_logged_and_not_shown(demo, upload, monkeypatch, caplog):
    def fail(*given):
        raise RuntimeError("/home/someone/secret")

    monkeypatch.setattr(demo.model.backbone, "answer", fail)
    trial, html, _ = demo.ask(upload(draw_picture()), COLOR, make_terms())
    assert trial is None and read_message(html) == "Internal error: see the log of the server."
    assert "/home/someone/secret" in caplog.text
