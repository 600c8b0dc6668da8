"""Demo of a configuration: its model, its page and its folder of uploads."""

import logging
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from starlette.types import ASGIApp

from experiments.serving.configured import load_model, serve_socket
from experiments.serving.demo.examples import Offer, find_offer
from experiments.serving.demo.handlers import Demo
from experiments.serving.demo.page import check_gradio, make_app
from experiments.serving.demo.trial import try_scales
from experiments.serving.limits import Limits
from experiments.serving.server import LOOPBACK

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 2  # open pages keep a connection


@contextmanager
def open_demo(config: DictConfig) -> Iterator[ASGIApp]:
    """Yield the application of a configuration; its uploads are deleted afterwards.

    Raises ModuleNotFoundError without Gradio, before a model is loaded.
    """
    check_gradio()
    model = load_model(config)
    offer = Offer()
    if config.num_examples:
        offer = find_offer(instantiate(config.task, _convert_="all"), config.num_examples)
    for example in offer.examples[:1]:  # the first question does not wait for the weights
        with suppress(ValueError):
            try_scales(model, example.image, example.question)
    if config.host not in LOOPBACK:
        log.warning("host=%s: everybody who reaches this machine can ask and upload", config.host)
    with tempfile.TemporaryDirectory(prefix="tokenscale_demo_") as folder:
        demo = Demo(model, Limits(**config.limits), Path(folder).resolve())
        yield make_app(demo, offer, host=config.host, max_waiting=config.max_waiting)


def run(app: ASGIApp, listener: socket.socket) -> None:
    """Serve the page until a signal arrives."""
    # uvicorn raises the signal again when it has stopped; the uploads are deleted after that.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve_socket(app, listener, "demo at http://{address}", shutdown_seconds=_SHUTDOWN_SECONDS)
