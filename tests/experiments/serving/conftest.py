"""A small adaptive model on the embedded backbone, and servers in this process."""

import asyncio
import base64
import io
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image, ImageDraw

from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from experiments.serving.local import LocalService
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import Terms
from experiments.serving.server import make_app
from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveVLM
from predictor.base import PredictorState
from predictor.classical.baselines import FixedScale
from predictor.classical.question_only import QuestionOnly
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.predictor.synthetic import label

COLOR, COUNT = "What color is the background?", "How many shapes are there?"


def draw_picture(color="red", size=(96, 96)):
    """A picture with a square on a background."""
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).rectangle((10, 10, 40, 40), fill="blue")
    return image


def to_url(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(question, *urls, **fields):
    """The body of a request with a question about images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*images, {"type": "text", "text": question}]
    return {"model": "tiny_m3", "messages": [{"role": "user", "content": content}], **fields}


@pytest.fixture(scope="session")
def model():
    """Questions on color need the coarsest scale, on counts the finest; `guarantee` pays nothing."""
    backbone = LlavaBackbone("tiny_m3", dtype="float32", device="cpu", max_new_tokens=4)
    inputs = make_inputs(
        backbone,
        backbone.encode([draw_picture()] * 8),
        [COLOR, COUNT] * 4,
        QuestionOnly.features,
        token_embeddings=backbone.token_embeddings(),
    )
    fine = np.arange(len(backbone.scales)) == len(backbone.scales) - 1
    score = np.array([fine | (question == COLOR) for question in inputs.question], dtype=np.float32)
    fingerprints = {**backbone.fingerprints, "data": "dd"}
    train, validation = (
        label(inputs, score, image_prefix=side, fingerprints=fingerprints) for side in ("train", "validation")
    )
    predictor = QuestionOnly(inverse_penalties=(1000.0,)).fit(train, validation)
    unit = backbone.scales[-1]
    points = (OperatingPoint(0.2, unit, 100, 0.9), OperatingPoint(4, unit, 1, 0.5))
    free = OperatingPoint(price=0, unit=1, cost=144, score=1)
    return AdaptiveVLM(backbone, predictor, PriceList(points[0], points, {"guarantee": free}))


def make_local(model, *, limits=None, max_requests=64, service=LocalService, **options):
    """The application of a model in this process."""
    limits, metrics = limits or Limits(), ServerMetrics()
    settings = {"default": Terms(), "window_ms": 1.0, "max_batch": 8}
    access = {name: options.pop(name) for name in ("host", "api_key") if name in options}
    local = service(model, ImageReader(limits), metrics, **{**settings, **options})
    return make_app(local, metrics, limits, max_requests=max_requests, **access)


@contextmanager
def serve(app, **options):
    """Run an application in a thread: yields its URL and the server, which is stopped at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {"log_config": None, "log_level": "critical", "access_log": False, **options}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
        assert not thread.is_alive()


def call(app, *requests, path="/v1/chat/completions", headers=()):
    """The responses to requests that are made at the same time, without a network."""

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1", headers=dict(headers)
            ) as client,
        ):
            return await asyncio.gather(
                *(
                    client.request("POST" if request else "GET", path, json=request or None)
                    if isinstance(request, dict | None)
                    else client.post(path, content=request, headers={"content-type": "application/json"})
                    for request in requests
                )
            )

    return asyncio.run(run())


@pytest.fixture(scope="session")
def local_url(model):
    """URL of a server that answers with `model`."""
    with serve(make_local(model)) as (url, _):
        yield url


def make_fixed(backbone, scale):
    """A fitted predictor and prices that choose one scale of any backbone."""
    predictor = FixedScale(scale=scale)
    fingerprints = {**backbone.fingerprints, "data": "dd"}
    predictor.load_state_dict(
        PredictorState(scales=list(backbone.scales), fingerprints=fingerprints, state={}, arrays={})
    )
    point = OperatingPoint(price=0.0, unit=1.0, cost=1.0, score=1.0)
    return predictor, PriceList(point, (point,))
