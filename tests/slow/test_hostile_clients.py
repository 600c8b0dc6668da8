"""Slow and hostile clients and engines: no connection, request or memory is held for long: `make test-slow`.

A server and a proxy run in processes of their own, with time limits of `SECONDS`. ATTACKS names the attacks
(default: all). The table is printed (`-s`): for each attack what it saw, the largest resident memory of the
server during it and that after it in MB, the sockets that the server holds after it, and the status of a
request then.
"""

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from experiments.reporting.tables import format_table
from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from tests.experiments.serving.conftest import COUNT, ask, draw_picture, make_fixed, model, to_url
from tests.slow.test_serving_load import read_memory, start

__all__ = ["model"]  # the fixture

SECONDS, MAX_REQUESTS, MAX_MEMORY = 3, 16, 2000
OPTIONS = [f"limits.body_seconds={SECONDS}", f"max_requests={MAX_REQUESTS}", "upstream_seconds=5"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ANSWER = json.dumps({"choices": [{"message": {"content": "3"}}], "usage": {}}).encode()
EVENT = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 1000}}]}).encode() + b"\n\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def format_request(body, *, length=None, extra=b""):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(content) if length is None else length
    framing = b"content-length: %d" % length if length >= 0 else b"transfer-encoding: chunked"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head + extra + framing + b"\r\n\r\n" + content


class Engine:
    """An engine that misbehaves as the field `user` says; it counts its open connections."""

    def __init__(self):
        self.num_busy = 0

    async def answer(self, reader, writer):
        self.num_busy += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                await self.respond(writer, json.loads(await reader.readexactly(length) or b"{}").get("user"))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.num_busy -= 1
            writer.transport.abort()

    async def respond(self, writer, behaviour):
        async def send(content):
            writer.write(content)
            await writer.drain()

        if behaviour == "endless":
            await send(STREAM)
            while True:
                await send(EVENT)
        elif behaviour == "line":
            await send(STREAM + b"data: ")
            for _ in range(1000):
                await send(b"x" * 1_000_000)
        elif behaviour == "trickle":
            await send(STREAM)
            for byte in EVENT[:20] + b"\n\n":
                await send(bytes([byte]))
                await asyncio.sleep(0.1)
            raise OSError
        elif behaviour == "huge":
            await send(JSON + b"content-length: 1000000000\r\n\r\n")
            for _ in range(1000):
                await send(b"x" * 1_000_000)
        elif behaviour == "early":
            await send(STREAM + EVENT[:500])
            raise OSError
        else:
            await send(JSON + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)


class Attacker:
    """The attacks on a server; each returns what it saw."""

    def __init__(self, url, pid, body, engine=None):
        self.url, self.pid, self.body, self.engine = url, pid, body, engine
        self.place = urlsplit(url)

    async def connect(self, content=b""):
        reader, writer = await asyncio.open_connection(self.place.hostname, self.place.port)
        writer.write(content)
        return reader, writer

    async def wait_for_end(self, reader, seconds=4 * SECONDS):
        """Return the status lines that come, and the seconds until the server closes (inf: it does not)."""
        started, content = time.monotonic(), b""
        with suppress(OSError):
            try:
                async with asyncio.timeout(seconds):
                    while piece := await reader.read(65536):
                        content += piece
            except TimeoutError:
                return self.list_statuses(content), float("inf")
        return self.list_statuses(content), time.monotonic() - started

    def list_statuses(self, content):
        return [int(part[:3]) for part in content.split(b"HTTP/1.1 ")[1:]]

    async def trickle(self, first, piece=b"a", pause=0.2):
        """Send pieces slowly, and return the status lines and the seconds until the server closes."""
        reader, writer = await self.connect(first)

        async def send():
            with suppress(OSError):
                while True:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)

        task = asyncio.create_task(send())
        try:
            return await self.wait_for_end(reader)
        finally:
            task.cancel()
            writer.transport.abort()

    async def probe(self):
        async with httpx.AsyncClient(timeout=60) as client:
            return (await client.post(f"{self.url}/v1/chat/completions", json=self.body)).status_code

    async def none(self):
        return ""

    async def slow_head(self):
        ends = await asyncio.gather(*(self.trickle(b"POST / HTTP/1.1\r\nx: ") for _ in range(50)))
        return f"closed after {max(end for _, end in ends):.1f} s"

    async def slow_second_head(self):
        ends = await self.trickle(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nPOST / HTTP/1.1\r\nx: ")
        return f"{ends[0]}, closed after {ends[1]:.1f} s"

    async def idle(self):
        opened = await asyncio.gather(*(self.connect() for _ in range(1000)))
        status = await self.probe()
        ends = await asyncio.gather(*(self.wait_for_end(reader) for reader, _ in opened))
        for _, writer in opened:
            writer.transport.abort()
        return f"another request: {status}; closed after {max(end for _, end in ends):.1f} s"

    async def slow_body(self):
        ends = await asyncio.gather(*(self.trickle(format_request(b"{", length=10_000)) for _ in range(10)))
        return f"{ends[0][0]}, closed after {max(end for _, end in ends):.1f} s"

    async def endless_chunks(self):
        chunk = b"%x\r\n" % 1_000_000 + b"x" * 1_000_000 + b"\r\n"
        statuses, end = await self.trickle(format_request(b"", length=-1), chunk, pause=0)
        return f"{statuses}, closed after {end:.1f} s"

    async def large_bodies(self):
        content = format_request(b"x" * 19_000_000, length=20_000_000)
        opened = await asyncio.gather(*(self.connect(content) for _ in range(3 * MAX_REQUESTS)))
        ends = await asyncio.gather(*(self.wait_for_end(reader) for reader, _ in opened))
        for _, writer in opened:
            writer.transport.abort()
        counts = {status: sum(status in found for found, _ in ends) for status in (408, 429)}
        return f"{counts}, closed after {max(end for _, end in ends):.1f} s"

    async def large_pictures(self):
        body = {
            **self.body,
            **ask(COUNT, to_url(Image.new("RGB", (5000, 5000)))),
            "model": self.body["model"],
        }
        async with httpx.AsyncClient(timeout=120) as client:
            requests = [
                client.post(f"{self.url}/v1/chat/completions", json=body) for _ in range(MAX_REQUESTS)
            ]
            statuses = [response.status_code for response in await asyncio.gather(*requests)]
        return f"{dict.fromkeys(statuses)}".replace(": None", "")

    async def huge_head(self):
        reader, writer = await self.connect(b"GET /health HTTP/1.1\r\nx: " + b"a" * 10_000_000)
        statuses, end = await self.wait_for_end(reader)
        writer.transport.abort()
        return f"{statuses}, closed after {end:.1f} s"

    async def pipelined(self):
        reader, writer = await self.connect(format_request(self.body) * 50)
        statuses, _ = await self.wait_for_end(reader, seconds=15)
        writer.transport.abort()
        return f"{len(statuses)} answers, {set(statuses)}"

    async def wrong_length(self):
        content = format_request(self.body)
        reader, writer = await self.connect(format_request(self.body, length=content.count(b"") // 2))
        short, _ = await self.wait_for_end(reader, seconds=2)
        writer.transport.abort()
        return f"{short}"

    async def reuse_after_an_error(self):
        good = format_request(self.body)
        reader, writer = await self.connect(format_request(b"{") + good + format_request({}) + good)
        statuses, _ = await self.wait_for_end(reader, seconds=2)
        writer.transport.abort()
        return f"{statuses}"

    async def unread(self):
        """Take all requests that the server answers at a time, and read nothing."""
        opened = await self.open_endless_streams()
        for _, writer in opened:
            writer.transport.pause_reading()
        started = time.monotonic()
        await asyncio.sleep(1)
        while (status := await self.probe()) == 429 and time.monotonic() < started + 6 * SECONDS:
            await asyncio.sleep(0.2)
        seconds = time.monotonic() - started
        for _, writer in opened:
            writer.transport.abort()
        return f"another request: {status} after {seconds:.1f} s; {self.count_busy()}"

    async def gone(self):
        opened = await self.open_endless_streams()
        for reader, writer in opened:
            await reader.read(1000)
            writer.transport.abort()
        await asyncio.sleep(0.5)
        return f"{self.count_busy()}"

    async def open_endless_streams(self):
        """Return the readers and writers of as many streams as the server answers at a time."""
        content = format_request({**self.body, "user": "endless", "stream": True})
        return [await self.connect(content) for _ in range(MAX_REQUESTS)]

    def count_busy(self):
        return f"the engine goes on with {self.engine.num_busy}"

    async def read_stream(self, behaviour, seconds):
        """Return what a client that reads has got, and the longest time that /health took meanwhile."""
        body = {**self.body, "user": behaviour, "stream": behaviour != "huge", "temperature": 0}
        reader, writer = await self.connect(format_request(body))
        content, slowest = 0, 0.0
        async with httpx.AsyncClient(timeout=60) as client:

            async def read():
                nonlocal content
                with suppress(OSError):
                    while piece := await reader.read(65536):
                        content += len(piece)

            task = asyncio.create_task(read())
            end = time.monotonic() + seconds
            while not task.done() and time.monotonic() < end:
                started = time.monotonic()
                await client.get(f"{self.url}/metrics")
                slowest = max(slowest, time.monotonic() - started)
                await asyncio.sleep(0.05)
            task.cancel()
        writer.transport.abort()
        await asyncio.sleep(0.3)
        return f"{content / 1e6:.1f} MB; /metrics within {slowest:.2f} s; {self.count_busy()}"

    async def endless_stream(self):
        return await self.read_stream("endless", 8)

    async def line_of_1_gb(self):
        return await self.read_stream("line", 60)

    async def answer_of_1_gb(self):
        return await self.read_stream("huge", 60)

    async def trickling_engine(self):
        return await self.read_stream("trickle", 10)

    async def engine_closes_early(self):
        return await self.read_stream("early", 10)


CLIENTS = ["slow_head", "slow_second_head", "idle", "slow_body", "endless_chunks", "large_bodies"]
CLIENTS += ["large_pictures", "huge_head", "pipelined", "wrong_length", "reuse_after_an_error"]
READERS = ["unread", "gone"]  # of an endless stream
ENGINES = ["endless_stream", "line_of_1_gb", "answer_of_1_gb", "trickling_engine", "engine_closes_early"]


async def attack(attacker, names):
    """Return a row of the table for each attack."""
    rows = []
    for name in names:
        peak = [read_memory(attacker.pid)]

        async def watch(peak=peak):
            while True:
                peak.append(read_memory(attacker.pid))
                await asyncio.sleep(0.02)

        watcher = asyncio.create_task(watch())
        seen = await getattr(attacker, name)()
        watcher.cancel()
        await asyncio.sleep(1)
        status = await attacker.probe()
        await asyncio.sleep(0.3)
        memory, held = read_memory(attacker.pid), count_sockets(attacker.pid)
        rows.append([name, seen, f"{max(peak):.0f}", f"{memory:.0f}", f"{held}", f"{status}"])
    return rows


def count_sockets(pid):
    links = [os.path.realpath(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sum("/socket:" in link for link in links)


async def run(names, options, engine, body):
    listener = await asyncio.start_server(engine.answer, "127.0.0.1", 0, limit=2**26) if engine else None
    if listener:
        options = [*options, f"upstream=http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"]
    with start(*options, *OPTIONS) as (url, pid):
        attacker = Attacker(url, pid, body, engine)
        await attacker.probe()
        return await attack(attacker, ["none", *names])


def check(names, options, engine, body):
    rows = asyncio.run(run(os.environ.get("ATTACKS", "").split() or names, options, engine, body))
    header = ["attack", "what it saw", "largest", "after", "sockets", "then"]
    print("\n" + format_table([header, *rows]))
    assert all(row[-1] == "200" and "inf" not in row[1] for row in rows)
    assert all(float(row[2]) < MAX_MEMORY for row in rows)


def test_in_one_process(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    body = {**ask(COUNT, to_url(draw_picture())), "model": "tiny_m3"}
    check(CLIENTS, [f"folder={tmp_path / 'model'}"], None, body)


def test_in_front_of_an_engine(tmp_path):
    qwen = open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[4, 16, 64], device="cpu")
    AdaptiveVLM(qwen, *make_fixed(qwen, 16)).save_pretrained(tmp_path / "qwen")
    body = {**ask(COUNT, to_url(draw_picture())), "model": "qwen"}
    check([*CLIENTS, *READERS, *ENGINES], [f"folder={tmp_path / 'qwen'}"], Engine(), body)
