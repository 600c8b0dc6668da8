"""Chat completions from an adaptive model in this process, in batches."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from PIL import Image
from starlette.responses import JSONResponse, Response, StreamingResponse

from experiments.serving.drift import ComparedAnswer, DriftMonitor, digest_image
from experiments.serving.errors import RequestError
from experiments.serving.images import ImageReader
from experiments.serving.limits import check_question_text
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import ChatRequest, ChosenScale, Terms, parse
from experiments.serving.service import SCALE_HEADER, Service
from experiments.serving.streaming import Channel, Pieces, cut, make_event
from experiments.serving.targets import (
    Target,
    check_answerable,
    choose_scales,
    describe_choice,
    find_target,
)
from m3_backbone.model_backbone import ModelBackbone
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveVLM

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about an image, with what the request says about the answer.

    `channel` receives the choice, then the tokens so far whenever the answer grows; None: no streaming.
    """

    image: Image.Image
    question: str
    target: Target
    limit: int | None
    stops: tuple[str, ...]
    channel: "Channel[Progress] | None" = None


@dataclass(frozen=True)
class Completion:
    """An answer as a response reports it; `answer` is the whole one.

    `finish_reason` is `length` for an answer that was cut. The visual tokens of `usage` are those of all
    scales that were tried.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    usage: dict[str, int]
    chosen: ChosenScale
    answer: AdaptiveAnswer


# Items of a channel: the choice, then the tokens so far, and at the end the task with the completion.
Progress = ChosenScale | list[int] | asyncio.Task[Completion]


class LocalService(Service):
    """Answers with an adaptive model, in one worker thread.

    Answers equal those of `AdaptiveVLM.answer`. A batch is answered with one call per scale, whatever the
    prices of its requests. Raises ValueError for a backbone that is not a checkpoint, and for default terms
    that the model does not have. `model` is the adaptive model; other arguments are those of `Service`.
    """

    def __init__(
        self,
        model: AdaptiveVLM,
        images: ImageReader,
        metrics: ServerMetrics,
        *,
        default: Terms,
        window_ms: float,
        max_batch: int,
        drift: DriftMonitor | None = None,
    ) -> None:
        if not isinstance(model.backbone, ModelBackbone):
            raise ValueError(f"a {type(model.backbone).__name__} cannot be served: only a checkpoint can")
        batches: dict[str, Any] = {"window_ms": window_ms, "max_batch": max_batch}
        super().__init__(model.backbone, images, metrics, default=default, drift=drift, **batches)
        self.model = model
        self._find_target(default)

    async def complete(self, body: bytes, headers: Mapping[str, str]) -> Response:
        request = parse(ChatRequest, body)
        if request.model != self.backbone.name:
            raise RequestError(
                404,
                f"there is no model {request.model!r}, only {self.backbone.name!r}",
                param="model",
                code="model_not_found",
            )
        request.check_options()
        question, url = request.read_message()
        target = self._find_target(request.or_default(self.default))
        check_question_text(question, self.images.limits)
        received = await self.images.read(url)
        assert isinstance(received.image, Image.Image)
        channel: Channel[Progress] | None = Channel() if request.stream else None
        asked = Asked(received.image, question, target, request.limit, tuple(request.stop or ()), channel)
        task = asyncio.create_task(self._batcher.submit(asked))
        task.add_done_callback(lambda _: received.release())
        try:
            response = await self._respond(request, asked, task)
        except BaseException:
            task.cancel()
            raise
        if self.drift is not None and self.drift.selects():
            digest = digest_image(received.content)
            self._compare_later(response, partial(self._compare, asked, task, digest))
        return response

    async def list_models(self, headers: Mapping[str, str]) -> Response:
        points = {"default": self.model.prices.default, **self.model.prices.named}
        card = {
            "id": self.backbone.name,
            "object": "model",
            "created": 0,
            "owned_by": "tokenscale",
            "tokenscale": {
                "scales": list(self.backbone.scales),
                "predictor": self.model.predictor.name,
                "points": {
                    name: {"price": point.price, "visual_tokens": point.cost, "score": point.score}
                    for name, point in points.items()
                },
            },
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def check_health(self) -> Response:
        return JSONResponse({"status": "ok", "mode": "local", "waiting": self._batcher.num_waiting})

    def _find_target(self, terms: Terms) -> Target:
        return find_target(terms, self.model.prices, self.backbone, self.model.find_hybrid)

    def _work(self, batch: Sequence[Asked]) -> list[Completion | Exception]:
        """Answer a batch in the worker thread; requests that cannot be answered get an exception."""
        results: dict[int, Completion | Exception] = {}
        for row, asked in enumerate(batch):
            try:
                check_answerable(self.backbone, asked.image, asked.question)
            except RequestError as error:
                results[row] = error
        rows = [row for row in range(len(batch)) if row not in results]
        answers = self._answer_valid([batch[row] for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            results[row] = self._complete(batch[row], answer)
        self.metrics.batch_size.observe(len(batch))
        return [results[row] for row in range(len(batch))]

    def _answer_valid(self, batch: Sequence[Asked]) -> list[AdaptiveAnswer]:
        if not batch:
            return []
        questions, targets = [asked.question for asked in batch], [asked.target for asked in batch]
        started = time.perf_counter()
        encoded = self.model.encode([asked.image for asked in batch])
        encoded_at = time.perf_counter()
        choices = choose_scales(
            self.model.choose,
            encoded,
            questions,
            targets,
            [asked.image.size for asked in batch],
            self.backbone,
        )
        chosen_at = time.perf_counter()
        rows = list(choices)
        channels = [batch[row].channel for row in rows]
        for row, channel in zip(rows, channels, strict=True):
            if channel is not None:
                channel.send(describe_choice(choices[row], [choices[row].scale], targets[row]))

        def watch(number: int, token_ids: list[int]) -> None:
            if (channel := channels[number]) is not None:
                channel.send(list(token_ids))

        answered = self.model.answer_chosen(
            [encoded[row] for row in rows],
            [questions[row] for row in rows],
            [choices[row] for row in rows],
            watch=watch if any(channels) else None,
        )
        answers = dict(zip(rows, answered, strict=True))
        hybrids = {float(target.hybrid.price[0]): target.hybrid for target in targets if target.hybrid}
        for price, hybrid in hybrids.items():
            rows = [
                row for row, target in enumerate(targets) if target.hybrid and target.hybrid.price == price
            ]
            answered = self.model.escalate(
                [encoded[row] for row in rows], [questions[row] for row in rows], hybrid
            )
            answers |= zip(rows, answered, strict=True)
        finished = time.perf_counter()
        self.metrics.predictor.observe(1000 * (chosen_at - encoded_at))
        self.metrics.answer.observe(1000 * (finished - chosen_at + encoded_at - started))
        return [answers[row] for row in range(len(batch))]

    def _complete(self, asked: Asked, answer: AdaptiveAnswer) -> Completion:
        """Cut an answer where the request wants it to end, and count its tokens."""
        token_ids, text = answer.answer.token_ids, answer.text
        is_ended = bool(token_ids) and token_ids[-1] in self.backbone.end_ids
        if asked.limit is not None and asked.limit < len(token_ids):
            token_ids, is_ended = token_ids[: asked.limit], False
            text = self.backbone.processor.decode(token_ids)
        shown = cut(text, asked.stops)
        if shown != text:
            text, is_ended = shown, True
        chosen = describe_choice(answer.choice, answer.tried, asked.target)
        self.metrics.count_choice(chosen.scale, chosen.visual_tokens, chosen.finest_visual_tokens)
        num_prompt = self.backbone.num_prompt_tokens(asked.image.size, asked.question, answer.scale)
        usage = {
            "prompt_tokens": num_prompt,
            "completion_tokens": len(token_ids),
            "total_tokens": num_prompt + len(token_ids),
            "visual_tokens": chosen.visual_tokens,
        }
        return Completion(text, "stop" if is_ended else "length", usage, chosen, answer)

    async def _compare(self, asked: Asked, task: asyncio.Task[Completion], image: str) -> ComparedAnswer:
        """Return the answer beside those at other scales, which are given while no request waits."""
        assert self.drift is not None
        await asyncio.wait({task})
        if task.cancelled():  # would cancel what compares, too
            raise RequestError(499, "the client closed the connection")
        completion = task.result()
        answers = {completion.answer.scale: completion.answer.text}
        scales = [scale for scale in self.drift.list_scales(self.backbone.scales) if scale not in answers]
        for scale in scales:
            answers[scale] = await self._batcher.run_when_idle(partial(self._answer_at, asked, scale))
        choice, bound = completion.answer.choice, asked.target.bound
        return ComparedAnswer(completion.chosen, choice.scales, choice.visual_tokens, answers, bound, image)

    def _answer_at(self, asked: Asked, scale: int) -> str:
        """Answer a question at a scale, in the worker thread."""
        (answer,) = self.backbone.answer(self.model.encode([asked.image]), [asked.question], scale)
        return answer.text

    async def _respond(self, request: ChatRequest, asked: Asked, task: asyncio.Task[Completion]) -> Response:
        """Return the response to a question whose completion is the result of `task`.

        A streamed response is returned as soon as the scale is chosen, so that earlier errors set its status.
        """
        common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.backbone.name,
        }
        if asked.channel is not None:
            task.add_done_callback(asked.channel.send)
            first = await asked.channel.receive()
            chosen = first.result().chosen if isinstance(first, asyncio.Task) else first
            assert isinstance(chosen, ChosenScale)
            events = self._stream(common, asked, task, chosen, includes_usage=request.includes_usage)
            headers = {SCALE_HEADER: str(chosen.scale)}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        completion = await task
        headers = {SCALE_HEADER: str(completion.chosen.scale)}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        content = {**common, "object": "chat.completion", "choices": [choice], "usage": completion.usage}
        return JSONResponse({**content, "tokenscale": completion.chosen.model_dump()}, headers=headers)

    async def _stream(
        self,
        common: Mapping[str, Any],
        asked: Asked,
        task: asyncio.Task[Completion],
        chosen: ChosenScale,
        *,
        includes_usage: bool,
    ) -> AsyncIterator[bytes]:
        """Yield the events of a streamed response, as the answer is decoded."""
        # As in OpenAI's protocol: all chunks but the last have an empty usage, if it was asked for.
        no_usage = {"usage": None} if includes_usage else {}

        def make_chunk(delta: dict[str, str], finish_reason: str | None = None, **others: Any) -> bytes:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
            chunk = {**common, "object": "chat.completion.chunk", "choices": choices}
            return make_event({**chunk, **no_usage, **others})

        pieces = Pieces(self.backbone.processor.decode, asked.limit, asked.stops)
        assert asked.channel is not None
        try:
            yield make_chunk(
                {"role": "assistant", "content": ""}, tokenscale=chosen.model_dump(exclude_none=True)
            )
            while not task.done():
                item = await asked.channel.receive()
                if isinstance(item, list) and (piece := pieces.advance(item)):
                    yield make_chunk({"content": piece})
            completion = task.result()
            if piece := pieces.finish(completion.text):
                yield make_chunk({"content": piece})
            yield make_chunk({}, completion.finish_reason)
            if includes_usage:
                chunk = {**common, "object": "chat.completion.chunk", "choices": []}
                yield make_event({**chunk, "usage": completion.usage})
            yield b"data: [DONE]\n\n"
        except Exception as error:
            log.exception("a streamed answer failed")
            message = (
                str(error) if isinstance(error, ValueError) else "internal error: see the log of the server"
            )
            yield make_event(RequestError(500, message).to_body())
        finally:
            task.cancel()
