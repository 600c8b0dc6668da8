"""Connections of clients that send or read too slowly are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol


def limit_connections(seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol of uvicorn that closes connections whose client is too slow.

    A connection is closed when the head of a request has not arrived `seconds` after the connection was made
    or the first byte came, when the client goes on for so long to send a body that was refused, and when it
    has read nothing of a response for so long. The application limits the time of a body, and uvicorn that
    between two requests.
    """

    class LimitedProtocol(_Protocol):
        # They close a connection that waits for a request, and for its client to read.
        _request_timer: asyncio.TimerHandle | None = None
        _read_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._request_timer, self._read_timer):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._read_timer = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._read_timer is not None:
                self._read_timer.cancel()

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                if self._request_timer is not None:
                    self._request_timer.cancel()
                    self._request_timer = None
            elif self._request_timer is None:
                self._request_timer = self.loop.call_later(seconds, self.transport.abort)

    return LimitedProtocol
