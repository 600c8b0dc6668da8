"""What the server calls: a service that answers chat completions."""

from collections.abc import Mapping
from typing import Protocol

from starlette.responses import Response

SCALE_HEADER = "x-tokenscale-scale"


class Service(Protocol):
    """Answers chat completions, in this process or with an engine behind a proxy.

    All methods raise RequestError for a request that cannot be answered. A call that is cancelled drops its
    work if that has not started.
    """

    async def start(self) -> None:
        """Get ready to answer."""

    async def stop(self) -> None:
        """Finish what was accepted, and release all resources."""

    async def complete(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the response to a chat completion with this body."""
        ...

    async def list_models(self, headers: Mapping[str, str]) -> Response:
        """Return the list of models, of which there is one."""
        ...

    async def check_health(self) -> Response:
        """Return a response with status 200 if chat completions can be answered."""
        ...
