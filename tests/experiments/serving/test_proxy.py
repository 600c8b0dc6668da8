"""The proxy: what the engine receives, what the client gets back, and what happens when the engine fails.

The engine is a second server of this project where answers matter, and otherwise a small application that
records what it receives.
"""

import asyncio
import base64
import io
import json
import logging
import threading
import time

import httpx
import pytest
from openai import InternalServerError, OpenAI
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from experiments.serving.adapters import (
    ImageArguments,
    ImageArgumentsByModality,
    ImageEmbeddings,
    ResizedImage,
)
from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import Terms
from experiments.serving.proxy import ProxyService
from experiments.serving.server import make_app
from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from tests.experiments.serving.conftest import (
    COLOR,
    COUNT,
    ask,
    call,
    draw_picture,
    make_fixed,
    make_local,
    serve,
    to_url,
)
from tests.m3_backbone.native.reference import draw_noise

PICTURE = draw_noise([(200, 120)])[0]
URL = to_url(PICTURE)
USAGE = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "engine",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "red"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


class Engine:
    """An engine that records requests; `respond` makes the response to a body."""

    def __init__(self, respond=lambda body: JSONResponse(ANSWER, headers={"x-engine": "yes"})):
        self.bodies, self.headers = [], []
        self.respond = respond
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/models", self.list_models),
                Route("/health", lambda request: Response()),
            ]
        )

    async def complete(self, request):
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        response = self.respond(self.bodies[-1])
        return await response if asyncio.iscoroutine(response) else response

    async def list_models(self, request):
        self.headers.append(request.headers)
        return JSONResponse({"object": "list", "data": [{"id": "engine", "object": "model"}]})


def make_proxy(upstream, backbone, chooser, adapter, *, limits=None, **options):
    limits, metrics = limits or Limits(), options.pop("metrics", None) or ServerMetrics()
    settings = {"default": Terms(), "upstream_seconds": 20.0, "max_batch": 8}
    predictor, prices = chooser
    service = ProxyService(
        backbone,
        predictor,
        prices,
        adapter,
        upstream,
        ImageReader(limits),
        metrics,
        **{**settings, **options},
    )
    return make_app(service, metrics, limits, max_requests=16)


def ask_engine(engine, backbone, chooser, adapter, *bodies, headers=(), **options):
    """The responses of a proxy in front of an engine."""
    with serve(engine.app) as (url, _):
        app = make_proxy(f"{url}/v1", backbone, chooser, adapter, **options)
        return call(app, *bodies, headers=headers)


@pytest.fixture(scope="module")
def qwen():
    return open_random_backbone(
        model_type="qwen3_vl",
        name="qwen",
        scales=[4, 16, 64],
        device="cpu",
        max_new_tokens=5,
    )


@pytest.fixture(scope="module")
def unopened():
    """A backbone whose weights are never loaded."""
    return open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[4, 16, 64], device="cpu", seed=1)


@pytest.fixture(scope="module")
def chooser(unopened):
    return make_fixed(unopened, 16)


def test_the_request_has_the_scale_and_is_otherwise_unchanged(unopened, chooser):
    engine = Engine()
    history = [
        {"role": "system", "content": "Be brief."},
        *ask(COUNT, URL)["messages"],
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "Are you sure?"},
    ]
    body = {
        "model": "engine",
        "messages": history,
        "temperature": 0.3,
        "guided_choice": ["a", "b"],
    }
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), {**body, "scale": 4})
    area = 4 * 32**2
    assert engine.bodies == [{**body, "mm_processor_kwargs": {"min_pixels": area, "max_pixels": area}}]
    chosen = {
        "scale": 4,
        "tried": [4],
        "visual_tokens": unopened.num_visual_tokens(PICTURE.size, 4),
        "finest_visual_tokens": unopened.num_visual_tokens(PICTURE.size, 64),
        "estimates": None,
        "price": None,
    }
    usage = {**USAGE, "visual_tokens": chosen["visual_tokens"]}
    assert response.json() == {**ANSWER, "usage": usage, "tokenscale": chosen}
    assert response.headers["x-tokenscale-scale"] == "4" and response.headers["x-engine"] == "yes"
    assert "model" not in vars(unopened)


def test_forms_of_the_engines(unopened, chooser, model):
    engine = Engine()
    body = ask(COUNT, URL, mm_processor_kwargs={"fps": 2})
    body["messages"][0]["content"][0]["uuid"] = "picture"
    ask_engine(engine, unopened, chooser, ImageArguments(), body)
    ask_engine(engine, unopened, chooser, ImageArgumentsByModality(), body)
    ask_engine(engine, unopened, chooser, ResizedImage(), body)
    ask_engine(engine, model.backbone, (model.predictor, model.prices), ImageEmbeddings(), body)
    areas = unopened.processor_arguments(PICTURE.size, 16)
    flat, by_modality, resized, embeds = engine.bodies
    assert flat["mm_processor_kwargs"] == {"fps": 2, **areas}
    assert by_modality["mm_processor_kwargs"] == {"fps": 2, "image": areas}
    assert resized["mm_processor_kwargs"] == embeds["mm_processor_kwargs"] == {"fps": 2}
    parts = [sent["messages"][0]["content"] for sent in engine.bodies]
    # The engine's cache never takes one scale for another.
    assert [part[0]["uuid"] for part in parts] == ["picture-scale-16"] * 3 + ["picture-scale-144"]
    assert [part[0]["type"] for part in parts] == ["image_url"] * 3 + ["image_embeds"]
    assert parts[0][0]["image_url"] == parts[1][0]["image_url"] == {"url": URL} != parts[2][0]["image_url"]
    assert parts[3][0].keys() == {"type", "image_embeds", "uuid"}
    assert all(part[1] == {"type": "text", "text": COUNT} for part in parts)


def test_the_predictor_reads_the_question(model):
    """With embeddings of M3, whose tower runs here: colors at the coarsest scale, counts at the finest."""
    engine = Engine()
    bodies = [ask(question, URL) for question in (COLOR, COUNT)] + [ask(COUNT, URL, budget=1)]
    responses = ask_engine(
        engine, model.backbone, (model.predictor, model.prices), ImageEmbeddings(), *bodies
    )
    assert [response.json()["tokenscale"]["scale"] for response in responses] == [1, 144, 1]
    assert responses[0].json()["tokenscale"]["estimates"].keys() == {"1", "9", "36", "144"}


def test_a_request_without_an_image_passes_unchanged(unopened, chooser):
    engine = Engine()
    body = {"model": "engine", "messages": [{"role": "user", "content": "hello"}]}
    plain, with_price = ask_engine(engine, unopened, chooser, ImageArguments(), body, {**body, "price": 1})
    assert plain.json() == ANSWER and "x-tokenscale-scale" not in plain.headers and engine.bodies == [body]
    assert with_price.status_code == 400 and "only a request with an image" in with_price.text


VIDEO = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
REFUSED = [
    (b"{", "the body is not JSON"),
    ({"model": "engine"}, "give a list of messages"),
    (ask(COUNT, URL, URL), "the scale of one image, and there are 2"),
    (
        {"messages": [{"role": "user", "content": [*ask(COUNT, URL)["messages"][0]["content"], VIDEO]}]},
        "for an image alone, and there is video_url beside it",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "uuid": "a"}]}]},
        "an image part has no url",
    ),
    ({"messages": [{**ask(COUNT, URL)["messages"][0], "role": "system"}]}, "there is no message of the user"),
    (ask(COUNT, "http://127.0.0.1/a.png"), "remote images are not fetched"),
    (ask(COUNT, "data:image/png;base64,aaaa"), "not a PNG, JPEG or WebP file"),
    (ask(COUNT, URL[:-4] + "a=aa"), "not valid base64"),
    (ask(COUNT, URL[:-4] + 'a"aa'), "not valid base64"),
    (ask(COUNT, URL[:-5]), "not valid base64"),
    (ask(COUNT, to_url(draw_picture(size=(600, 2)))), "is too long: its sides may differ"),
    (ask(COUNT, URL, scale=5), "scale 5 is not on the ladder"),
    (ask(COUNT, URL, escalate=True), "only a server with the backbone in its own process can escalate"),
    (ask(COUNT, URL, mm_processor_kwargs={"max_pixels": 9}), "the predictor sets the resolution"),
]


@pytest.fixture(scope="module")
def refusals(unopened, chooser):
    engine = Engine()
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body, _ in REFUSED]
    responses = ask_engine(engine, unopened, chooser, ImageArguments(), *bodies)
    assert engine.bodies == []
    return responses


@pytest.mark.parametrize("row", range(len(REFUSED)), ids=lambda row: REFUSED[row][1][:40])
def test_what_has_no_scale_is_refused(refusals, row):
    assert refusals[row].status_code == 400
    assert REFUSED[row][1] in refusals[row].json()["error"]["message"]


def test_a_predictor_with_features_of_the_backbone_needs_an_adapter_that_encodes(model, unopened, chooser):
    with pytest.raises(
        ValueError, match="the scales of tiny_m3 are not set by arguments of an image processor"
    ):
        make_proxy("http://engine", model.backbone, (model.predictor, model.prices), ImageArguments())
    reading, prices = make_fixed(unopened, 16)
    reading.features = type(reading.features)(visual=4)
    with pytest.raises(ValueError, match="predictor fixed reads features of the backbone"):
        make_proxy("http://engine", unopened, (reading, prices), ImageArguments())


def test_errors_of_the_engine_pass(unopened, chooser):
    body = {"error": {"message": "no such model", "type": "NotFoundError", "param": None, "code": 404}}
    engine = Engine(lambda _: JSONResponse(body, status_code=404, headers={"x-request-id": "7"}))
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), ask(COUNT, URL))
    assert (response.status_code, response.json(), response.headers["x-request-id"]) == (404, body, "7")


@pytest.mark.parametrize("content", [b"", b"not JSON", b"[1]", b'{"usage": null}'])
def test_a_strange_answer_of_the_engine_passes(unopened, chooser, content):
    engine = Engine(lambda _: Response(content, media_type="application/json"))
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), ask(COUNT, URL))
    assert response.status_code == 200
    if content[:1] != b"{":
        assert response.content == content


@pytest.mark.parametrize("status", [101, 307, 999])
def test_a_status_that_is_no_answer_is_an_error(unopened, chooser, status):
    engine = Engine(lambda _: Response(status_code=status, headers={"location": "http://10.0.0.1/"}))
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), ask(COUNT, URL))
    assert response.status_code == 502 and "location" not in response.headers
    assert response.json()["error"]["type"] == "server_error"


def test_a_header_of_the_engine_that_is_no_text_is_left_out(unopened, chooser):
    engine = Engine(lambda _: JSONResponse(ANSWER, headers={"x-a": "\xe9", "x-tokenscale-scale": "999"}))
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), ask(COUNT, URL))
    assert response.status_code == 200 and "x-a" not in response.headers
    assert response.headers["x-tokenscale-scale"] == "16"


def test_a_large_answer_of_the_engine_is_cut_off(unopened, chooser):
    engine = Engine(lambda _: Response(b"x" * 2000))
    (response,) = ask_engine(
        engine, unopened, chooser, ImageArguments(), ask(COUNT, URL), max_response_bytes=1000
    )
    assert response.status_code == 502 and "more than 1,000 bytes" in response.text


def test_the_key_goes_to_the_engine_and_into_no_log(unopened, chooser, caplog):
    engine = Engine()
    with (
        caplog.at_level(logging.DEBUG),
        serve(engine.app) as (engine_url, _),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments())) as (url, _),
    ):
        headers = {"authorization": "Bearer sk-secret", "x-team": "blue", "connection": "keep-alive"}
        httpx.post(f"{url}/v1/chat/completions", json=ask(COUNT, URL), headers=headers)
        models = httpx.get(f"{url}/v1/models", headers=headers).json()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert models["data"][0]["id"] == "engine"
    assert [sent["authorization"] for sent in engine.headers] == ["Bearer sk-secret"] * 2
    assert engine.headers[0]["x-team"] == "blue" and engine.headers[0]["host"] in engine_url
    assert "sk-secret" not in caplog.text


def test_no_cookie_of_one_client_reaches_the_engine_for_another(unopened, chooser):
    engine = Engine(lambda _: JSONResponse(ANSWER, headers={"set-cookie": "session=1"}))
    bodies = [ask(COUNT, URL)] * 2
    with (
        serve(engine.app) as (engine_url, _),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments())) as (url, _),
    ):
        passed = [
            httpx.post(f"{url}/v1/chat/completions", json=body).headers["set-cookie"] for body in bodies
        ]
    assert passed == ["session=1"] * 2
    assert not any("cookie" in sent for sent in engine.headers)


@pytest.mark.parametrize("metadata", [b"", b"x" * 60_000], ids=["short", "long"])
def test_an_image_that_is_not_decoded_passes_as_it_is(unopened, chooser, metadata):
    """Also one with more metadata than the start of the file that is decoded for its size."""
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", exif=b"Exif\0\0" + metadata)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    engine = Engine()
    (response,) = ask_engine(engine, unopened, chooser, ImageArguments(), ask(COUNT, url))
    expected = unopened.num_visual_tokens(PICTURE.size, 16)
    assert response.json()["tokenscale"]["visual_tokens"] == expected
    assert engine.bodies[0]["messages"] == ask(COUNT, url)["messages"]


def make_events(*, usage=True):
    def chunk(**fields):
        return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "engine", **fields}

    texts = ["re", 'd\u2028"usage"']
    chunks = [chunk(choices=[{"index": 0, "delta": {"content": text}}]) for text in texts]
    if usage:
        chunks.append(chunk(choices=[], usage=USAGE))
    lines = [f"data: {json.dumps(content, ensure_ascii=False)}\n\n" for content in chunks]
    return "".join([": comment\n\n", *lines, "data: [DONE]\n\n"]).encode()


def test_streams_pass_as_they_come(unopened, chooser):
    proceed, content = threading.Event(), make_events()

    async def produce():
        yield content[:100]
        while not proceed.is_set():
            await asyncio.sleep(0.01)
        for start in range(100, len(content), 7):  # cut anywhere
            yield content[start : start + 7]

    engine = Engine(lambda _: StreamingResponse(produce(), media_type="text/event-stream"))
    with (
        serve(engine.app) as (engine_url, _),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments())) as (url, _),
    ):
        client = OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        with client.chat.completions.with_streaming_response.create(**ask(COUNT, URL), stream=True) as raw:
            assert raw.headers["x-tokenscale-scale"] == "16"
            assert next(raw.iter_bytes()).startswith(b": comment")  # before the engine has finished
        proceed.set()
        first, second, last = client.chat.completions.create(**ask(COUNT, URL), stream=True)
    assert first.choices[0].delta.content + second.choices[0].delta.content == 'red\u2028"usage"'
    assert first.model_extra["tokenscale"]["scale"] == 16 and not second.model_extra
    assert last.usage.model_extra["visual_tokens"] == unopened.num_visual_tokens(PICTURE.size, 16)
    assert last.usage.prompt_tokens == 7


def test_an_engine_that_breaks_off_ends_the_stream_with_an_error(unopened, chooser):
    async def produce():
        yield make_events(usage=False)[:200]
        raise RuntimeError("out of memory")

    engine = Engine(lambda _: StreamingResponse(produce(), media_type="text/event-stream"))
    with (
        serve(engine.app) as (engine_url, _),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments())) as (url, _),
    ):
        text = httpx.post(f"{url}/v1/chat/completions", json=ask(COUNT, URL, stream=True)).text
    assert "the engine broke off its answer" in text.splitlines()[-2]


def test_an_engine_that_is_down_or_slow(unopened, chooser):
    app = make_proxy("http://127.0.0.1:9", unopened, chooser, ImageArguments())
    with serve(app) as (url, _):
        down = httpx.post(f"{url}/v1/chat/completions", json=ask(COUNT, URL))
        assert down.status_code == 502 and "the engine cannot be reached" in down.json()["error"]["message"]
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.get(f"{url}/v1/models").status_code == 502
        with pytest.raises(InternalServerError, match="the engine cannot be reached"):
            OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0).chat.completions.create(
                **ask(COUNT, URL)
            )

    async def wait(_):
        await asyncio.sleep(3)

    with (
        serve(Engine(wait).app) as (engine_url, engine_server),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments(), upstream_seconds=0.2)) as (url, _),
    ):
        slow = httpx.post(f"{url}/v1/chat/completions", json=ask(COUNT, URL))
        assert slow.status_code == 504 and slow.json()["error"]["type"] == "server_error"
        engine_server.force_exit = True


def test_the_engine_hears_that_the_client_has_gone(unopened, chooser):
    gone = threading.Event()

    async def produce():
        try:
            while True:
                yield b": waiting\n\n"
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    engine = Engine(lambda _: StreamingResponse(produce(), media_type="text/event-stream"))
    with (
        serve(engine.app) as (engine_url, _),
        serve(make_proxy(engine_url, unopened, chooser, ImageArguments())) as (url, _),
    ):
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=ask(COUNT, URL, stream=True)
        ) as response:
            next(response.iter_bytes())
        assert gone.wait(10)
        end = time.monotonic() + 10
        while "requests_in_progress 0.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end


def test_a_proxied_answer_equals_that_of_the_model(qwen):
    """The engine is a local server that answers at its finest scale; the proxy resizes the picture."""
    pictures = draw_noise([(320, 256), (128, 256), (300, 96)])
    questions = ["What is it?", COLOR, COUNT]
    finest = AdaptiveVLM(qwen, *make_fixed(qwen, 64))
    coarse = AdaptiveVLM(qwen, *make_fixed(qwen, 16))
    with (
        serve(make_local(finest)) as (engine_url, _),
        serve(make_proxy(f"{engine_url}/v1", qwen, make_fixed(qwen, 16), ResizedImage())) as (url, _),
    ):
        client = OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        for picture, question in zip(pictures, questions, strict=True):
            body = ask(question, to_url(picture)) | {"model": "qwen"}
            expected = coarse.answer(picture, question)
            answer = client.chat.completions.create(**body)
            assert answer.choices[0].message.content == expected.text
            assert answer.usage.completion_tokens == len(expected.answer.token_ids)
            assert answer.usage.model_extra["visual_tokens"] == expected.cost
            chunks = client.chat.completions.create(**body, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == expected.text
