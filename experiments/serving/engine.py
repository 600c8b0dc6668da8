"""Requests to an engine over HTTP, and its failures as errors of requests."""

import io
import logging
from collections.abc import Mapping

import aiohttp

from experiments.serving.errors import RequestError
from experiments.serving.limits import join_pieces

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
# Shorter than servers keep a connection (uvicorn, which vLLM uses: 5 s), so that none is closed while a
# request is on its way.
_KEEP_ALIVE_SECONDS = 4.0


class Engine:
    """An OpenAI-compatible engine.

    No part of a request is kept, neither keys nor cookies. Redirects are neither followed nor passed on.
    Errors are logged with the address of the engine, which clients of a proxy do not learn.

    Args:
        url: URL of the engine, with or without `/v1`.
        seconds: time that the engine may take between two pieces of a response.
        max_bytes: largest response that is read as a whole.
    """

    def __init__(self, url: str, *, seconds: float, max_bytes: int) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.max_bytes = max_bytes
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=seconds)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Create the pool of connections."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            skip_auto_headers=("User-Agent", "Accept"),
        )

    async def stop(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def call(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """Return an open response, which the caller closes. Raises RequestError if the engine gives none."""
        assert self._session is not None, "start first"
        content = None if body is None else io.BytesIO(body)
        try:
            response = await self._session.request(
                method, f"{self.url}{path}", headers=headers, data=content, allow_redirects=False
            )
        except aiohttp.SocketTimeoutError as error:
            raise RequestError(504, "the engine did not answer in time") from error
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            log.warning("the engine at %s cannot be reached: %s", self.url, describe(error))
            raise RequestError(502, "the engine cannot be reached") from error
        except aiohttp.ClientError as error:
            log.warning("the engine at %s sent no valid response: %s", self.url, describe(error))
            raise RequestError(502, "the engine sent no valid response") from error
        # A client might follow a redirect to an internal address; other statuses cannot be passed on.
        if not (200 <= response.status < 300 or 400 <= response.status < 600):
            response.close()
            log.warning("the engine at %s answers with status %d", self.url, response.status)
            raise RequestError(502, f"the engine answered with status {response.status}")
        return response

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the whole body of a response, and close it. Raises RequestError."""
        too_large = RequestError(502, f"the engine sent more than {self.max_bytes:,} bytes")
        try:
            return await join_pieces(response.content.iter_any(), self.max_bytes, too_large)
        except TimeoutError as error:
            raise RequestError(504, "the engine did not finish its answer in time") from error
        except aiohttp.ClientError as error:
            raise broken_off(error) from error
        finally:
            response.close()


def broken_off(error: Exception) -> RequestError:
    """Log why an answer ended before it was complete, and return the error for the client."""
    log.warning("the engine broke off its answer: %s", describe(error))
    return RequestError(502, "the engine broke off its answer")


def describe(error: Exception) -> str:
    """Return the message of an error, or its type if it has none."""
    return str(error) or type(error).__name__
