"""Latency of answers and of predictors in milliseconds, measured together in one process.

The pictures are those of the calibration split, each with its first question. In every round, each picture
goes through the vision pass, is answered at every scale, and every predictor chooses a scale for it. The
order rotates from picture to picture and from round to round, so that other load on the machine affects all
of them equally. All samples are stored, so that an evaluation can resample them.

Nothing is reused from earlier questions: the decoder gets neither references nor answers at other scales as
drafts. If one vision pass does not serve all scales (`Backbone.family`), each step encodes the images anew,
and the vision pass of every scale is timed by itself.

The time of a predictor is that of `AdaptiveVLM.choose`, after the vision pass of the scales that it reads
and, if it reads the state of the decoder, after the prefill of the coarsest scale, which is timed by itself:
features of the encoded image, tokens of the question, its sentence vector and the estimates. The prompt,
which is the same at every scale, is tokenised before the timing.

With `output_tokens`, long answers are timed too: at every scale, the prefill until the first token, and the
further tokens of an answer of that length, which the tokens that usually end an answer do not end.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.labels.blocks import group_by_image, read_image
from experiments.labels.files import wait_for_lock
from experiments.labels.machine import count_threads, describe_machine, time_call
from experiments.labels.progress import show_progress
from experiments.tasks.base import Sample, Task
from m3_backbone.backbone import Backbone
from m3_backbone.outcomes.manifest import seal, unseal
from m3_backbone.outcomes.shards import write_text
from predictor.base import ScalePredictor
from predictor.policy.pricing import OperatingPoint, PriceList

if TYPE_CHECKING:
    from predictor.adaptive.model import AdaptiveM3

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Question = tuple[Image.Image, str]

FORMAT = 1
NUM_WARMUPS = 2
DECIMALS = 4  # of a millisecond
# Times that not every measurement takes.
OPTIONAL = ("prefill", "first_token", "per_token")


class TimedPredictor(Protocol):
    """A trained predictor with its name and a digest of the files that it was loaded from."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def predictor(self) -> ScalePredictor: ...


@dataclass(frozen=True, eq=False)
class Latency:
    """Milliseconds per question of every batch of images in every round.

    `vision` is the time of the vision pass: `[num_batches, num_rounds]` if one serves all scales, otherwise
    `[num_batches, num_rounds, num_scales]`. `answer` `[num_batches, num_rounds, num_scales]` is that of
    prefill and decoding, and `overhead` maps the name of each predictor to its time `[num_batches,
    num_rounds]`. `prefill` `[num_batches, num_rounds]` is the time of the prefill of the coarsest scale, if a
    predictor reads the state of the decoder after it. If long answers were timed, `first_token` and
    `per_token` `[num_batches, num_rounds, num_scales]` are the times of the prefill and of each further
    token. The time of a batch is divided by its `batch_size` images. `job` describes what was timed
    (`describe_job`).
    """

    job: Mapping[str, Any]
    dtype: str
    vision: Floats
    answer: Floats
    overhead: Mapping[str, Floats]
    prefill: Floats | None = None
    first_token: Floats | None = None
    per_token: Floats | None = None

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(self.job["scales"])

    @property
    def predictors(self) -> Mapping[str, str]:
        """Name -> digest of the predictors that were timed."""
        return self.job["predictors"]

    @property
    def optional(self) -> dict[str, Floats]:
        """Those of the `OPTIONAL` times, by name, that this measurement took."""
        return {name: times for name in OPTIONAL if (times := getattr(self, name)) is not None}

    def write(self, path: Path) -> None:
        """Write a JSON file atomically."""
        content = {
            "format": FORMAT,
            "job": dict(self.job),
            "dtype": self.dtype,
            "milliseconds": {
                "vision": _to_list(self.vision),
                "answer": _to_list(self.answer),
                "overhead": {name: _to_list(samples) for name, samples in self.overhead.items()},
                **{name: _to_list(times) for name, times in self.optional.items()},
            },
        }
        write_text(path, json.dumps(seal(content)) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote. Raises ValueError for any other file."""
        try:
            content = unseal(json.loads(path.read_text(encoding="utf-8")))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            job, samples = content["job"], content["milliseconds"]
            latency = cls(
                job,
                content["dtype"],
                np.array(samples["vision"], dtype=np.float64),
                np.array(samples["answer"], dtype=np.float64),
                {name: np.array(times, dtype=np.float64) for name, times in samples["overhead"].items()},
                **{name: np.array(samples[name], dtype=np.float64) for name in OPTIONAL if name in samples},
            )
            shape = latency.vision.shape[:2]
            if latency.vision.ndim == 3 and latency.vision.shape != latency.answer.shape:
                raise ValueError("the vision pass lacks a scale")
            if (
                latency.answer.shape != (*shape, len(job["scales"]))
                or latency.overhead.keys() != job["predictors"].keys()
            ):
                raise ValueError("shapes or names do not match")
            if not len(latency.vision) or any(times.shape != shape for times in latency.overhead.values()):
                raise ValueError("samples are missing")
            for name, times in latency.optional.items():
                if times.shape != (shape if name == "prefill" else latency.answer.shape):
                    raise ValueError("shapes do not match")
            for times in (
                latency.vision,
                latency.answer,
                *latency.overhead.values(),
                *latency.optional.values(),
            ):
                if not (np.isfinite(times) & (times >= 0)).all():
                    raise ValueError("a time is negative or not finite")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a complete file of timings ({error}): delete it, and run "
                "`tokenscale latency` again"
            ) from error
        return latency


def _to_list(samples: Floats) -> Any:
    return samples.round(DECIMALS).tolist()


def measure_latency(
    *,
    task: Task,
    backbone: Backbone,
    predictors: Sequence[TimedPredictor],
    folder: Path,
    num_images: int = 96,
    num_rounds: int = 2,
    batch_size: int = 1,
    output_tokens: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, Latency]:
    """Time backbone and predictors and write the times to a file in `folder`; returns (path, times).

    The name of the file is a digest of backbone, predictors, data, machine and these numbers. An existing
    undamaged file is returned as it is, unless `overwrite`. One process at a time measures into a folder.
    With `output_tokens`, answers of that many tokens are timed too. Raises ValueError for numbers below 1 (2
    for `output_tokens`), if fewer than `batch_size` pictures have a question that fits, and for long answers
    of a backbone that does not divide an answer into prefill and decoding.
    """
    for name, number in {
        "num_images": num_images,
        "num_rounds": num_rounds,
        "batch_size": batch_size,
    }.items():
        if number < 1:
            raise ValueError(f"latency.{name}={number}: give 1 or more")
    if num_images < batch_size:
        raise ValueError(
            f"latency.num_images={num_images} pictures do not fill a batch of {batch_size}: give at least "
            f"{batch_size}"
        )
    if output_tokens is not None and output_tokens < 2:
        raise ValueError(f"latency.output_tokens={output_tokens}: give 2 or more, or null")
    if output_tokens is not None and not backbone.has_states:
        raise ValueError(
            f"latency.output_tokens={output_tokens}: {backbone.name} does not divide an answer into prefill "
            "and decoding: leave it out"
        )
    job = describe_job(task, backbone, predictors) | {
        "num_images": num_images,
        "num_rounds": num_rounds,
        "batch_size": batch_size,
        **({} if output_tokens is None else {"output_tokens": output_tokens}),
    }
    path = folder / f"{digest_job(job)}.json"
    # No lock: the folder may be read-only.
    if not overwrite and (finished := _read_finished(path)) is not None:
        return path, finished
    folder.mkdir(parents=True, exist_ok=True)
    # Concurrent measurements, as by the jobs of a sweep, would slow each other down.
    with wait_for_lock(folder / ".lock", f"measures latency into {folder}"):
        if not overwrite and (finished := _read_finished(path)) is not None:
            return path, finished
        questions = pick_questions(task, backbone, num_images)
        if len(questions) < batch_size:
            raise ValueError(
                f"{task.name} has {len(questions)} pictures of the calibration split that can be asked "
                f"about, and a batch needs {batch_size}: lower latency.batch_size"
            )
        latency = time_answers(backbone, predictors, questions, job)
        latency.write(path)
    return path, latency


def _read_finished(path: Path) -> Latency | None:
    """Read the timings in a file; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        latency = Latency.read(path)
    except ValueError as error:
        log.warning("measured again: %s", error)
        return None
    log.info("timings are up to date: %s", path)
    return latency


def describe_job(task: Task, backbone: Backbone, predictors: Sequence[TimedPredictor]) -> dict[str, Any]:
    """Return a JSON object of what is timed: backbone, data, digests of predictors, machine, threads."""
    return {
        "machine": describe_machine(),
        "num_threads": count_threads(),
        "backbone": backbone.name,
        "task": task.name,
        "fingerprints": {**backbone.fingerprints, "data": task.fingerprint},
        "scales": list(backbone.scales),
        "predictors": {trained.name: trained.digest for trained in predictors},
    }


def digest_job(job: Mapping[str, Any]) -> str:
    """Return a digest of `describe_job`, independent of the order of the predictors."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


def pick_questions(task: Task, backbone: Backbone, num_images: int) -> list[Question]:
    """Return the first `num_images` calibration pictures that can be answered, each with one question.

    It is the first question that fits.
    """
    questions: list[Question] = []
    for image_id, samples in group_by_image(task.samples("calibration")):
        if len(questions) == num_images:
            break
        question = _find_question(backbone, samples)
        if question is None:
            continue
        image = read_image(task, image_id)
        if not isinstance(image, str) and _fits(backbone, image):
            questions.append((image, question))
    return questions


def _fits(backbone: Backbone, image: Image.Image) -> bool:
    try:
        backbone.check_image(image.size)
    except ValueError:
        return False
    return True


def _find_question(backbone: Backbone, samples: Sequence[Sample]) -> str | None:
    for sample in samples:
        try:
            backbone.check_question(sample.question)
        except ValueError:
            continue
        return sample.question
    return None


def time_answers(
    backbone: Backbone,
    predictors: Sequence[TimedPredictor],
    questions: Sequence[Question],
    job: Mapping[str, Any],
) -> Latency:
    """Measure the times of all rounds; an incomplete last batch is left out."""
    batch_size, num_rounds = job["batch_size"], job["num_rounds"]
    batches = [
        questions[start : start + batch_size]
        for start in range(0, len(questions) - batch_size + 1, batch_size)
    ]
    choosers = {trained.name: _make_chooser(backbone, trained.predictor) for trained in predictors}
    output_tokens = job.get("output_tokens")
    time_batch = partial(_time_batch, backbone, choosers, task=job["task"], output_tokens=output_tokens)
    for batch in batches[:NUM_WARMUPS] * (1 if len(batches) >= NUM_WARMUPS else NUM_WARMUPS):
        time_batch(batch, rotation=0)
    rounds: list[list[dict[Any, float]]] = []
    name = f"timing {backbone.name} on {job['task']}"
    with show_progress(name, total=num_rounds * len(batches), unit="batches") as progress:
        for round_number in range(num_rounds):
            rounds.append([])
            for number, batch in enumerate(batches):
                rounds[-1].append(time_batch(batch, rotation=number + round_number))
                progress.update()

    def collect(key: Any) -> Floats:
        return np.array([[times[key] for times in batches] for batches in rounds]).T

    def collect_at_scales(part: str) -> Floats:
        return np.stack([collect((part, scale)) for scale in backbone.scales], axis=-1)

    return Latency(
        job=job,
        dtype=str(backbone.token_embeddings().dtype).removeprefix("torch."),
        vision=collect("vision") if backbone.family == "pooled" else collect_at_scales("vision"),
        answer=np.stack([collect(scale) for scale in backbone.scales], axis=-1),
        overhead={name: collect(("overhead", name)) for name in choosers},
        prefill=collect("prefill") if any("prefill" in times for times in rounds[0]) else None,
        **({name: collect_at_scales(name) for name in ("first_token", "per_token")} if output_tokens else {}),
    )


def _make_chooser(backbone: Backbone, predictor: ScalePredictor) -> "AdaptiveM3":
    """Return predictor and backbone in one object, at a price of 0, which does not affect the time."""
    # Imported here, so that commands that only read timings start quickly.
    from predictor.adaptive.model import AdaptiveM3

    free = OperatingPoint(price=0.0, unit=1.0, cost=1.0, score=1.0)
    return AdaptiveM3(backbone, predictor, PriceList(free, (free,)))


def _time_batch(
    backbone: Backbone,
    choosers: Mapping[str, "AdaptiveM3"],
    batch: Sequence[Question],
    *,
    task: str,
    rotation: int,
    output_tokens: int | None,
) -> dict[Any, float]:
    """Return the milliseconds per picture of one batch, by part: vision pass, each scale, each predictor.

    With `output_tokens`, they include the prefill and each further token of an answer of that length, at each
    scale. The order of scales and predictors is rotated by `rotation` places.
    """
    images, questions = [image for image, _ in batch], [question for _, question in batch]
    for question in questions:
        backbone.check_question(question)  # tokenises the prompt, before the timing starts
    encoded, seconds = time_call(partial(backbone.encode, images))
    times: dict[Any, float] = {"vision": seconds}
    keys: list[Any] = [*backbone.scales, *(("overhead", name) for name in choosers)]
    first = rotation % len(keys)
    for key in (*keys[first:], *keys[:first]):
        if backbone.family != "pooled":
            encoded = backbone.encode(images)
            is_answer = not isinstance(key, tuple)
            scales = (
                [key] if is_answer else choosers[key[1]].predictor.features.vision_scales(backbone.scales)
            )
            _, seconds = time_call(partial(backbone.compute_features, encoded, scales, ()))
            if is_answer:
                times["vision", key] = seconds
        work: Callable[[], Any] = partial(backbone.answer, encoded, questions, key)
        if isinstance(key, tuple):
            prefilled = None
            if choosers[key[1]].predictor.features.decoder_state:
                prefill = partial(backbone.prefill, encoded, questions, backbone.scales[0])
                prefilled, times["prefill"] = time_call(prefill)
            work = partial(choosers[key[1]].choose, encoded, questions, task=task, prefilled=prefilled)
        times[key] = time_call(work)[1]
        if output_tokens is not None and not isinstance(key, tuple):
            prefilled, times["first_token", key] = time_call(
                partial(backbone.prefill, encoded, questions, key)
            )
            _, seconds = time_call(partial(prefilled.answer, range(len(batch)), output_tokens))
            times["per_token", key] = seconds / (output_tokens - 1)
    return {key: 1000 * seconds / len(batch) for key, seconds in times.items()}
