"""Which requests reach the page: its own, from its own place, with its own files."""

import asyncio
import json

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from experiments.serving.demo.gate import Call, Gate
from experiments.serving.limits import Limits
from experiments.serving.server import LOOPBACK

CALLS = {0: Call(2, (0,)), 1: Call(1)}


@pytest.fixture
def send(tmp_path):
    """Send a request through the gate to an application that gives the body back."""

    async def echo(scope, receive, send):
        body = await Request(scope, receive).body()
        await PlainTextResponse(body, headers={"referrer-policy": "unsafe-url"})(scope, receive, send)

    gate = Gate(
        echo, limits=Limits(image_bytes=1000, question_chars=10), folder=tmp_path, hosts=LOOPBACK, calls=CALLS
    )

    def request(method, path, **options):
        async def run():
            transport = httpx.ASGITransport(gate)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    return request


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data?session_hash=a"]
)
def test_the_page_is_let_through(send, path):
    response = send("GET", path)
    assert response.status_code == 200
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert response.headers.get_list("referrer-policy") == ["no-referrer"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/monitoring"),
        ("GET", "/assets/../../etc/passwd"),
        ("POST", "/gradio_api/call/ask"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("DELETE", "/"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ],
)
def test_other_routes_of_gradio_are_closed(send, method, path):
    response = send(method, path)
    assert (response.status_code, response.json()["error"]) == (404, "there is no such page")


def test_files_are_those_of_the_folder(send, tmp_path):
    (tmp_path / "a b.png").write_bytes(b"x")
    assert send("GET", f"/gradio_api/file={tmp_path}/a b.png").status_code == 200
    for path in ("/etc/passwd", f"{tmp_path}/../a.png", f"{tmp_path}/gone.png", f"{tmp_path}", "%2e%2e/a"):
        response = send("GET", f"/gradio_api/file={path}")
        assert response.status_code == 404 and str(tmp_path) not in response.text
    response = send("GET", "/gradio_api/file=http://example.org/a.png")
    assert response.json()["detail"] == "remote pictures are not fetched: upload the file"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://[x"},
    ],
)
def test_other_names_and_pages_of_other_sites_are_refused(send, headers):
    assert send("GET", "/", headers=headers).status_code == 403
    assert send("GET", "/", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def call(*values, number=0):
    return json.dumps({"data": list(values), "fn_index": number, "session_hash": "s"}).encode()


def test_calls_keep_their_body(send, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for body in (call({"path": str(tmp_path / "a.png")}, "what?"), call(None, "what?"), call(1, number=1)):
        response = send("POST", "/gradio_api/queue/join", content=body)
        assert (response.status_code, response.content) == (200, body)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the request is not JSON"),
        (b"\xff", 400, "the request is not JSON"),
        (b"[" * 60_000, 400, "the request is not JSON"),
        (b"[]", 400, "the request has no list of values"),
        (b'{"data": {}}', 400, "the request has no list of values"),
        (call(number=7), 404, "there is no such function"),
        (call(number=True), 404, "there is no such function"),
        (call(number="0"), 404, "there is no such function"),
        (call(None), 400, "the request has 1 values, and this function takes 2"),
        (call("text", "what?"), 400, "the picture is not an uploaded file: upload it"),
        (
            call({"path": "/etc/passwd"}, 1),
            404,
            "the picture is not among the uploaded files: upload it again",
        ),
        (call({"path": "https://example.org/a"}, 1), 400, "remote pictures are not fetched: upload the file"),
        (
            call([{"a": {"path": "https://example.org/a"}}], number=1),
            400,
            "remote pictures are not fetched: upload the file",
        ),
        (call("x" * 70_000), 413, "the request is larger than 65,656 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_calls_that_no_page_makes_are_refused(send, body, status, message):
    response = send("POST", "/gradio_api/queue/join", content=body)
    assert (response.status_code, response.json()) == (status, {"error": message, "detail": message})


def test_uploads_have_a_limit(send):
    assert send("POST", "/gradio_api/upload", content=b"x" * 66_000).status_code == 200
    response = send("POST", "/gradio_api/upload", content=b"x" * 67_000)
    assert (response.status_code, response.json()["error"]) == (
        413,
        "the request is larger than 66,536 bytes",
    )
