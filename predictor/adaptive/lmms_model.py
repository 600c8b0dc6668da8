"""The model `tokenscale` of lmms-eval: each question is answered at the scale that a predictor chooses.

    python -m lmms_eval --model tokenscale --model_args pretrained=FOLDER,budget=30 --tasks textvqa_val

lmms-eval finds it by the entry point `lmms_eval.models`; tokenscale's base dependencies are enough.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import eval_logger
from PIL import Image
from tqdm import tqdm

from m3_backbone.backbone import check_scale
from m3_backbone.images import open_picture
from m3_backbone.model_backbone import ModelBackbone
from predictor.adaptive.inputs import Choice
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveVLM

# Without a single answer among so many questions, the task is not one for this model.
_PROBED = 64


@dataclass
class AdaptiveCounts(TokenCounts):
    """Token counts of a sample, with the choice of its scale, or with the reason why there is no answer."""

    choice: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.choice


@dataclass(frozen=True)
class Request:
    """A question about an image, with its position among the requests of lmms-eval."""

    position: int
    question: str
    image: Image.Image


class AdaptiveLmms(lmms):
    """An adaptive model (`AdaptiveVLM`) as a model of lmms-eval.

    Answers are greedy, with at most `max_new_tokens` tokens if the task or `--gen_kwargs` say so. The sample
    log has in `token_counts`, besides the tokens of prompt and answer, the `visual_tokens` of all scales
    tried, the `scale` of the answer, the scales `tried`, and the `estimates` of the predictor. A question
    that cannot be answered gets an empty answer, and its reason as `error`; they are counted at the end.

    Args:
        pretrained: folder that `tokenscale publish` wrote, or a hub id.
        price, budget, point: operating point, as in `AdaptiveVLM.answer`; by default the saved one.
        scale: a scale at which all questions are answered, without the predictor.
        escalate: whether the hybrid of predictor and cascade answers, at a price or for a budget.
        device, dtype, revision: as in `AdaptiveVLM.from_pretrained`. Without a GPU, `cuda`, which is
            lmms-eval's default, means the CPU.
        batch_size: number of questions that are read and answered together.
        max_batch_size: unused; lmms-eval gives it to every model.

    Raises ValueError for other arguments, and for an operating point that the model does not have.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        price: float | None = None,
        budget: float | None = None,
        point: str | None = None,
        scale: int | None = None,
        escalate: bool = False,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"model tokenscale has no argument {', '.join(sorted(unknown))}: give pretrained, one of "
                "price, budget, point and scale, escalate, device, dtype, revision"
            )
        if not pretrained:
            raise ValueError("model tokenscale needs pretrained=FOLDER, as `tokenscale publish` writes one")
        given = {"price": price, "budget": budget, "point": point, "scale": scale}
        if sum(value is not None for value in given.values()) > 1 or (escalate and scale is not None):
            raise ValueError("give one of price, budget, point and scale; escalate goes with price or budget")
        if not isinstance(escalate, bool):
            raise ValueError(f"escalate={escalate}: give true or false")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}: give a whole number from 1 up")
        self.batch_size = int(batch_size)
        self.device = self._place(device)
        self.model = AdaptiveVLM.from_pretrained(
            str(pretrained), device=self.device, dtype=dtype, revision=revision
        )
        backbone = self.model.backbone
        assert isinstance(backbone, ModelBackbone)  # as every saved backbone is
        self.backbone = backbone
        self.own_limit = backbone.max_new_tokens
        self.scale = None if scale is None else check_scale(scale, backbone.scales)
        self.hybrid = self.model.find_hybrid(price=price, budget=budget, point=point) if escalate else None
        self.point = None if escalate else self.model.prices.find(price=price, budget=budget, name=point)
        eval_logger.info(f"{self.model!r}; {self._describe_rule()}")

    def _place(self, device: str | None) -> str | None:
        """Return the device of this process, which may be one of several that share the questions."""
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        if device is not None and device.startswith("cuda"):
            if not torch.cuda.is_available():
                eval_logger.warning(f"device is {device}, and there is no GPU: the model runs on the CPU")
                return "cpu"
            if accelerator.num_processes > 1:
                return f"cuda:{accelerator.local_process_index}"
        return device

    def _describe_rule(self) -> str:
        if self.scale is not None:
            return f"every question is answered at scale {self.scale}"
        if self.hybrid is not None:
            cost, score = self.hybrid.cost[0], self.hybrid.score[0]
            return f"escalates; {cost:.1f} visual tokens and score {score:.4f} on calibration"
        assert self.point is not None
        return (
            f"price {self.point.price:.4g}; {self.point.cost:.1f} visual tokens and score "
            f"{self.point.score:.4f} on calibration"
        )

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return an answer with its token counts for every request, in order.

        Raises ValueError for arguments of generation that are not greedy, and if nothing can be answered.
        """
        results: list[GenerationResult] = [GenerationResult("")] * len(requests)
        reasons: Counter[str] = Counter()
        num_tokens, start = 0, time.perf_counter()
        costs: list[int] = []

        def refuse(position: int, reason: str) -> None:
            reasons[reason] += 1
            results[position] = GenerationResult("", AdaptiveCounts(choice={"error": reason}))

        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        for generation, positions in self._make_batches(requests):
            answerable = self._read_batch(requests, positions, generation, refuse)
            for request, answer in zip(answerable, self._answer(answerable), strict=True):
                text = _cut(answer.text, generation.get("until"))
                results[request.position] = GenerationResult(text, self._count(request, answer))
                self.cache_hook.add_partial(
                    "generate_until", (requests[request.position].args[0], generation), text
                )
                num_tokens += len(answer.answer.token_ids)
                costs.append(answer.cost)
            bar.update(len(positions))
            if not costs and reasons.total() >= min(_PROBED, len(requests)):
                raise ValueError(f"no question can be answered: {_list(reasons)}")
        bar.close()
        if reasons:
            eval_logger.warning(
                f"{reasons.total()} of {len(requests)} questions have no answer and count as answered wrong: "
                f"{_list(reasons)}"
            )
        seconds = time.perf_counter() - start
        mean_cost = sum(costs) / max(1, len(costs))
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=num_tokens,
            avg_speed=num_tokens / seconds if seconds else 0.0,
            additional_metrics={"visual_tokens_per_question": mean_cost},
        )
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("model tokenscale generates answers: give tasks of type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("model tokenscale answers one question at a time: give other tasks")

    def _make_batches(self, requests: Sequence[Instance]) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield batches of positions with the same arguments of generation. Raises ValueError for others."""
        groups: dict[str, list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True), []).append(position)
        for text in groups:
            _check_generation(json.loads(text))
        for text, positions in groups.items():
            for first in range(0, len(positions), self.batch_size):
                yield json.loads(text), positions[first : first + self.batch_size]

    def _read_batch(
        self,
        requests: Sequence[Instance],
        positions: Sequence[int],
        generation: Mapping[str, Any],
        refuse: Callable[[int, str], None],
    ) -> list[Request]:
        """Return the requests that can be answered, and set the largest number of tokens of their answers.

        That is the number that the task allows, or what the longest question leaves of the context.
        """
        read: list[Request] = []
        for position in positions:
            try:
                read.append(self._read(requests[position], position))
            except ValueError as error:
                refuse(position, str(error))
        room = min((self.backbone.count_room(request.question) for request in read), default=1)
        limit = min(int(generation.get("max_new_tokens") or self.own_limit), max(1, room))
        if limit != self.backbone.max_new_tokens:
            self.backbone.limit_answers(limit)
        answerable: list[Request] = []
        for request in read:
            try:
                self.backbone.check_question(request.question)
                answerable.append(request)
            except ValueError as error:
                refuse(request.position, str(error))
        return answerable

    def _read(self, request: Instance, position: int) -> Request:
        """Return question and image of a request. Raises ValueError with the reason if there are none."""
        _, doc_to_messages, _, number, task, split = request.args
        question, images = _read_messages(doc_to_messages(self.task_dict[task][split][number]))
        if len(images) != 1:
            raise ValueError(f"{len(images) or 'no'} images, and the model takes one a question")
        image = open_picture(images[0])
        self.backbone.check_image(image.size)
        return Request(position, question, image)

    def _answer(self, requests: Sequence[Request]) -> list[AdaptiveAnswer]:
        """Answer requests together. Equal images are encoded once."""
        if not requests:
            return []
        questions = [request.question for request in requests]
        distinct: dict[bytes, Image.Image] = {}
        images = [
            distinct.setdefault(hashlib.sha256(request.image.tobytes()).digest(), request.image)
            for request in requests
        ]
        encoded = self.model.encode(images)
        if self.hybrid is not None:
            return self.model.escalate(encoded, questions, self.hybrid)
        if self.scale is None:
            assert self.point is not None
            return self.model.answer_at(encoded, questions, self.point)
        choices = [self._fix(image.size) for image in images]
        return self.model.answer_chosen(encoded, questions, choices)

    def _fix(self, size: tuple[int, int]) -> Choice:
        """Return the choice of the fixed scale for an image, without estimates."""
        assert self.scale is not None
        scales = self.backbone.scales
        cost = tuple(self.backbone.num_visual_tokens(size, scale) for scale in scales)
        return Choice(self.scale, scales, (), cost)

    def _count(self, request: Request, answer: AdaptiveAnswer) -> AdaptiveCounts:
        scales, estimates = answer.choice.scales, answer.choice.estimates
        choice: dict[str, Any] = {
            "visual_tokens": answer.cost,
            "scale": answer.scale,
            "tried": list(answer.tried),
        }
        if estimates:
            choice["estimates"] = {str(scale): p for scale, p in zip(scales, estimates, strict=True)}
        return AdaptiveCounts(
            input_tokens=self.backbone.num_prompt_tokens(request.image.size, request.question, answer.scale),
            output_tokens=len(answer.answer.token_ids),
            choice=choice,
        )


def _read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """Return the text and the images of the messages of a question. Raises ValueError for other media."""
    texts: list[str] = []
    images: list[Any] = []
    for message in messages:
        for part in message["content"]:
            if part["type"] not in ("text", "image"):
                raise ValueError(f"a part of type {part['type']}, and the model takes text and one image")
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images.append(part["url"])
    return "\n".join(texts), images


def _check_generation(generation: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments of generation that ask for anything but greedy answers."""
    is_sampled = generation.get("do_sample") and generation.get("temperature") != 0
    if is_sampled or generation.get("temperature") or (generation.get("num_beams") or 1) != 1:
        raise ValueError(
            "model tokenscale answers greedily, as its predictor was trained: give "
            "--gen_kwargs do_sample=False,temperature=0,num_beams=1"
        )


def _cut(text: str, ends: Any) -> str:
    """Return the text up to the first of the texts that end an answer."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        if end:
            text = text.split(end)[0]
    return text


def _list(reasons: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
