"""Connections of slow clients are closed, and the pixels of images in memory are limited."""

import asyncio
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from experiments.serving.connections import limit_connections
from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from tests.experiments.serving.conftest import draw_picture, serve, to_url

SECONDS = 1.0
LENGTH = 60_000_000
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n"


@pytest.fixture(scope="module")
def server():
    """URL of a server with an endless answer, and an event that tells that one has ended early."""
    gone = threading.Event()

    async def produce():
        try:
            while True:
                yield b"x" * 100_000
                await asyncio.sleep(0)
        finally:
            gone.set()

    async def answer(request):
        return Response(status_code=400) if request.method == "POST" else StreamingResponse(produce())

    async def answer_later(request):
        await asyncio.sleep(1.5 * SECONDS)
        return Response()

    async def answer_at_length(request):
        return Response(b"x" * LENGTH)

    app = Starlette(
        routes=[
            Route("/", answer, methods=["GET", "POST"]),
            Route("/later", answer_later),
            Route("/long", answer_at_length),
        ]
    )
    with serve(app, http=limit_connections(SECONDS)) as (url, _):
        yield urlsplit(url), gone


def connect(server, content):
    connection = socket.create_connection((server[0].hostname, server[0].port), timeout=10)
    connection.sendall(content)
    return connection


def test_a_client_that_sends_nothing_is_dropped(server):
    with connect(server, b"") as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", POST], ids=["in a head", "after a refusal"])
def test_a_client_that_sends_a_byte_at_a_time_is_dropped(server, start):
    with connect(server, start) as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.05)


def test_a_client_that_goes_on_after_a_refusal_is_served(server):
    """The rest of the refused body, and a request whose answer takes longer than a client has to send."""
    with connect(server, POST) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        connection.sendall(b"a" * 9999 + b"GET /later HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_sends_nothing_after_a_refusal_is_dropped(server):
    with connect(server, POST) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        assert connection.recv(1) == b""


def test_a_client_that_reads_slowly_is_served(server):
    """Reading takes several times as long as a client may read nothing."""
    with connect(server, b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n") as connection:
        started, num_bytes = time.monotonic(), 0
        while num_bytes < LENGTH:
            piece = connection.recv(1_000_000)
            assert piece, f"closed after {num_bytes} bytes"
            num_bytes += len(piece)
            time.sleep(3 * SECONDS * len(piece) / LENGTH)
        assert time.monotonic() - started > 3 * SECONDS


def test_a_client_that_reads_nothing_is_dropped(server):
    with connect(server, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"):
        assert server[1].wait(10)


def test_images_wait_for_the_pixels_of_others():
    async def main():
        limits = Limits(pixels=96 * 96)
        reader = ImageReader(limits)
        url = to_url(draw_picture())
        held = [await reader.read(url) for _ in range(ImageReader.NUM_LARGEST)]
        waiting = [asyncio.create_task(reader.read(url)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()  # a client that has gone holds up nobody
        held[0].release()
        held[0].release()
        received = await asyncio.wait_for(waiting[1], 10)
        assert received.image.size == (96, 96) and not waiting[2].done()
        received.release()
        await waiting[2]

    asyncio.run(main())
