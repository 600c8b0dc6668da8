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
from m3_backbone.features import GROUPS, compute_features

NUM_WARMUPS = 2
FEATURES = "features/"


def measure_latency(
    backbone: Backbone, pictures: Sequence[tuple[Image.Image, str]], feature_scales: Sequence[int] = ()
) -> dict[str, Any]:
    """Median milliseconds at batch size 1: of the vision pass, and per scale of prefill and greedy decoding.

    Neither references nor finer answers help: this is what an answer costs whoever asks a new question.
    `features/...` is what predictors may read of an image: visual tokens of a scale, a group of statistics.
    """
    parts: dict[str, tuple[Sequence[int], Sequence[str]]] = {
        str(scale): ([scale], ()) for scale in feature_scales
    }
    parts |= {group: ((), [group]) for group in GROUPS}
    seconds: dict[str, list[float]] = {"encode": []}
    for image, question in [*[pictures[0]] * NUM_WARMUPS, *pictures]:
        (encoded,), took = time_call(partial(backbone.encode, [image]))
        seconds["encode"].append(took)
        for scale in backbone.ladder:
            _, took = time_call(partial(backbone.answer, [encoded], [question], scale))
            seconds.setdefault(str(scale), []).append(took)
        for name, (scales, groups) in parts.items():
            _, took = time_call(partial(compute_features, backbone, encoded, scales, groups))
            seconds.setdefault(FEATURES + name, []).append(took)
    return {
        "machine": describe_machine(),
        "num_threads": torch.get_num_threads(),
        "num_samples": len(pictures),
        "milliseconds": {name: 1000 * median(took[NUM_WARMUPS:]) for name, took in seconds.items()},
    }


def time_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the seconds that it took; a GPU's work is waited for."""
    start = perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, perf_counter() - start


def describe_machine() -> str:
    """Name of the GPU, or kind of processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} processor"
