"""Chat completions of an OpenAI-compatible engine, with a scale chosen before each request."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from PIL import Image
from pydantic import ConfigDict
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from experiments.serving.adapters import Adapted, Adapter
from experiments.serving.conversations import (
    Picture,
    copy_messages,
    encode_request,
    find_picture,
    read_answer,
    read_question,
    replace_picture,
)
from experiments.serving.drift import ComparedAnswer, DriftMonitor, digest_image
from experiments.serving.engine import Engine, broken_off
from experiments.serving.errors import RequestError, refuse
from experiments.serving.images import ImageReader, ReceivedImage, UndecodedImage
from experiments.serving.limits import check_question_text
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import ChosenScale, Terms, parse, parse_object
from experiments.serving.service import SCALE_HEADER, Service
from experiments.serving.targets import Target, choose_scales, count_tokens, describe_choice, find_target
from m3_backbone.model_backbone import ModelBackbone
from predictor.adaptive.chooser import ScaleChooser
from predictor.adaptive.model import AdaptiveVLM
from predictor.base import ScalePredictor
from predictor.policy.pricing import PriceList

_COMPLETIONS = "/v1/chat/completions"
_HEALTH_SECONDS = 5.0
# Headers of one connection (RFC 9110, 7.6.1), and those that this process sets itself.
_OWN_HEADERS = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade"),
        *("accept-encoding", "content-encoding", "content-length", "date", "expect", "host", "server"),
    )
)


class ProxiedTerms(Terms):
    """The fields of a request that choose its scale; all others belong to the engine."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Pending:
    """An image and a question whose scale is to be chosen."""

    image: Image.Image | UndecodedImage
    question: str
    target: Target


@dataclass(eq=False)
class Selected:
    """A request whose answer is compared with the finest scale's.

    `body` is the request before its image was adapted. `chunks` are the parts of the engine's response that
    may contain the answer: the whole response, or lines of a stream that was read to its end.
    """

    body: dict[str, Any]
    headers: Mapping[str, str]
    picture: Picture
    received: ReceivedImage
    target: Target
    visual_tokens: tuple[int, ...]
    chunks: list[bytes] = field(default_factory=list)


class ProxyService(Service):
    """Chooses the scale of each image, rewrites the request for the engine, and hands back its response.

    The image of a conversation may be in any message; the question is the text of the last one of the user.
    Requests without an image pass unchanged. Errors, streams, usage and headers of the engine pass
    through; the choice is added. Headers of the client, its API key among them, are sent to the engine and
    are kept nowhere.

    Args:
        backbone: the model of the engine. Its weights are loaded only if `adapter.encodes`.
        predictor, prices: what chooses; a predictor that reads features of the backbone needs an adapter that
            encodes.
        adapter: form in which the engine takes a scale.
        upstream: URL of the engine, with or without `/v1`.
        images, metrics, default, max_batch, drift: as in `Service`; `drift` makes further requests to the
            engine.
        upstream_seconds: time that the engine may take between two pieces of a response.
        max_response_bytes: largest response of the engine that is not streamed, and longest line of a stream.
    """

    def __init__(
        self,
        backbone: ModelBackbone,
        predictor: ScalePredictor,
        prices: PriceList,
        adapter: Adapter,
        upstream: str,
        images: ImageReader,
        metrics: ServerMetrics,
        *,
        default: Terms,
        upstream_seconds: float,
        max_batch: int,
        drift: DriftMonitor | None = None,
        max_response_bytes: int = 64_000_000,
    ) -> None:
        adapter.check_backbone(backbone)
        batches: dict[str, Any] = {"window_ms": 0, "max_batch": max_batch}
        super().__init__(backbone, images, metrics, default=default, drift=drift, **batches)
        self.chooser: ScaleChooser | AdaptiveVLM
        if adapter.encodes:
            self.chooser = AdaptiveVLM(backbone, predictor, prices)
        else:
            self.chooser = ScaleChooser(backbone, predictor, prices)
        self.adapter, self.prices = adapter, prices
        self._reads_pixels = adapter.reads_pixels or predictor.reads_pixels
        find_target(default, prices, backbone)
        self.engine = Engine(upstream, seconds=upstream_seconds, max_bytes=max_response_bytes)

    @property
    def runs_model(self) -> bool:
        return self.adapter.encodes

    async def start(self) -> None:
        await self.engine.start()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self.engine.stop()

    async def complete(self, body: bytes, headers: Mapping[str, str]) -> Response:
        content = parse_object(body)
        terms = parse(ProxiedTerms, content)
        picture = find_picture(content)
        for name in Terms.model_fields:
            content.pop(name, None)
        if picture is None:
            if terms.given():
                raise refuse("only a request with an image has a scale", param=next(iter(terms.given())))
            return await self._send(content, None, headers, None)
        target = find_target(terms.or_default(self.default), self.prices, self.backbone)
        question = check_question_text(read_question(content), self.images.limits)
        received = await self.images.read(picture.url, pixels=self._reads_pixels)
        try:
            adapted, chosen = await self._batcher.submit(Pending(received.image, question, target))
        finally:
            received.release()
        selected = self._select(content, headers, picture, received, target)
        replace_picture(content, picture, adapted, received, chosen.scale)
        del received  # its pixels, while the engine answers
        response = await self._send(content, picture, headers, chosen, selected)
        if response.status_code == 200:
            self.metrics.count_choice(chosen.scale, chosen.visual_tokens, chosen.finest_visual_tokens)
            if selected is not None:
                self._compare_later(response, partial(self._compare, selected, chosen))
        return response

    async def list_models(self, headers: Mapping[str, str]) -> Response:
        return await self._read(await self.engine.call("GET", "/v1/models", _pass(headers)), None)

    async def check_health(self) -> Response:
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                response = await self.engine.call("GET", "/health", {})
                response.close()
        except (RequestError, TimeoutError) as error:
            raise RequestError(503, "the engine cannot be reached") from error
        is_well = response.status < 500
        return JSONResponse(
            {"status": "ok" if is_well else "engine", "mode": "proxy", "waiting": self._batcher.num_waiting},
            status_code=200 if is_well else 503,
        )

    def _work(self, batch: Sequence[Pending]) -> list[tuple[Adapted, ChosenScale] | Exception]:
        """Choose and write the scales of a batch, in the worker thread."""
        started = time.perf_counter()
        results: dict[int, tuple[Adapted, ChosenScale] | Exception] = {}
        for row, pending in enumerate(batch):
            try:
                self.backbone.check_image(pending.image.size)
            except ValueError as error:
                results[row] = refuse(str(error), param="messages")
        rows = [row for row in range(len(batch)) if row not in results]
        valid = [batch[row] for row in rows]
        images: list[Any] = [pending.image for pending in valid]
        items: Sequence[Any] = images
        if isinstance(self.chooser, AdaptiveVLM):
            items = self.chooser.encode(images)
        choices = choose_scales(
            self.chooser.choose,
            items,
            [pending.question for pending in valid],
            [pending.target for pending in valid],
            [image.size for image in images],
            self.backbone,
        )
        self.metrics.predictor.observe(1000 * (time.perf_counter() - started))
        self.metrics.batch_size.observe(len(batch))
        for number, row in enumerate(rows):
            choice = choices[number]
            adapted = self.adapter.adapt(self.backbone, items[number], choice.scale)
            results[row] = adapted, describe_choice(choice, [choice.scale], valid[number].target)
        return [results[row] for row in range(len(batch))]

    def _select(
        self,
        content: dict[str, Any],
        headers: Mapping[str, str],
        picture: Picture,
        received: ReceivedImage,
        target: Target,
    ) -> Selected | None:
        """Return a copy of a request whose answer is to be compared; None for others.

        Answers that are sampled, or several, differ by chance: they are never compared.
        """
        is_greedy = content.get("temperature") == 0 and content.get("n") in (None, 1)
        if self.drift is None or not is_greedy or not self.drift.selects():
            return None
        body = copy_messages(content)
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        tokens = count_tokens(self.backbone, received.image.size)
        return Selected(body, headers, picture, received, target, tokens)

    async def _compare(self, selected: Selected, chosen: ChosenScale) -> ComparedAnswer:
        """Return the answer of the engine beside those at other scales, which it is asked for now."""
        assert self.drift is not None
        scales = self.backbone.scales
        answers = {chosen.scale: read_answer(selected.chunks)}
        tokens_of = dict(zip(scales, selected.visual_tokens, strict=True))
        for scale in self.drift.list_scales(scales):
            same = [known for known in answers if tokens_of[known] == tokens_of[scale]]
            answers[scale] = answers[same[0]] if same else await self._ask_at(selected, scale)
        digest = digest_image(selected.received.content)
        return ComparedAnswer(chosen, scales, selected.visual_tokens, answers, selected.target.bound, digest)

    async def _ask_at(self, selected: Selected, scale: int) -> str:
        """Return the engine's answer to a request with its image at a scale."""
        adapted = await self._batcher.run_when_idle(partial(self._adapt, selected.received.image, scale))
        body = copy_messages(selected.body)
        replace_picture(body, selected.picture, adapted, selected.received, scale)
        response = await self._send(body, selected.picture, selected.headers, None)
        if response.status_code != 200:
            raise RequestError(502, f"the engine answered with status {response.status_code}")
        return read_answer([bytes(response.body)])

    def _adapt(self, image: Image.Image | UndecodedImage, scale: int) -> Adapted:
        """Return the parts of a request with an image at a scale, in the worker thread."""
        item: Any = image
        if isinstance(self.chooser, AdaptiveVLM):
            (item,) = self.chooser.encode([item])
        return self.adapter.adapt(self.backbone, item, scale)

    async def _send(
        self,
        content: dict[str, Any],
        picture: Picture | None,
        headers: Mapping[str, str],
        chosen: ChosenScale | None,
        selected: Selected | None = None,
    ) -> Response:
        """Return the engine's response to a request, with the choice added."""
        body = encode_request(content, picture)
        started = time.perf_counter()
        response = await self.engine.call("POST", _COMPLETIONS, _pass(headers), body)
        self.metrics.upstream.observe(1000 * (time.perf_counter() - started))
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return RelayedResponse(
                self._relay(response, chosen, selected),
                status_code=response.status,
                headers=_add_scale(response, chosen),
                release=response.close,
            )
        return await self._read(response, chosen, selected)

    async def _read(
        self, response: aiohttp.ClientResponse, chosen: ChosenScale | None, selected: Selected | None = None
    ) -> Response:
        """Return a response that is not streamed; the choice is added to a completion."""
        body = await self.engine.read(response)
        if selected is not None:
            selected.chunks.append(body)
        if chosen is not None and response.status == 200:
            body = _add_choice(body, chosen, is_first=True)
        return Response(body, response.status, _add_scale(response, chosen))

    async def _relay(
        self, response: aiohttp.ClientResponse, chosen: ChosenScale | None, selected: Selected | None
    ) -> AsyncIterator[bytes]:
        """Yield the events of the engine as they come; the choice is added to the first and to the usage."""
        rest, is_first, compared, num_compared = bytearray(), True, list[bytes](), 0
        try:
            async for piece in response.content.iter_any():
                # A task whose next piece is always there would never see that it is cancelled.
                await asyncio.sleep(0)
                rest += piece
                if len(rest) > self.engine.max_bytes:
                    raise aiohttp.ClientPayloadError("a line of the stream is too long")
                if b"\n" not in piece:
                    continue
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for number, line in enumerate(lines):
                    is_chunk = line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]")
                    if selected is not None and is_chunk and num_compared <= self.engine.max_bytes:
                        compared.append(line[5:])
                        num_compared += len(line)
                    if chosen is not None and is_chunk and (is_first or b'"usage"' in line):
                        lines[number] = b"data: " + _add_choice(line[5:], chosen, is_first=is_first)
                        is_first = False
                if lines:
                    yield b"\n".join([*lines, b""])
            if rest:
                yield bytes(rest)
            if selected is not None and num_compared <= self.engine.max_bytes:
                selected.chunks += compared  # a part of an answer is not compared
        except (aiohttp.ClientError, TimeoutError) as error:
            yield b"data: " + json.dumps(broken_off(error).to_body()).encode() + b"\n\n"


class RelayedResponse(StreamingResponse):
    """A stream whose source is closed at the end, also if the client leaves before the first piece."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        status_code: int,
        headers: Mapping[str, str],
        release: Callable[[], None],
    ) -> None:
        super().__init__(content, status_code, headers)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def _pass(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a client for the engine; responses are not compressed."""
    return {**_select_headers(headers), "accept-encoding": "identity"}


def _add_scale(response: aiohttp.ClientResponse, chosen: ChosenScale | None) -> dict[str, str]:
    """Return the headers of the engine for the client, with the scale."""
    passed = _select_headers(response.headers)
    return passed if chosen is None else {**passed, SCALE_HEADER: str(chosen.scale)}


def _select_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers to pass on: printable ASCII, and none about this connection."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in _OWN_HEADERS and value.isascii() and value.isprintable()
    }


def _add_choice(body: bytes, chosen: ChosenScale, *, is_first: bool) -> bytes:
    """Return a completion, or a chunk of one, with the choice; anything else unchanged."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(content, dict) or "error" in content:
        return body
    if isinstance(content.get("usage"), dict):
        content["usage"]["visual_tokens"] = chosen.visual_tokens
    if is_first:
        content["tokenscale"] = chosen.model_dump()
    return json.dumps(content).encode()
