"""Server of a configuration: its model, its service and its socket."""

import logging
import os
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from hydra.utils import instantiate
from omegaconf import DictConfig
from starlette.types import ASGIApp

from experiments.serving.adaptive import load_adaptive
from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from experiments.serving.local import LocalService
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import Terms
from experiments.serving.proxy import ProxyService
from experiments.serving.remote_images import RemoteImages
from experiments.serving.server import LOOPBACK
from experiments.serving.service import Service
from m3_backbone.model_backbone import ModelBackbone
from predictor.adaptive.model import AdaptiveVLM

log = logging.getLogger(__name__)

KEY_VARIABLE = "TOKENSCALE_API_KEY"


def make_service(config: DictConfig, limits: Limits, metrics: ServerMetrics) -> Service:
    """Return the service of a configuration: in this process, or a proxy if there is an `upstream`.

    Raises ValueError for a model that cannot be served so.
    """
    model = load_model(config)
    remote = RemoteImages(config.remote_hosts, limits) if config.allow_remote_images else None
    images = ImageReader(limits, remote)
    default = Terms(**{name: config[name] for name in Terms.model_fields})
    if config.upstream is None:
        return LocalService(
            model, images, metrics, default=default, window_ms=config.window_ms, max_batch=config.max_batch
        )
    if not isinstance(model.backbone, ModelBackbone):
        raise ValueError(f"a {type(model.backbone).__name__} cannot be proxied: only a checkpoint can")
    return ProxyService(
        model.backbone,
        model.predictor,
        model.prices,
        instantiate(config.adapter),
        config.upstream,
        images,
        metrics,
        default=default,
        upstream_seconds=config.upstream_seconds,
        max_batch=config.max_batch,
    )


def load_model(config: DictConfig) -> AdaptiveVLM:
    """Return the published model in `folder`, or the backbone with the trained predictor."""
    if config.folder is not None:
        return AdaptiveVLM.from_pretrained(config.folder, trust=tuple(config.trust))
    return load_adaptive(instantiate(config.backbone, _convert_="all"), config)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free port. Raises ValueError if it is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"cannot listen at host={host} port={port}: {error.strerror or error}: give another port or host"
        ) from error


def read_key(host: str) -> str | None:
    """Return the key that requests need, from the environment; warns if an open server has none."""
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and host not in LOOPBACK:
        log.warning("host=%s: everybody who reaches this machine can ask; set %s", host, KEY_VARIABLE)
    return key


def run(app: FastAPI, listener: socket.socket, *, shutdown_seconds: int) -> None:
    """Serve until a signal arrives, then finish the requests in progress."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request to an engine otherwise
    text = "serving at http://{address}/v1; metrics at http://{address}/metrics"
    serve_socket(app, listener, text, shutdown_seconds=shutdown_seconds)


def serve_socket(app: ASGIApp, listener: socket.socket, text: str, *, shutdown_seconds: int) -> None:
    """Serve at a socket until a signal arrives; `text` is printed, with `{address}` filled in."""
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=shutdown_seconds,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"{text.format(address=address)}; stop with Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])
    print("stopped")
