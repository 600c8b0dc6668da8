"""Milliseconds of an answer, one question at a time, on the machine that labels."""

import platform
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from m3_backbone.backbone import Backbone

NUM_WARMUPS = 2


def measure_latency(backbone: Backbone, pictures: Sequence[tuple[Image.Image, str]]) -> dict[str, Any]:
    """Median milliseconds at batch size 1: of the vision pass, and per scale of prefill and greedy decoding.

    Neither references nor finer answers help: this is what an answer costs whoever asks a new question.
    """
    milliseconds: dict[str, list[float]] = {"encode": []}
    for image, question in [*[pictures[0]] * NUM_WARMUPS, *pictures]:
        (encoded,), took = _time(partial(backbone.encode, [image]))
        milliseconds["encode"].append(took)
        for scale in backbone.ladder:
            _, took = _time(partial(backbone.answer, [encoded], [question], scale))
            milliseconds.setdefault(str(scale), []).append(took)
    return {
        "machine": _describe_machine(),
        "num_threads": torch.get_num_threads(),
        "num_samples": len(pictures),
        "milliseconds": {name: median(took[NUM_WARMUPS:]) for name, took in milliseconds.items()},
    }


def _time(work: Callable[[], Any]) -> tuple[Any, float]:
    start = perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, 1000 * (perf_counter() - start)


def _describe_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} processor"
