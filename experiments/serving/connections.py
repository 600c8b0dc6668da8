"""Connections of clients that send or read too slowly are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol


def limit_connections(seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol of uvicorn that closes connections whose client is too slow.

    A connection is closed when the head of a request has not arrived `seconds` after the connection was made
    or the first byte came, when no other request has come `seconds` after one whose body was refused, and
    when the client has read nothing for so long while a part of a response waits. The application limits the
    time of a body, and uvicorn that between two requests.
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

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # The rest of a refused body may never come, and then no data that would start the timer.
            if self.cycle.more_body and self.cycle.response_complete:
                self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reading(self.transport.get_write_buffer_size())

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._read_timer is not None:
                self._read_timer.cancel()

        def _watch_reading(self, num_unread: int) -> None:
            """Close the connection in `seconds`, unless the client has read some of the bytes until then.

            uvloop, if it is installed, counts a piece as unread until all of it is read.
            """

            def check() -> None:
                remaining = self.transport.get_write_buffer_size()
                if remaining < num_unread:
                    self._watch_reading(remaining)
                else:
                    self.transport.abort()

            self._read_timer = self.loop.call_later(seconds, check)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                if self._request_timer is not None:
                    self._request_timer.cancel()
                    self._request_timer = None
            elif self._request_timer is None:
                self._request_timer = self.loop.call_later(seconds, self.transport.abort)

    return LimitedProtocol
