"""Time and FLOPs of adaptive answers compared with every fixed scale."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import mean, median
from typing import Any

import torch
from PIL import Image

from experiments.labels.blocks import group_by_image
from experiments.labels.machine import describe_machine, time_call
from experiments.reporting.tables import format_table
from experiments.tasks.base import Task
from m3_backbone.backbone import Answer, Backbone
from m3_backbone.model_backbone import ModelBackbone
from predictor.adaptive.inputs import Choice, make_inputs
from predictor.adaptive.model import AdaptiveAnswer, AdaptiveM3
from predictor.policy.pricing import OperatingPoint

Questions = Sequence[tuple[Image.Image, str]]
ADAPTIVE = "adaptive"


def read_questions(task: Task, split: Any, number: int) -> list[tuple[Image.Image, str]]:
    """Return `number` (image, question) pairs: the first question about each of the first images."""
    groups = islice(group_by_image(task.samples(split)), number)
    return [(task.image(image_id), samples[0].question) for image_id, samples in groups]


@dataclass(frozen=True)
class Method:
    """One method to answer a batch: adaptive, or at a fixed scale."""

    name: str
    run: Callable[[Questions], Any]


def measure(
    adaptive: AdaptiveM3,
    point: OperatingPoint,
    questions: Questions,
    *,
    batch_sizes: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Return median milliseconds per answer of each method and the predictor, paired ratios, and GFLOPs."""
    backbone = adaptive.backbone
    assert isinstance(backbone, ModelBackbone)
    methods = [Method(ADAPTIVE, partial(_answer_adaptively, adaptive, point))]
    methods += [Method(str(scale), partial(_answer_at, backbone, scale)) for scale in backbone.scales]
    for method in methods:
        method.run(questions[: max(batch_sizes)])  # loads the weights and warms up
    encoded = backbone.encode([image for image, _ in questions])
    choices = adaptive.choose(encoded, [question for _, question in questions], point)
    results: dict[str, Any] = {
        "backbone": backbone.name,
        "predictor": adaptive.predictor.name,
        "machine": describe_machine(),
        "num_threads": torch.get_num_threads(),
        "dtype": str(backbone.torch_dtype).removeprefix("torch."),
        "scales": list(backbone.scales),
        "num_questions": len(questions),
        "repeats": repeats,
        "price": point.price,
        "chosen": {str(scale): mean(c.scale == scale for c in choices) for scale in backbone.scales},
        "visual_tokens": {
            ADAPTIVE: mean(choice.cost for choice in choices),
            **{
                str(scale): mean(choice.visual_tokens[column] for choice in choices)
                for column, scale in enumerate(backbone.scales)
            },
        },
        "gflops": count_gflops(adaptive, questions, choices),
    }
    for batch_size in batch_sizes:
        results[f"batch_size_{batch_size}"] = _time_methods(
            adaptive, point, methods, questions, batch_size, repeats
        )
    return results


def _time_methods(
    adaptive: AdaptiveM3,
    point: OperatingPoint,
    methods: Sequence[Method],
    questions: Questions,
    batch_size: int,
    repeats: int,
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    predictor_seconds: list[float] = []
    for repeat in range(repeats):
        for number, start in enumerate(range(0, len(questions), batch_size)):
            batch = questions[start : start + batch_size]
            first = (repeat + number) % len(methods)
            for method in (*methods[first:], *methods[:first]):
                _, took = time_call(partial(method.run, batch))
                seconds[method.name].append(took / len(batch))
            encoded = adaptive.backbone.encode([image for image, _ in batch])
            _, took = time_call(partial(adaptive.choose, encoded, [question for _, question in batch], point))
            predictor_seconds.append(took / len(batch))
    fixed = [method.name for method in methods if method.name != ADAPTIVE]
    return {
        "milliseconds": {name: 1000 * median(took) for name, took in seconds.items()},
        "milliseconds_of_predictor": 1000 * median(predictor_seconds),
        "share_of_predictor": median(
            part / whole for part, whole in zip(predictor_seconds, seconds[ADAPTIVE], strict=True)
        ),
        "times_as_fast_as": {
            name: median(other / own for other, own in zip(seconds[name], seconds[ADAPTIVE], strict=True))
            for name in fixed
        },
    }


def count_gflops(adaptive: AdaptiveM3, questions: Questions, choices: Sequence[Choice]) -> dict[str, float]:
    """Return the computed mean GFLOPs per answer: vision pass and prefill of each method, and the predictor.

    The tokens of an answer after the first are left out, as they cost the same at every scale.
    """
    backbone = adaptive.backbone
    scales_of = {str(scale): [scale] * len(questions) for scale in backbone.scales}
    scales_of[ADAPTIVE] = [choice.scale for choice in choices]
    vision, prefill = {}, {}
    for name, scales in scales_of.items():
        sizes = [image.size for image, _ in questions]
        vision[name] = mean(map(backbone.vision_flops, sizes, scales))
        texts = [question for _, question in questions]
        prefill[name] = mean(map(backbone.prefill_flops, sizes, texts, scales))
    # A predictor that reads features has read the coarsest scale, whatever it chooses.
    coarsest = backbone.scales[0]
    others = [pair for pair, choice in zip(questions, choices, strict=True) if choice.scale != coarsest]
    if backbone.family == "native" and adaptive.predictor.features.reads_vision:
        passes = [backbone.vision_flops(image.size, coarsest) for image, _ in others]
        vision[ADAPTIVE] += sum(passes) / len(questions)
    if adaptive.predictor.features.decoder_state:  # an answer there is decoded from the same prefill
        prefills = [backbone.prefill_flops(image.size, question, coarsest) for image, question in others]
        prefill[ADAPTIVE] += sum(prefills) / len(questions)
    encoded = backbone.encode([image for image, _ in questions[:1]])
    inputs = make_inputs(
        backbone,
        encoded,
        [questions[0][1]],
        adaptive.predictor.features,
        token_embeddings=backbone.token_embeddings(),
    )
    predictor_flops = adaptive.predictor.count_flops(inputs)
    whole = {name: (vision[name] + flops) / 1e9 for name, flops in prefill.items()}
    whole[ADAPTIVE] += predictor_flops / 1e9
    return whole | {
        "predictor": predictor_flops / 1e9,
        "vision": vision[str(backbone.scales[-1])] / 1e9,
        "one more token of an answer": backbone.decode_flops_per_token() / 1e9,
    }


def _answer_adaptively(adaptive: AdaptiveM3, point: OperatingPoint, batch: Questions) -> list[AdaptiveAnswer]:
    images, questions = zip(*batch, strict=True)
    return adaptive.answer_at(adaptive.encode(images), questions, point)


def _answer_at(backbone: Backbone, scale: int, batch: Questions) -> list[Answer]:
    images, questions = zip(*batch, strict=True)
    return backbone.answer(backbone.encode(images), questions, scale)


def report(results: Mapping[str, Any]) -> None:
    """Print the tables, then all results as one line of JSON."""
    gflops, tokens = results["gflops"], results["visual_tokens"]
    sizes = [key for key in results if key.startswith("batch_size_")]
    head = ["scale", "tokens", "GFLOPs"]
    for key in sizes:
        number = key.removeprefix("batch_size_")
        head += [f"ms, batch of {number}", "adaptive is faster"]
    rows = [head]
    for name in (ADAPTIVE, *map(str, results["scales"])):
        row = [name, f"{tokens[name]:.1f}", f"{gflops[name]:.3g}"]
        for key in sizes:
            ratio = results[key]["times_as_fast_as"].get(name)
            row += [f"{results[key]['milliseconds'][name]:.2f}", "-" if ratio is None else f"{ratio:.2f}x"]
        rows.append(row)
    print(format_table(rows))
    shares = ", ".join(
        f"{results[key]['milliseconds_of_predictor']:.2f} ms "
        f"({100 * results[key]['share_of_predictor']:.1f}%) in batches of {key.removeprefix('batch_size_')}"
        for key in sizes
    )
    percent = 100 * gflops["predictor"] / gflops[str(results["scales"][-1])]
    print(f"\nthe predictor alone: {shares}; {percent:.2g}% of the FLOPs at the finest scale")
    chosen = ", ".join(f"{scale}: {100 * share:.0f}%" for scale, share in results["chosen"].items())
    print(f"chosen: {chosen}; on {results['machine']}, {results['num_threads']} threads, {results['dtype']}")
    print(json.dumps(results))
