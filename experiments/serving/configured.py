"""Server of a configuration: its model, its service and its socket."""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from hydra.utils import instantiate
from omegaconf import DictConfig
from starlette.types import ASGIApp

from experiments.evaluation.disagreement import add_disagreement
from experiments.serving.adaptive import estimate_unseen, load_adaptive
from experiments.serving.connections import limit_connections
from experiments.serving.drift import DriftMonitor, Record, identify_model
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
from m3_backbone.outcomes.labels import read_labels
from m3_backbone.outcomes.manifest import MANIFEST
from predictor.adaptive.model import AdaptiveVLM

log = logging.getLogger(__name__)

KEY_VARIABLE = "TOKENSCALE_API_KEY"


def make_service(config: DictConfig, limits: Limits, metrics: ServerMetrics) -> Service:
    """Return the service of a configuration: in this process, or a proxy if there is an `upstream`.

    Raises ValueError for a model that cannot be served so.
    """
    model = load_model(config)
    drift = None
    if config.drift.share:
        model = _require_bounds(model, config)
        drift = make_monitor(config, model, metrics)
    remote = RemoteImages(config.remote_hosts, limits) if config.allow_remote_images else None
    images = ImageReader(limits, remote)
    default = Terms(**{name: config[name] for name in Terms.model_fields})
    if config.upstream is None:
        return LocalService(
            model,
            images,
            metrics,
            default=default,
            window_ms=config.window_ms,
            max_batch=config.max_batch,
            drift=drift,
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
        drift=drift,
    )


def make_monitor(config: DictConfig, model: AdaptiveVLM, metrics: ServerMetrics) -> DriftMonitor:
    """Return what compares a share of the answers; raises ValueError for a record that cannot be written."""
    settings = config.drift
    record = None
    if settings.record is not None:
        identity = identify_model(model.backbone, model.predictor)
        record = Record(Path(settings.record), identity, settings.record_bytes)
    return DriftMonitor(
        metrics,
        share=settings.share,
        delta=settings.delta,
        max_queue=settings.max_queue,
        record=record,
        seed=config.seed,
    )


def _require_bounds(model: AdaptiveVLM, config: DictConfig) -> AdaptiveVLM:
    """Return the model with bounds of its disagreement; warns if there are none.

    A published model has them. For a trained predictor, they are computed from its calibration labels.
    """
    if model.prices.default.disagreement is not None:
        return model
    labels = Path(config.paths.labels)
    if config.folder is None and (labels / MANIFEST).is_file():
        estimates, unseen = estimate_unseen(model.predictor, read_labels(labels, "calibration"))
        prices = add_disagreement(model.prices, estimates, unseen, delta=config.drift.delta)
        return AdaptiveVLM(model.backbone, model.predictor, prices, model.hybrid)
    log.warning(
        "drift.share=%g: the operating points state no disagreement, so that answers are compared and no "
        "warning can be given: publish or recalibrate the model with this version",
        config.drift.share,
    )
    return model


def load_model(config: DictConfig) -> AdaptiveVLM:
    """Return the published model in `folder`, or the backbone with the trained predictor."""
    if config.folder is not None:
        return AdaptiveVLM.from_pretrained(config.folder, trust=tuple(config.trust))
    return load_adaptive(instantiate(config.backbone, _convert_="all"), config)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free port. Raises ValueError if it is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"cannot listen at host={host} port={port}: {error.strerror or error}: give another port or host"
        ) from error
    # Without this option the body of a response waits until the client has acknowledged its head, up to 40 ms
    # on Linux. Connections inherit the option; asyncio sets it only for sockets that it opens itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def read_key(host: str) -> str | None:
    """Return the key that requests need, from the environment; warns if an open server has none."""
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and host not in LOOPBACK:
        log.warning("host=%s: everybody who reaches this machine can ask; set %s", host, KEY_VARIABLE)
    return key


def run(app: ASGIApp, listener: socket.socket, *, client_seconds: float, shutdown_seconds: int) -> None:
    """Serve until a signal arrives, then finish the requests in progress.

    `client_seconds` is the time in which clients have to send and read, as in `limit_connections`.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request to an engine otherwise
    text = "serving at http://{address}/v1; metrics at http://{address}/metrics"
    protocol = limit_connections(client_seconds)
    serve_socket(app, listener, text, shutdown_seconds=shutdown_seconds, http=protocol, ws="none")


def serve_socket(
    app: ASGIApp, listener: socket.socket, text: str, *, shutdown_seconds: int, **options: Any
) -> None:
    """Serve at a socket until a signal arrives; `text` is printed, with `{address}` filled in.

    `options` are further settings of uvicorn.
    """
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=shutdown_seconds,
        # Longer than clients keep a connection, so that none is closed while a request is on its way. After a
        # refused body it is closed earlier (`limit_connections`).
        timeout_keep_alive=75,
        server_header=False,
        proxy_headers=False,
        **options,
    )
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"{text.format(address=address)}; stop with Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])
    print("stopped")
