"""The page in Gradio, over HTTP. Runs where the extra `demo` is installed."""

import json

import httpx
import pytest

pytest.importorskip("gradio")

from experiments.serving.demo.examples import Example, Offer
from experiments.serving.demo.handlers import Demo
from experiments.serving.demo.page import make_app
from experiments.serving.limits import Limits
from tests.experiments.serving.conftest import COLOR, COUNT, draw_picture, serve


@pytest.fixture(scope="module")
def page(escalating, tmp_path_factory):
    """URL of a page with two pictures, and its demo."""
    demo = Demo(escalating, Limits(image_bytes=50_000), tmp_path_factory.mktemp("demo").resolve())
    offer = Offer((Example(draw_picture(), COLOR), Example(draw_picture("green"), COUNT)), {"color": COLOR})
    with serve(make_app(demo, offer, host="127.0.0.1", max_waiting=3)) as (url, _):
        yield url, demo


class Browser:
    """Makes the calls of the page, as its script does."""

    def __init__(self, url):
        self.client = httpx.Client(base_url=url, timeout=60)
        self.config = self.client.get("/config").raise_for_status().json()
        self.number_of = {entry["api_name"]: entry["id"] for entry in self.config["dependencies"]}

    def upload(self, content, name="a.png"):
        response = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        return response.json()[0] if response.status_code == 200 else response

    def call(self, name, *values, event=None, session="s"):
        body = {
            "data": list(values),
            "fn_index": self.number_of[name],
            "session_hash": session,
            "event_data": event,
        }
        content = json.dumps(body).encode()
        joined = self.client.post("/gradio_api/queue/join", content=content, headers=JSON)
        if joined.status_code != 200:
            return joined
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"]


JSON = {"content-type": "application/json"}
TERMS = ("default", 20, 0.1, False)


@pytest.fixture
def browser(page):
    return Browser(page[0])


def describe_file(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_an_offered_picture_is_asked_about_and_the_choice_is_changed(page, browser):
    picture, question = browser.call("pick", event={"index": 1, "value": None})
    assert question == COUNT and picture["path"].endswith("picture_1.png")
    trial, answers, views = browser.call("ask", picture, question, *TERMS)
    assert trial is None  # it stays here
    assert '<tr class="ts-chosen">\n<th scope="row">144' in answers and views.count("<img") == 4
    (answers,) = browser.call("choose", None, "budget", 1, 0.1, False)
    assert '<tr class="ts-chosen">\n<th scope="row">1 ' in answers
    (other,) = browser.call("choose", None, *TERMS, session="another")
    assert other == ""


def test_an_upload_is_asked_about(browser):
    from tests.experiments.serving.demo.test_handlers import write

    path = browser.upload(write(draw_picture(), "JPEG"), "../../evil<b>.png")
    assert ".." not in path
    _, answers, _ = browser.call("ask", describe_file(path), COLOR, *TERMS)
    assert '<tr class="ts-chosen">\n<th scope="row">1 ' in answers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((None, COLOR, *TERMS), "there is no picture"),
        (("a.png", COLOR, *TERMS), "the picture is not an uploaded file"),
        ((describe_file("/etc/passwd"), COLOR, *TERMS), "the picture is not among the uploaded files"),
        ((describe_file("http://127.0.0.1:9/a.png"), COLOR, *TERMS), "remote pictures are not fetched"),
        ((None, {"path": "http://127.0.0.1:9/a.png"}, *TERMS), "remote pictures are not fetched"),
        ((None, ["x"], *TERMS), "the question is not a text"),
        ((None, COLOR, "budget", float("nan"), 0.1, False), "there is no picture"),
        ((), "the request has 0 values, and this function takes 6"),
        ((None,) * 9, "the request has 9 values, and this function takes 6"),
    ],
)
def test_wrong_values_get_one_message(browser, values, message):
    result = browser.call("ask", *values)
    text = result[1] if isinstance(result, list) else result.json()["detail"]
    assert message in text and "/tmp" not in text


def test_picks_that_do_not_exist_clear_the_form(browser):
    for index in (7, -1, "0", None, True):
        assert browser.call("pick", event={"index": index, "value": None}) == [None, ""]


def test_large_uploads_are_refused(browser):
    response = browser.upload(b"x" * 60_000)
    assert response.status_code == 413 and "maximum allowed size" in response.text


def test_nothing_is_sent_elsewhere_and_other_routes_are_closed(page, browser):
    assert browser.config["analytics_enabled"] is False
    html = browser.client.get("/").text
    assert browser.client.get("/").headers["content-security-policy"].startswith("default-src 'self'")
    assert "https://fonts.g" not in html
    for path in ("/gradio_api/openapi.json", "/monitoring", "/gradio_api/runs", "/docs"):
        assert browser.client.get(path).status_code == 404
    direct = {"data": [None, COLOR, *TERMS], "fn_index": browser.number_of["ask"]}
    assert browser.client.post("/gradio_api/run/ask", json=direct).status_code == 404
