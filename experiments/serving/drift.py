"""Drift: a share of the answers is compared with the finest scale's, in the background.

The share of answers with another text bounds the mean loss in score (`experiments.evaluation.disagreement`).
A published model states an upper bound of it for each operating point. The bounds are no longer supported
when `evaluation.betting.SequentialTest` rejects them at level `delta`, at any time while the server runs. The
test reads the answers of requests at an operating point with a stated bound; requests that set a scale or
escalate are counted only.
"""

import asyncio
import hashlib
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from experiments.evaluation.betting import SequentialTest
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import ChosenScale
from m3_backbone.backbone import Backbone
from predictor.base import ScalePredictor

log = logging.getLogger(__name__)

# Longest answer in a record, in characters; agreement is that of whole answers.
_MAX_ANSWER = 200
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ComparedAnswer:
    """An answer beside those at other scales, the finest among them.

    `answers` maps scales to texts. `visual_tokens` and `estimates` are those of all `scales`; there are no
    estimates if the request set the scale. `bound` is the stated disagreement of the operating point, or
    None. `image` is a digest of the image file.
    """

    chosen: ChosenScale
    scales: tuple[int, ...]
    visual_tokens: tuple[int, ...]
    answers: Mapping[int, str]
    bound: float | None
    image: str

    def agrees(self, scale: int) -> bool:
        """Whether the answer at a scale is that at the finest scale."""
        return self.answers[scale].strip() == self.answers[self.scales[-1]].strip()


# Returns the answers that are compared; it may take long, and raises an exception if there are none.
Compare = Callable[[], Awaitable[ComparedAnswer]]


class Record:
    """JSON lines of compared answers, for `tokenscale recalibrate`: neither images nor questions nor keys.

    A line has the digest of the image file, scales, visual tokens, estimates, the chosen scale, and for each
    scale the first characters of the answer and whether it is that at the finest scale. `model` identifies
    backbone and predictor. No line is added that would make the file larger than `max_bytes`. Raises
    ValueError if the file cannot be written.
    """

    def __init__(self, path: Path, model: str, max_bytes: int) -> None:
        self.path, self.model, self.max_bytes = path, model, max_bytes
        self._is_full = False
        self._append(b"")

    def add(self, compared: ComparedAnswer) -> None:
        """Append one line, unless the request set the scale."""
        if compared.chosen.estimates is None or self._is_full:
            return
        answers = [compared.answers[scale] for scale in compared.scales]
        content = {
            "model": self.model,
            "image": compared.image,
            "scales": list(compared.scales),
            "visual_tokens": list(compared.visual_tokens),
            "estimates": [compared.chosen.estimates[scale] for scale in compared.scales],
            "scale": compared.chosen.scale,
            "answers": [answer[:_MAX_ANSWER] for answer in answers],
            "agrees": [compared.agrees(scale) for scale in compared.scales],
        }
        line = (json.dumps(content) + "\n").encode()
        if self.path.exists() and self.path.stat().st_size + len(line) > self.max_bytes:
            self._is_full = True
            log.warning(
                "%s has reached drift.record_bytes=%d: no more is recorded", self.path, self.max_bytes
            )
            return
        self._append(line)

    def _append(self, content: bytes) -> None:
        try:
            # Answers are the users': nobody else may read them.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(file, "ab") as stream:
                stream.write(content)
        except OSError as error:
            raise ValueError(
                f"drift.record={self.path} cannot be written ({error.strerror or error}): give another file"
            ) from error


class DriftMonitor:
    """Compares a share of the answers with the finest scale's, and counts what it finds in the metrics.

    One comparison runs at a time. Of those that wait, at most `max_queue` are kept; others are dropped and
    counted.

    Args:
        metrics: counters of the server.
        share: probability with which an answer is compared.
        delta: probability of a warning, ever, while the stated bounds hold.
        max_queue: most comparisons that wait.
        record: where the answers are recorded; then they are given at all scales.
        seed: seed of the choice of answers.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        *,
        share: float,
        delta: float = 0.05,
        max_queue: int = 16,
        record: Record | None = None,
        seed: int | None = None,
    ) -> None:
        self.metrics, self.share, self.record = metrics, share, record
        self.test = SequentialTest(delta)
        self._random = random.Random(seed)
        self._counts: dict[int, tuple[int, int]] = {}
        self._sum_of_bounds = 0.0
        self._waiting: asyncio.Queue[Compare] = asyncio.Queue(max_queue)
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to compare."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop; comparisons that wait or run are dropped."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    def selects(self) -> bool:
        """Whether the next answer is to be compared, by chance."""
        return self._random.random() < self.share

    def list_scales(self, scales: tuple[int, ...]) -> tuple[int, ...]:
        """Return the scales at which a selected question is answered: all for a record, else the finest."""
        return scales if self.record is not None else scales[-1:]

    async def submit(self, compare: Compare) -> None:
        """Add a comparison, unless too many wait. It never fails."""
        try:
            self._waiting.put_nowait(compare)
        except asyncio.QueueFull:
            self.skip("queue")

    def skip(self, reason: str) -> None:
        """Count an answer that was selected and is not compared."""
        self.metrics.not_compared.labels(reason).inc()

    async def _work(self) -> None:
        while True:
            compare = await self._waiting.get()
            try:
                self.add(await compare())
            except Exception as error:  # the next ones are still compared
                self.skip("error")
                # The message might repeat an answer.
                log.warning("an answer could not be compared: %s", type(error).__name__)

    def add(self, compared: ComparedAnswer) -> None:
        """Count compared answers, test the bounds, and record the answers."""
        scale, differs = compared.chosen.scale, not compared.agrees(compared.chosen.scale)
        num_answers, num_different = self._counts.get(scale, (0, 0))
        self._counts[scale] = num_answers, num_different = num_answers + 1, num_different + differs
        self.metrics.compared.labels(str(scale)).inc()
        self.metrics.disagreements.labels(str(scale)).inc(differs)
        low, high = binomtest(num_different, num_answers).proportion_ci(_CONFIDENCE, "exact")
        for name, value in (("estimate", num_different / num_answers), ("low", low), ("high", high)):
            self.metrics.disagreement.labels(str(scale), name).set(value)
        if compared.bound is not None:
            self._test(differs, compared.bound)
        if self.record is not None:
            self.record.add(compared)

    def _test(self, differs: bool, bound: float) -> None:
        was_rejected = self.test.is_rejected
        self.test.update(float(differs), bound)
        self._sum_of_bounds += bound
        promised = self._sum_of_bounds / self.test.num_values
        self.metrics.promised.set(promised)
        self.metrics.evidence.set(self.test.capital)
        self.metrics.drifted.set(self.test.is_rejected)
        if self.test.is_rejected and not was_rejected:
            log.warning(
                "drift: after %d compared answers, more of them differ from the finest scale's than the %.3g "
                "that the operating points state (level %g): see /metrics, and run `tokenscale recalibrate`",
                self.test.num_values,
                promised,
                self.test.delta,
            )


def identify_model(backbone: Backbone, predictor: ScalePredictor) -> str:
    """Return a digest of the backbone's fingerprints and of all that the predictor has learned."""
    state = predictor.state_dict()
    own = {name: backbone.fingerprints.get(name) for name in ("weights", "prompt", "decoding")}
    digest = hashlib.sha256(json.dumps([own, state["state"]], sort_keys=True, default=str).encode())
    for name, array in sorted(state["arrays"].items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


def digest_image(content: bytes) -> str:
    """Return the digest by which a record tells images apart."""
    return hashlib.sha256(content).hexdigest()[:16]
