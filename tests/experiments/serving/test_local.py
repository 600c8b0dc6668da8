"""The server with a model in its own process: answers, refusals, metrics, shutdown."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, OpenAI

from experiments.serving.limits import Limits
from experiments.serving.local import LocalService
from experiments.serving.protocol import Terms
from tests.bombs import make_png
from tests.experiments.serving.conftest import (
    COLOR,
    COUNT,
    ask,
    call,
    draw_picture,
    make_local,
    serve,
    to_url,
)

URL = to_url(draw_picture())


def read_metrics(app_or_url):
    text = httpx.get(f"{app_or_url}/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_answers_equal_those_of_the_model(model):
    pictures = [draw_picture(color) for color in ("red", "green", "white", "black")]
    questions = [COLOR, COUNT, COUNT, COLOR]
    bodies = [ask(question, to_url(picture)) for picture, question in zip(pictures, questions, strict=True)]
    app = make_local(model, window_ms=20.0)
    responses = call(app, *bodies)
    expected = model.answer(pictures, questions)
    for response, answer in zip(responses, expected, strict=True):
        content = response.json()
        assert response.status_code == 200, content
        assert content["choices"][0]["message"]["content"] == answer.text
        assert content["usage"]["visual_tokens"] == content["tokenscale"]["visual_tokens"] == answer.cost
        assert response.headers["x-tokenscale-scale"] == str(answer.scale)
        assert content["usage"]["completion_tokens"] == len(answer.answer.token_ids)
        estimates = content["tokenscale"]["estimates"]
        assert [estimates[str(scale)] for scale in model.backbone.scales] == list(answer.choice.estimates)
    assert [answer.scale for answer in expected] == [1, 144, 144, 1]


def test_prompt_tokens_are_those_of_the_model(model):
    (response,) = call(make_local(model), ask(COUNT, URL, scale=9))
    inputs = model.backbone.generate_inputs([draw_picture()], [COUNT], 9)
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "scale", "price"),
    [
        ({}, 144, 0.2),
        ({"price": 4}, 1, 4.0),
        ({"budget": 1}, 1, 4.0),
        ({"point": "guarantee"}, 144, 0.0),
        ({"scale": 36}, 36, None),
        ({"escalate": False, "scale": 9}, 9, None),
    ],
)
def test_a_request_chooses_its_operating_point(model, fields, scale, price):
    (response,) = call(make_local(model), ask(COUNT, URL, **fields))
    chosen = response.json()["tokenscale"]
    assert (chosen["scale"], chosen["tried"], chosen["price"]) == (scale, [scale], price)
    assert (chosen["estimates"] is None) == ("scale" in fields)
    assert chosen["finest_visual_tokens"] == 144


def test_settings_are_the_default_of_requests(model):
    app = make_local(model, default=Terms(scale=9))
    plain, given = call(app, ask(COUNT, URL), ask(COUNT, URL, budget=1))
    assert plain.json()["tokenscale"]["scale"] == 9 and given.json()["tokenscale"]["scale"] == 1
    with pytest.raises(Exception, match="no operating point 'nowhere' was saved"):
        make_local(model, default=Terms(point="nowhere"))


def test_the_official_client(local_url, model):
    client = OpenAI(base_url=f"{local_url}/v1", api_key="unused", max_retries=0)
    card = client.models.list().data[0]
    assert card.id == "tiny_m3" and (card.model_extra or {})["tokenscale"]["scales"] == [1, 9, 36, 144]
    body = ask(COUNT, to_url(draw_picture(), "JPEG"), max_tokens=4, temperature=0)
    answer = client.chat.completions.create(**body, extra_body={"price": 4})
    assert answer.model_extra["tokenscale"]["scale"] == 1
    assert answer.usage.model_extra["visual_tokens"] == 1
    raw = client.chat.completions.with_raw_response.create(**ask(COUNT, to_url(draw_picture(), "WEBP")))
    assert raw.headers["x-tokenscale-scale"] == "144"
    *chunks, last = client.chat.completions.create(
        **ask(COUNT, URL), stream=True, stream_options={"include_usage": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == model.answer(draw_picture(), COUNT).text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
    assert chunks[0].model_extra["tokenscale"]["scale"] == 144
    assert last.choices == [] and last.usage.model_extra["visual_tokens"] == 144
    with pytest.raises(BadRequestError, match="answers are greedy") as refusal:
        client.chat.completions.create(**ask(COUNT, URL), temperature=0.7)
    assert refusal.value.param == "temperature" and refusal.value.type == "invalid_request_error"


def test_an_answer_ends_where_the_request_wants(model):
    app = make_local(model)
    whole, short = call(app, ask(COLOR, URL), ask(COLOR, URL, max_completion_tokens=1))
    answer = model.answer(draw_picture(), COLOR)
    cut = short.json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 1
    assert cut["choices"][0]["message"]["content"] == model.backbone.processor.decode(
        answer.answer.token_ids[:1]
    )
    text = whole.json()["choices"][0]["message"]["content"]
    assert len(text) > 1
    (stopped,) = call(app, ask(COLOR, URL, stop=[text[1:], "not there"]))
    assert stopped.json()["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": text[:1], "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_other_requests_of_a_batch_are_answered(model):
    bodies = [ask(COUNT, URL), ask("what <image> is it?", URL), ask(" ", URL), ask(COLOR, URL)]
    responses = call(make_local(model, window_ms=20.0), *bodies)
    assert [response.status_code for response in responses] == [200, 400, 400, 200]
    assert "placeholder of the image" in responses[1].json()["error"]["message"]
    assert responses[2].json()["error"]["message"] == "the question is empty: ask something"


def wrap(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(form):
    file = io.BytesIO()
    draw_picture().save(file, form)
    return file.getvalue()


TEXT = ask(COUNT, URL)["messages"]
REFUSED = [
    (b"", 400, "the body is not JSON"),
    (b"[1]", 400, "the body is not a JSON object"),
    (b'{"model": "tiny_m3", "temperature": NaN}', 400, "NaN is not a number"),
    (b"[" * 100_000, 400, "the body is not JSON"),
    (b'{"model": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
    (b"\xff\xfe{}", 400, "the body is not JSON"),
    ({"messages": TEXT}, 400, "model: Field required"),
    ({"model": "gpt-4", "messages": TEXT}, 404, "there is no model 'gpt-4', only 'tiny_m3'"),
    ({"model": "tiny_m3", "messages": []}, 400, "messages: List should have at least 1 item"),
    ({"model": "tiny_m3", "messages": "hello"}, 400, "messages: Input should be a valid list"),
    (ask(COUNT), 400, "about one image, and the message has 0"),
    (ask(COUNT, URL, URL), 400, "about one image, and the message has 2"),
    ({"model": "tiny_m3", "messages": TEXT * 2}, 400, "give a single message, of the role user"),
    (
        {"model": "tiny_m3", "messages": [{"role": "system", "content": "be brief"}]},
        400,
        "give a single message, of the role user",
    ),
    (
        {"model": "tiny_m3", "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        "content.0: Input tag 'input_audio' found",
    ),
    (ask(COUNT, URL, n=2), 400, "a greedy answer is the only one"),
    (ask(COUNT, URL, temperature=-1), 400, "temperature: Input should be greater than or equal to 0"),
    (ask(COUNT, URL, max_tokens=0), 400, "max_tokens: Input should be greater than or equal to 1"),
    (ask(COUNT, URL, tools=[{"type": "function"}]), 400, "this server does not have the parameter"),
    (ask(COUNT, URL, logprobs=True), 400, "this server does not have the parameter"),
    (ask(COUNT, URL, response_format={"type": "json_object"}), 400, "response_format.type"),
    (ask(COUNT, URL, stream_options={"include_usage": True}), 400, "only a streamed response"),
    (ask(COUNT, URL, scale=7), 400, "scale 7 is not on the ladder of this backbone: choose one of 1, 9"),
    (ask(COUNT, URL, scale=9, price=1), 400, "scale forces a scale"),
    (ask(COUNT, URL, price=1, budget=1), 400, "give a price or a budget"),
    (ask(COUNT, URL, price="cheap"), 400, "price: Input should be a valid number"),
    (ask(COUNT, URL, budget=0.5), 400, "no price keeps the mean cost within 0.5"),
    (ask(COUNT, URL, point="nowhere"), 400, "no operating point 'nowhere'"),
    (ask(COUNT, URL, escalate=True), 400, "no hybrid was saved with this predictor"),
    (ask("word " * 1500, URL), 400, "the question is too long"),
    (ask("word " * 2000, URL), 400, "the question has 10,000 characters, and at most 8,000 are read"),
    (ask("what \ud800?", URL), 400, "not valid Unicode"),
    (ask(COUNT, "http://127.0.0.1/a.png"), 400, "remote images are not fetched"),
    (ask(COUNT, "HTTPS://example.org/a.png"), 400, "remote images are not fetched"),
    (ask(COUNT, "file:///etc/passwd"), 400, "an image is a data URL"),
    (ask(COUNT, "data:text/html;base64,aaaa"), 400, "an image is a data URL"),
    (ask(COUNT, "data:image/png;base64,#!"), 400, "is not valid base64"),
    (ask(COUNT, wrap(b"")), 400, "not a PNG, JPEG or WebP file"),
    (ask(COUNT, wrap(b"%!PS-Adobe")), 400, "not a PNG, JPEG or WebP file"),
    (ask(COUNT, wrap(render("GIF"))), 400, "not a PNG, JPEG or WebP file"),
    (ask(COUNT, wrap(render("PNG")[:200])), 400, "cannot read the image: damaged"),
    (ask(COUNT, wrap(make_png(12_000, 12_000))), 400, "too large: 12000 x 12000 pixels"),
    (ask(COUNT, wrap(b"\xff\xd8\xff" + b"0" * 70_000)), 413, "the image file is larger than 60,000 bytes"),
    (ask(COUNT, "data:image/png;base64," + "0" * 400_000), 413, "the request is larger than 200,000 bytes"),
]


@pytest.fixture(scope="module")
def refusals(model):
    """Responses to all requests of `REFUSED`, at the same time."""
    app = make_local(model, limits=Limits(body_bytes=200_000, image_bytes=60_000))
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body, _, _ in REFUSED]
    return call(app, *bodies)


@pytest.mark.parametrize("row", range(len(REFUSED)), ids=lambda row: REFUSED[row][2][:40])
def test_what_cannot_be_answered_is_refused_in_one_line(refusals, row):
    _, status, message = REFUSED[row]
    error = refusals[row].json()["error"]
    assert (refusals[row].status_code, error.keys()) == (status, {"message", "type", "param", "code"})
    assert message in error["message"] or message in f"{error['param']}: {error['message']}"
    assert "\n" not in error["message"] and len(error["message"]) <= 500


def test_parameters_that_ask_for_nothing_are_accepted(model):
    fields = {"tools": [], "logprobs": False, "presence_penalty": 0, "seed": 3, "top_p": 0.9, "user": "me"}
    fields |= {"response_format": {"type": "text"}, "n": 1, "metadata": {"a": "b"}, "store": False}
    (response,) = call(make_local(model), ask(COUNT, URL, **fields))
    assert response.status_code == 200, response.text


def test_access(model):
    body = ask(COUNT, URL)
    app = make_local(model, api_key="sk-secret")
    (without,) = call(app, body)
    assert without.status_code == 401 and without.json()["error"]["code"] == "invalid_api_key"
    (wrong,) = call(app, body, headers={"authorization": "Bearer sk-wrong"})
    (right,) = call(app, body, headers={"authorization": "Bearer sk-secret"})
    assert (wrong.status_code, right.status_code) == (401, 200)
    assert call(app, None, path="/health")[0].status_code == 200
    assert call(app, None, path="/metrics")[0].status_code == 401
    # A page of another site, which resolves its own name to this machine, or sends a form.
    (rebound,) = call(make_local(model), body, headers={"host": "evil.example"})
    assert rebound.status_code == 403
    assert call(make_local(model, host="0.0.0.0"), body, headers={"host": "my.example"})[0].status_code == 200
    with serve(make_local(model)) as (url, _):
        form = httpx.post(
            f"{url}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "text/plain"}
        )
        assert form.status_code == 415
        assert httpx.get(f"{url}/v1/nowhere").json()["error"]["message"] == "Not Found: GET /v1/nowhere"
        assert httpx.get(f"{url}/v1/chat/completions").status_code == 405


def test_a_wrong_key_is_an_error_of_the_official_client(model):
    with serve(make_local(model, api_key="sk-secret")) as (url, _):
        with pytest.raises(AuthenticationError, match="the API key is missing or wrong"):
            OpenAI(base_url=f"{url}/v1", api_key="sk-wrong").models.list()
        assert OpenAI(base_url=f"{url}/v1", api_key="sk-secret").models.list().data[0].id == "tiny_m3"


class PausedService(LocalService):
    """A service whose worker thread waits for `proceed` before each batch."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.proceed, self.batches = threading.Event(), []

    def _work(self, batch):
        self.batches.append([asked.question for asked in batch])
        assert self.proceed.wait(20)
        return super()._work(batch)


@pytest.fixture
def paused(model):
    """A server with a paused service: its URL, the server and the service."""
    made = []

    def make(*arguments, **options):
        made.append(PausedService(*arguments, **options))
        return made[0]

    app = make_local(model, service=make, max_requests=3, max_batch=1)
    with serve(app) as (url, server):
        yield url, server, made[0]
        made[0].proceed.set()


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def send_raw(url, body):
    """An open connection with a request whose response nobody has read."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + content)
    return connection


def test_a_full_server_answers_429_and_drops_what_nobody_waits_for(paused):
    url, _, service = paused
    connections = [send_raw(url, ask(f"{COUNT} {number}", URL)) for number in range(3)]
    wait_for(lambda: service.batches and service._batcher.num_waiting == 2)
    refused = httpx.post(f"{url}/v1/chat/completions", json=ask(COUNT, URL))
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert read_metrics(url)["tokenscale_queue_length"] == 2
    # Images are decoded at the same time: the first request to be answered may be any of the three.
    ((question,),) = service.batches
    first = int(question.removeprefix(f"{COUNT} "))
    gone, last = sorted({0, 1, 2} - {first})
    connections[gone].close()
    wait_for(lambda: service._batcher.num_waiting == 1)
    service.proceed.set()
    for number in (first, last):
        assert connections[number].recv(100).startswith(b"HTTP/1.1 200")
        connections[number].close()
    assert service.batches == [[f"{COUNT} {first}"], [f"{COUNT} {last}"]]
    wait_for(lambda: read_metrics(url)["tokenscale_requests_in_progress"] == 0)
    metrics = read_metrics(url)
    counts = {
        status: metrics[f'tokenscale_requests_total{{status="{status}"}}'] for status in (200, 429, 499)
    }
    assert counts == {200: 2, 429: 1, 499: 1}


def test_a_stopping_server_finishes_what_it_has_taken(paused):
    url, server, service = paused
    connections = [send_raw(url, ask(COUNT, URL)) for _ in range(2)]
    wait_for(lambda: service.batches and service._batcher.num_waiting == 1)
    server.should_exit = True
    time.sleep(0.3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    service.proceed.set()
    for connection in connections:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()


def test_metrics_count_scales_and_visual_tokens(model):
    app = make_local(model, window_ms=20.0)
    with serve(app) as (url, _):
        before = read_metrics(url)
        assert before["tokenscale_visual_tokens_total"] == 0
        with httpx.Client() as client:
            for question in (COUNT, COLOR, COLOR):
                assert client.post(f"{url}/v1/chat/completions", json=ask(question, URL)).status_code == 200
            client.post(f"{url}/v1/chat/completions", json={})
        metrics = read_metrics(url)
    assert metrics['tokenscale_chosen_scale_total{scale="1"}'] == 2
    assert metrics['tokenscale_chosen_scale_total{scale="144"}'] == 1
    assert metrics["tokenscale_visual_tokens_total"] == 146
    assert metrics["tokenscale_visual_tokens_saved"] == 3 * 144 - 146
    assert metrics['tokenscale_requests_total{status="200"}'] == 3
    assert metrics['tokenscale_requests_total{status="400"}'] == 1
    for name in ("predictor_milliseconds", "answer_milliseconds", "batch_size"):
        assert metrics[f"tokenscale_{name}_count"] == 3


def test_a_slow_body_is_refused(model):
    app = make_local(model, limits=Limits(body_seconds=0.2))

    async def send():
        async def trickle():
            yield b"{"
            await asyncio.sleep(5)

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/chat/completions", content=trickle(), headers=headers)

    assert asyncio.run(send()).status_code == 408
