"""The HTTP server: routes, access, and the number of requests in progress."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.serving.errors import RequestError
from experiments.serving.limits import Limits, read_body
from experiments.serving.metrics import ServerMetrics
from experiments.serving.service import Service

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_COMPLETIONS = "/v1/chat/completions"
_CLIENT_GONE = 499


class Gate:
    """Middleware that refuses requests before they are read, and counts chat completions by status.

    Requests are refused without the key `api_key`, if there is one; for another host than `hosts`, if there
    are any (a name server may let the page of a stranger reach a loopback address under the name of its own);
    and beyond `max_requests` chat completions in progress.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServerMetrics,
        max_requests: int,
        hosts: tuple[str, ...] = (),
        api_key: str | None = None,
    ) -> None:
        self.app, self.metrics, self.max_requests = app, metrics, max_requests
        self.hosts, self.api_key = hosts, api_key
        self.num_in_progress = 0
        metrics.in_progress.set_function(lambda: self.num_in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counts = scope["path"] == _COMPLETIONS
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        error = self._find_error(Request(scope), counts)
        self.num_in_progress += counts
        try:
            await (self.app if error is None else error.to_response())(scope, receive, watch)
        finally:
            self.num_in_progress -= counts
            if counts:
                self.metrics.requests.labels(str(status)).inc()

    def _find_error(self, request: Request, is_completion: bool) -> RequestError | None:
        """Return the error of a request that is refused, else None."""
        if self.hosts and request.url.hostname not in self.hosts:
            return RequestError(403, f"this server is reached under {' or '.join(self.hosts)} only")
        key = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        needs_key = self.api_key is not None and request.url.path != "/health"
        if needs_key and not hmac.compare_digest(key, (self.api_key or "").encode()):
            return RequestError(401, "the API key is missing or wrong", code="invalid_api_key")
        if is_completion and self.num_in_progress >= self.max_requests:
            return RequestError(429, f"{self.max_requests} requests are in progress: try again later")
        return None


def make_app(
    service: Service,
    metrics: ServerMetrics,
    limits: Limits,
    *,
    max_requests: int,
    host: str = LOOPBACK[0],
    api_key: str | None = None,
) -> Starlette:
    """Return the application of a service that is bound to `host`."""

    @asynccontextmanager
    async def run_service(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    async def complete(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # pages of other sites can send other types without being asked
            raise RequestError(415, "send the body as application/json")
        body = await read_body(request, limits)
        return await _run_while_connected(request, service.complete(body, request.headers))

    async def list_models(request: Request) -> Response:
        return await service.list_models(request.headers)

    async def check_health(request: Request) -> Response:
        return await service.check_health()

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.format(), media_type="text/plain; version=0.0.4; charset=utf-8")

    gate = Middleware(
        Gate,
        metrics=metrics,
        max_requests=max_requests,
        hosts=LOOPBACK if host in LOOPBACK else (),
        api_key=api_key,
    )
    return Starlette(
        routes=[
            Route(_COMPLETIONS, complete, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/health", check_health),
            Route("/metrics", show_metrics),
        ],
        middleware=[gate],
        exception_handlers={
            RequestError: _show_error,
            HTTPException: _show_http_error,
            Exception: _hide_bug,
        },
        lifespan=run_service,
    )


async def _show_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.to_response()


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    return RequestError(error.status_code, message).to_response()


async def _hide_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again, so that it is logged with its traceback.
    return RequestError(500, "internal error: see the log of the server").to_response()


async def _run_while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the result of `work`, which is cancelled when the client closes the connection."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return Response(status_code=_CLIENT_GONE)
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
