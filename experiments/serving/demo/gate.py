"""The door of the demo: which requests reach Gradio.

Gradio has routes that this page does not use, such as those that fetch remote files. Requests are limited
here to what the page needs, and are read before Gradio decodes them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.serving.demo.uploads import find_upload
from experiments.serving.errors import RequestError, refuse
from experiments.serving.limits import Limits, read_body

API = "/gradio_api/"
_GET = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
_GET_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/")
_GET_API = ("queue/data", "upload_progress", "startup-events", "info", "app_id", "theme.css")
_FILE = f"{API}file="
_JOIN, _UPLOAD, _SMALL = f"{API}queue/join", f"{API}upload", (f"{API}cancel", f"{API}reset")
_BYTES_PER_CHAR = 12  # of a question in JSON: two escapes at most
_FRAME_BYTES = 2**16  # around an uploaded file or a question
HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
        b"'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'self'; "
        b"form-action 'self'; base-uri 'self'"
    ),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


@dataclass(frozen=True)
class Call:
    """A function of the page: its number of values, and the positions of pictures among them."""

    num_values: int
    files: tuple[int, ...] = ()


class Gate:
    """Middleware that passes on the requests of the page, with bodies of limited size.

    It refuses other paths, other hosts than `hosts` if there are any (a name server may let the page of a
    stranger reach a loopback address under the name of its own), pages of other origins, and files that are
    not below `folder`. The browser is told to load nothing from elsewhere.

    Args:
        app: the application of Gradio.
        limits: sizes of files and questions.
        folder: folder of uploaded and offered files.
        hosts: names under which the page is reached; empty: any.
        calls: functions of the page by number.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        folder: Path,
        hosts: Sequence[str] = (),
        calls: Mapping[int, Call],
    ) -> None:
        self.app, self.limits, self.folder, self.hosts, self.calls = app, limits, folder, hosts, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"a {scope['type']} connection, and the page uses HTTP only")

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in HEADERS]
                message = {**message, "headers": [*kept, *HEADERS.items()]}
            await send(message)

        try:
            request = Request(scope, receive)
            self._check_origin(request)
            body = await self._read(request)
        except RequestError as error:
            # Gradio's page shows `detail`, and other clients `error`.
            content = {"error": error.message, "detail": error.message}
            await JSONResponse(content, status_code=error.status)(scope, receive, send_safely)
            return
        await self.app(scope, receive if body is None else _replay(body, receive), send_safely)

    def _check_origin(self, request: Request) -> None:
        """Raise RequestError for another name of this machine, and for the page of another site."""
        host = request.url.hostname
        if self.hosts and host not in self.hosts:
            raise RequestError(403, f"this page is reached under {' or '.join(self.hosts)} only")
        origin = request.headers.get("origin")
        if origin is not None and _hostname(origin) != host:
            raise RequestError(403, "pages of other sites cannot ask")

    async def _read(self, request: Request) -> bytes | None:
        """Return the body of a POST request, None for others. Raises RequestError if it does not pass."""
        path = request.url.path
        if request.method in ("GET", "HEAD"):
            self._check_get(path)
            return None
        if request.method == "POST" and path == _UPLOAD:
            return await read_body(request, self._limit_body(self.limits.image_bytes))
        if request.method == "POST" and (path == _JOIN or path in _SMALL):
            body = await read_body(request, self._limit_body(_BYTES_PER_CHAR * self.limits.question_chars))
            if path == _JOIN:
                self._check_call(body)
            return body
        raise RequestError(404, "there is no such page")

    def _limit_body(self, content_bytes: int) -> Limits:
        return replace(self.limits, body_bytes=content_bytes + _FRAME_BYTES)

    def _check_get(self, path: str) -> None:
        if path.startswith(_FILE):
            find_upload({"path": unquote(path.removeprefix(_FILE))}, self.folder)
            return
        is_below = any(path.startswith(start) for start in _GET_BELOW) and ".." not in path
        if not (path in _GET or is_below or path.removeprefix(API) in _GET_API):
            raise RequestError(404, "there is no such page")

    def _check_call(self, body: bytes) -> None:
        """Raise RequestError for a call that is no JSON object, and for pictures that are no uploads."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise refuse("the request is not JSON") from error
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise refuse("the request has no list of values")
        number, values = content.get("fn_index"), content["data"]
        if isinstance(number, bool) or not isinstance(number, int) or number not in self.calls:
            raise RequestError(404, "there is no such function")
        call = self.calls[number]
        if len(values) != call.num_values:
            raise refuse(f"the request has {len(values)} values, and this function takes {call.num_values}")
        for position in call.files:
            if values[position] is not None:
                find_upload(values[position], self.folder)
        for value in _walk(values):  # also where no picture belongs
            if "path" in value:
                find_upload(value, self.folder)


def _walk(values: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield all objects in JSON values."""
    waiting: list[Any] = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _hostname(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives a body that was read, then what else is received."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
