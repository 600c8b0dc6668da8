"""Text of an answer while it is decoded, as events of a stream."""

import asyncio
import json
import os.path
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Pieces:
    """Cuts the text of a growing answer into pieces that further tokens do not change.

    The stable text is the common prefix of the texts before and after the last token, without white space and
    incomplete characters at its end. The answer ends before the first of `stops`; text that may be the
    beginning of one is not sent yet.

    Args:
        decode: text of token ids.
        limit: number of tokens after which the answer is cut; None: it is not cut.
        stops: texts that end the answer.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], limit: int | None, stops: Sequence[str]
    ) -> None:
        self.decode, self.limit = decode, limit
        self.stops = [stop for stop in stops if stop]
        self._before = self._sent = ""

    def advance(self, token_ids: Sequence[int]) -> str:
        """Return the next piece, which may be empty, from the tokens so far."""
        before, self._before = self._before, self.decode(token_ids[: self.limit])
        stable = os.path.commonprefix([before, self._before])  # noqa: RUF071 - texts, not paths
        if self.stops:
            end = max(0, len(self._before) + 1 - max(map(len, self.stops)))
            stable = stable[: min(end, len(cut(self._before, self.stops)))]
        stable = stable.rstrip("\ufffd").rstrip()
        return self._send(stable) if stable.startswith(self._sent) else ""

    def finish(self, text: str) -> str:
        """Return the last piece of an answer. Raises ValueError unless `text` starts with the sent pieces."""
        if not text.startswith(self._sent):
            raise ValueError("the answer has changed while it was decoded: send the request again")
        return self._send(text)

    def _send(self, text: str) -> str:
        piece, self._sent = text[len(self._sent) :], text
        return piece


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of the texts `stops`."""
    return text[
        : min((start for stop in stops if stop and (start := text.find(stop)) >= 0), default=len(text))
    ]


class Channel(Generic[Item]):
    """Queue that carries items from any thread to this event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Item] = asyncio.Queue()

    def send(self, item: Item) -> None:
        """Send an item, from any thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def receive(self) -> Item:
        """Wait for the next item and return it."""
        return await self._queue.get()


def make_event(content: Mapping[str, Any]) -> bytes:
    """Return a server-sent event with JSON content."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"
