"""A server under load: every answer is that of the model, nothing fails, and memory stays: `make test-slow`.

`SERVING_LOAD_SECONDS` (default 600) is the time of the load. The throughput, and the time that the proxy adds
to a request, are printed (`-s`) and not asserted.
"""

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from tests.experiments.serving.conftest import (
    COLOR,
    COUNT,
    ask,
    draw_picture,
    make_fixed,
    model,
    serve,
    to_url,
)
from tests.experiments.serving.test_proxy import Engine
from tests.paths import ROOT

__all__ = ["model"]  # the fixture

SECONDS = float(os.environ.get("SERVING_LOAD_SECONDS", "600"))
NUM_CLIENTS, NUM_TIMED = 16, 300
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 600)]


@contextmanager
def start(*options):
    """A server in a process of its own: yields its URL and its number."""
    arguments = [sys.executable, "-m", "experiments.serve", "port=0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address
        try:
            yield address[0], process.pid
        finally:
            process.terminate()


def read_memory(pid):
    """Resident memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def read_cpu_time(pid):
    """Milliseconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ten_minutes_of_sixteen_clients(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    colors = ("red", "green", "white", "black", "yellow")
    pictures = [draw_picture(color, (96 + 40 * n, 96)) for n, color in enumerate(colors)]
    pairs = [(picture, question) for picture in pictures for question in (COLOR, COUNT)]
    terms: list[dict[str, Any]] = [{}, {"budget": 1}, {"scale": 9}, {"point": "guarantee"}]
    asked = [
        (ask(question, to_url(picture), **fields), picture, question, fields)
        for picture, question in pairs
        for fields in terms
    ]
    expected = []
    for _, picture, question, fields in asked:
        if "scale" in fields:
            encoded = model.backbone.encode([picture])
            expected.append(model.backbone.answer(encoded, [question], fields["scale"])[0].text)
        else:
            expected.append(model.answer(picture, question, **fields).text)
    statuses: dict[int, int] = {}
    times: list[float] = []
    wrong: list[str] = []
    memory: list[float] = []

    async def load(url, pid):
        end = time.monotonic() + SECONDS

        async def work(client, number):
            draw = np.random.default_rng(number)
            while time.monotonic() < end:
                row = int(draw.integers(len(asked)))
                started = time.perf_counter()
                response = await client.post(f"{url}/v1/chat/completions", json=asked[row][0])
                times.append(time.perf_counter() - started)
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                if response.status_code == 200:
                    text = response.json()["choices"][0]["message"]["content"]
                    if text != expected[row]:
                        wrong.append(f"{asked[row][2]}: {text!r} instead of {expected[row]!r}")

        async def watch():
            while time.monotonic() < end:
                memory.append(read_memory(pid))
                await asyncio.sleep(SECONDS / 60)

        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(watch(), *(work(client, number) for number in range(NUM_CLIENTS)))

    with start(f"folder={tmp_path / 'model'}") as (url, pid):
        asyncio.run(load(url, pid))
        metrics = httpx.get(f"{url}/metrics").text
    warm, last = statistics.median(memory[10:20]), statistics.median(memory[-10:])
    cuts = statistics.quantiles(times, n=20)
    lines = [
        line for line in metrics.splitlines() if re.match(r"tokenscale_\w+_(sum|count|total|saved) ", line)
    ]
    print(
        f"\n{len(times)} requests in {SECONDS:g} s by {NUM_CLIENTS} clients, by status {statuses}; median "
        f"{1000 * cuts[9]:.0f} ms, 95% {1000 * cuts[18]:.0f} ms; resident memory {warm:.0f} MB, at the end "
        f"{last:.0f} MB\n" + "\n".join(lines)
    )
    assert statuses.keys() <= {200, 429} and statuses[200] > 100
    assert not wrong, wrong[:5]
    assert last < warm * 1.05 + 20


def test_the_time_that_the_proxy_adds(tmp_path):
    backbone = open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[4, 16, 64], device="cpu")
    AdaptiveVLM(backbone, *make_fixed(backbone, 16)).save_pretrained(tmp_path / "qwen")
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    url_of_image = to_url(picture, "JPEG")
    body = ask(COUNT, url_of_image)

    def measure(client, url):
        times = []
        for _ in range(NUM_TIMED):
            started = time.perf_counter()
            assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    with serve(Engine().app) as (engine, _), httpx.Client() as client:
        direct = measure(client, engine)
        for adapter in ("vllm", "resize"):
            options = (f"folder={tmp_path / 'qwen'}", f"upstream={engine}", f"adapter={adapter}")
            with start(*options) as (url, pid):
                measure(client, url)
                before = read_cpu_time(pid)
                proxied = measure(client, url)
                cpu_time = (read_cpu_time(pid) - before) / NUM_TIMED
                metrics = httpx.get(f"{url}/metrics").text
            numbers = dict(re.findall(r"tokenscale_predictor_milliseconds_(sum|count) (\S+)", metrics))
            predictor = float(numbers["sum"]) / float(numbers["count"])
            print(
                f"\n{adapter}: {proxied:.2f} ms a request at the median, without the proxy {direct:.2f} ms; "
                f"predictor {predictor:.2f} ms; processor time of the proxy {cpu_time:.2f} ms a request; the "
                f"image has {len(url_of_image)} bytes"
            )
