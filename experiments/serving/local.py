"""Chat completions from an adaptive model in this process, in batches."""

import json
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
    """A question about an image, with what the request says about the answer."""

    image: Image.Image
    question: str
    target: Target
    limit: int | None
    stops: tuple[str, ...]


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
        asked = Asked(received.image, question, target, request.limit, tuple(request.stop or ()))
        completion = await self._batcher.submit(asked)
        response = self._respond(request, completion)
        if self.drift is not None and self.drift.selects():
            digest = digest_image(received.content)
            self._compare_later(response, partial(self._compare, asked, completion, digest))
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
        answered = self.model.answer_chosen(
            [encoded[row] for row in rows], [questions[row] for row in rows], [choices[row] for row in rows]
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
        starts = [start for stop in asked.stops if stop and (start := text.find(stop)) >= 0]
        if starts:
            text, is_ended = text[: min(starts)], True
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

    async def _compare(self, asked: Asked, completion: Completion, image: str) -> ComparedAnswer:
        """Return the answer beside those at other scales, which are given while no request waits."""
        assert self.drift is not None
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

    def _respond(self, request: ChatRequest, completion: Completion) -> Response:
        headers = {SCALE_HEADER: str(completion.chosen.scale)}
        common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.backbone.name,
        }
        if request.stream:
            events = _stream(common, completion, includes_usage=request.includes_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        content = {**common, "object": "chat.completion", "choices": [choice], "usage": completion.usage}
        return JSONResponse({**content, "tokenscale": completion.chosen.model_dump()}, headers=headers)


async def _stream(
    common: Mapping[str, Any], completion: Completion, *, includes_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the events of a streamed response.

    Answers are short and are decoded in batches, so that the whole text is one event.
    """

    def make_event(delta: dict[str, str] | None, finish_reason: str | None = None, **others: Any) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        chunk = {**common, "object": "chat.completion.chunk", "choices": choices, **others}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    chosen = completion.chosen.model_dump(exclude_none=True)
    yield make_event({"role": "assistant", "content": ""}, tokenscale=chosen)
    yield make_event({"content": completion.text})
    yield make_event({}, completion.finish_reason)
    if includes_usage:
        yield make_event(None, usage=completion.usage)
    yield b"data: [DONE]\n\n"
