"""What the server calls: a service that answers chat completions."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response

from experiments.serving.batching import Batcher
from experiments.serving.drift import ComparedAnswer, DriftMonitor
from experiments.serving.images import ImageReader
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import Terms
from m3_backbone.model_backbone import ModelBackbone

SCALE_HEADER = "x-tokenscale-scale"


class Service(ABC):
    """Answers chat completions, in this process or with an engine behind a proxy.

    All methods raise RequestError for a request that cannot be answered. A call that is cancelled drops its
    work if that has not started.

    Args:
        backbone: the model.
        images: reader of the images of requests.
        metrics: counters of the server.
        default: terms of requests that give none.
        window_ms, max_batch: as in `Batcher`.
        drift: what compares answers with the finest scale's; None: nothing does.
    """

    def __init__(
        self,
        backbone: ModelBackbone,
        images: ImageReader,
        metrics: ServerMetrics,
        *,
        default: Terms,
        window_ms: float,
        max_batch: int,
        drift: DriftMonitor | None,
    ) -> None:
        self.backbone, self.images, self.metrics = backbone, images, metrics
        self.default, self.drift = default, drift
        self._batcher: Batcher[Any, Any] = Batcher(self._work, window_ms=window_ms, max_batch=max_batch)
        metrics.queue_length.set_function(lambda: self._batcher.num_waiting)

    @property
    def runs_model(self) -> bool:
        """Whether the backbone's model runs in this process."""
        return True

    async def start(self) -> None:
        """Get ready to answer."""
        if self.runs_model:
            _ = self.backbone.model  # the first request does not wait for the weights
        await self._batcher.start()
        if self.drift is not None:
            await self.drift.start()

    async def stop(self) -> None:
        """Finish what was accepted, and release all resources."""
        if self.drift is not None:
            await self.drift.stop()
        await self._batcher.stop()
        await self.images.close()

    @abstractmethod
    async def complete(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the response to a chat completion with this body."""

    @abstractmethod
    async def list_models(self, headers: Mapping[str, str]) -> Response:
        """Return the list of models, of which there is one."""

    @abstractmethod
    async def check_health(self) -> Response:
        """Return a response with status 200 if chat completions can be answered."""

    @abstractmethod
    def _work(self, batch: Sequence[Any]) -> list[Any]:
        """Return a result or an exception for each task of a batch, in the worker thread."""

    def _compare_later(self, response: Response, compare: Callable[[], Awaitable[ComparedAnswer]]) -> None:
        """Submit a comparison once the response has been sent."""
        assert self.drift is not None
        response.background = BackgroundTask(self.drift.submit, compare)
