"""Speed of labelling compared with plain generation."""

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median
from typing import Any

import torch
from PIL import Image

from experiments.estimates.labelling import count_vision
from experiments.labels.block_labels import answer_at_scales
from experiments.labels.blocks import group_by_image
from experiments.labels.machine import describe_machine, time_call
from experiments.reporting.tables import format_table
from experiments.tasks.base import Sample, Task
from m3_backbone.decoding.drafting import Work
from m3_backbone.ladder import distinct_scales
from m3_backbone.llava.random_llava import RandomLlavaBackbone
from m3_backbone.model_backbone import ModelBackbone

Pictures = list[tuple[Image.Image, list[Sample]]]


def read_pictures(task: Task, split: Any, num_images: int, questions_per_image: int | None) -> Pictures:
    """Return the first images of a split, each with its first samples."""
    groups = islice(group_by_image(task.samples(split)), num_images)
    return [(task.image(image_id), samples[:questions_per_image]) for image_id, samples in groups]


@dataclass(frozen=True)
class Method:
    """One method to answer `num_questions` questions; `run` returns token ids by question and scale."""

    name: str
    run: Callable[[], list[list[list[int]]]]
    num_questions: int


def measure(
    backbone: ModelBackbone, pictures: Pictures, *, num_naive: int | None, repeats: int
) -> dict[str, Any]:
    """Return median milliseconds per question of each method, and counters of the engine."""
    questions = [(image, sample) for image, samples in pictures for sample in samples]
    engine = Engine(backbone, pictures)
    engine.answer_at(backbone.scales)  # loads the weights and warms up
    # Evenly spaced, so that plain generation answers a fair sample of the questions.
    step = max(1, len(questions) // (num_naive or len(questions)))
    rows = list(range(0, len(questions), step))[:num_naive]
    plain = PlainGenerate(backbone, [questions[row] for row in rows], [engine.answers[row] for row in rows])
    methods = [
        Method("all scales, engine", lambda: engine.answer_at(backbone.scales), len(questions)),
        Method("finest scale, engine (c)", lambda: engine.answer_at((backbone.scales[-1],)), len(questions)),
        Method("all scales, generate in batches (b)", lambda: plain.answer(backbone.batch_size), len(rows)),
        Method("all scales, generate one by one (a)", lambda: plain.answer(1), len(rows)),
    ]
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    answers = {}
    for _ in range(repeats):
        for method in methods:
            answers[method.name], took = time_call(method.run)
            seconds[method.name].append(took / method.num_questions)
    medians = {name: median(times) for name, times in seconds.items()}
    ours, finest, batched, naive = medians.values()
    reference = [answers[methods[0].name][row] for row in rows]
    work, flops = engine.work, engine.flops
    peak = measure_peak(backbone.torch_dtype, backbone.model.device)
    return {
        "backbone": backbone.name,
        "machine": describe_machine(),
        "num_threads": torch.get_num_threads(),
        "dtype": str(backbone.torch_dtype).removeprefix("torch."),
        "scales": list(backbone.scales),
        "num_images": len(pictures),
        "num_questions": len(questions),
        "milliseconds_per_question": {name: 1000 * time for name, time in medians.items()},
        "questions_per_second": 1 / ours,
        "tokens_per_second": work.num_tokens / len(questions) / ours,
        "share_of_matrix_peak": flops / len(questions) / ours / peak,
        "padding_share": work.padding_tokens / work.num_tokens,
        "draft_acceptance": work.num_drafted / work.num_answers,
        "times_as_fast_as_one_by_one": naive / ours,
        "times_as_fast_as_batched": batched / ours,
        "median_ratio_to_one_by_one": median(
            other / own for own, other in zip(seconds[methods[0].name], seconds[methods[3].name], strict=True)
        ),
        "times_the_finest_scale": ours / finest,
        "answers_that_differ": None
        if plain.is_forced
        else sum(
            engine_ids != plain_ids
            for other in (methods[2].name, methods[3].name)
            for engine_ids, plain_ids in zip(reference, answers[other], strict=True)
        ),
        "peak_memory_gib": measure_memory(),
    }


class Engine:
    """Labelling of some pictures; `work` and `flops` are counters of the last run at all scales."""

    def __init__(self, backbone: ModelBackbone, pictures: Pictures) -> None:
        self.backbone, self.pictures = backbone, pictures
        self.answers: list[list[list[int]]] = []
        self.work = Work()
        self.flops = 0.0

    def answer_at(self, scales: Sequence[int]) -> list[list[list[int]]]:
        """Return token ids by question and scale, coarsest first."""
        before = replace(self.backbone.work)
        encoded = self.backbone.encode([image for image, _ in self.pictures])
        pairs = [(e, s) for e, (_, samples) in zip(encoded, self.pictures, strict=True) for s in samples]
        answers = [
            [answer.token_ids for answer in row] for row in answer_at_scales(self.backbone, pairs, scales)
        ]
        if scales == self.backbone.scales:
            self.work = self.backbone.work.since(before)
            self.answers = answers
            vision = sum(
                count_vision(self.backbone, image.size, distinct_scales(self.backbone, image.size))
                for image in encoded
            )
            self.flops = vision + self.work.num_tokens * self.backbone.decode_flops_per_token()
        return answers


class PlainGenerate:
    """Answers by `generate` of transformers, which encodes the image for every question and scale.

    For a backbone with random answers (`random_llava`), it generates as many tokens as these have.
    """

    def __init__(
        self,
        backbone: ModelBackbone,
        questions: Sequence[tuple[Image.Image, Sample]],
        drawn: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        self.backbone, self.questions, self.drawn = backbone, questions, drawn
        self.is_forced = isinstance(backbone, RandomLlavaBackbone)

    @torch.no_grad()
    def answer(self, batch_size: int) -> list[list[list[int]]]:
        """Return token ids by question and scale, coarsest first."""
        by_scale = [self._answer_at(column, batch_size) for column in range(len(self.backbone.scales))]
        return [list(row) for row in zip(*by_scale, strict=True)]

    def _answer_at(self, column: int, batch_size: int) -> list[list[int]]:
        scale = self.backbone.scales[column]
        model: Any = self.backbone.model
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends)
        answers: list[list[int]] = []
        for start in range(0, len(self.questions), batch_size):
            rows = range(start, min(start + batch_size, len(self.questions)))
            images = [self.questions[row][0] for row in rows]
            texts = [self.questions[row][1].question for row in rows]
            inputs = self.backbone.generate_inputs(images, texts, scale)
            inputs = {
                name: x.to(model.device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()
            }
            length = {"max_new_tokens": self.backbone.max_new_tokens}
            if self.is_forced:
                most = max(len(self.drawn[row][column]) for row in rows)
                length = {"max_new_tokens": most, "min_new_tokens": most}
            output = model.generate(**inputs, do_sample=False, **length)
            for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
                first_end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
                answers.append(ids[: first_end + 1])
        return answers


def measure_peak(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """Return the FLOPs per second of a large matrix product: the best of ten runs."""
    size = size or (8192 if device.type == "cuda" else 1536)
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(time_call(lambda: first @ second)[1] for _ in range(10))


def measure_memory() -> float:
    """Return the peak memory so far in GiB, of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def report(results: dict[str, Any]) -> None:
    """Print a table, then all results as one line of JSON."""
    rows = [["method", "ms per question", "times the engine"]]
    ours = next(iter(results["milliseconds_per_question"].values()))
    for name, took in results["milliseconds_per_question"].items():
        rows.append([name, f"{took:.2f}", f"{took / ours:.2f}"])
    print(format_table(rows))
    print(
        f"\n{results['questions_per_second']:.1f} questions, {results['tokens_per_second']:,.0f} tokens per "
        f"second; {100 * results['share_of_matrix_peak']:.0f}% of the measured matrix peak;"
        f" {100 * results['padding_share']:.1f}% padding; {100 * results['draft_acceptance']:.0f}% of the "
        f"answers drafted; {results['peak_memory_gib']:.2f} GiB"
    )
    print(json.dumps(results))
