"""Parts of `tokenscale gpu-check`: device, parity, conformance, labelling, adaptive answers, attention."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.bench import adaptive as adaptive_bench
from experiments.bench import labelling as labelling_bench
from experiments.bench.drawn_choices import draw_choices
from experiments.bench.gpu_check.agreement import (
    check_conformance,
    compare_with_cpu,
    compare_with_recordings,
    digest_recordings,
    find_recordings,
    list_families,
)
from experiments.bench.gpu_check.attention import (
    PackedInputs,
    compare_attention,
    prepare_flex,
    prepare_varlen,
)
from experiments.bench.gpu_check.parts import Part, Unavailable, Values
from experiments.labels.machine import describe_machine, time_call
from experiments.tasks.base import Task
from m3_backbone.llava.random_llava import RandomLlavaBackbone
from predictor.base import ScalePredictor

GIB = 2**30
# Memory in GiB for weights, activations and caches of 7B shapes in bfloat16: an estimate.
NEEDED_GIB = 24
_SMALL: dict[str, Any] = {
    **{"image_size": 96, "patch_size": 4, "vision_size": 32, "num_vision_layers": 2, "num_vision_heads": 2},
    **{"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 2, "vocab_size": 500},
    "dtype": "float32",
}


# Share of each scale among the choices, about that of a predictor at a tenth of the cost.
_SHARES = {1: 0.35, 9: 0.25, 36: 0.2, 144: 0.15, 576: 0.05}
# Length of all answers, end token included.
NUM_TOKENS = 6


def choose_device(device: str | None, size: str) -> str:
    """Return the device to check, by default a GPU if there is one.

    Raises ValueError for other devices, and for 7B shapes without a GPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"device={device}: give cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device={device}, and there is no GPU: give device=cpu size=small")
    if size == "7b" and device == "cpu":
        raise ValueError("size=7b needs a GPU: give size=small")
    if device != "cpu":
        torch.cuda.set_device(device)
    # TF32 would hide differences in float32.
    torch.backends.cudnn.allow_tf32 = False
    return device


def describe(device: str, size: str) -> dict[str, Any]:
    """Return what results belong to: device, size and versions."""
    versions = {name: version(name) for name in ("tokenscale", "torch", "transformers")}
    return {"device": device, "machine": describe_machine(), "size": size, "versions": versions}


def measure_device(device: str) -> Values:
    """Return memory in GiB, and the best of ten matrix products and copies."""
    place = torch.device(device)
    values: Values = {"device": describe_machine()}
    if device == "cpu":
        values["memory_gib"] = "unavailable, because the device is a CPU"
    else:
        values["memory_gib"] = torch.cuda.get_device_properties(place).total_memory / GIB
    values["threads"] = torch.get_num_threads()
    for dtype in (torch.bfloat16, torch.float32):
        flops = labelling_bench.measure_peak(dtype, place, 512 if device == "cpu" else None)
        values[f"{str(dtype).removeprefix('torch.')}_tflops"] = flops / 1e12
    source = torch.zeros(2**24 if device == "cpu" else 2**28, device=place)
    target = torch.empty_like(source)
    seconds = min(time_call(lambda: target.copy_(source))[1] for _ in range(10))
    # A copy reads and writes every byte.
    values["bandwidth_gb_per_second"] = 2 * source.nbytes / seconds / 1e9
    return values


class SpeedBench:
    """Benchmarks of labelling and of adaptive answers on M3 with random weights, which are drawn once."""

    def __init__(
        self, device: str, size: str, task: Task, make_predictor: Callable[[], ScalePredictor]
    ) -> None:
        self.device, self.is_small = device, size == "small"
        self.task, self.make_predictor = task, make_predictor

    @cached_property
    def backbone(self) -> RandomLlavaBackbone:
        if not self.is_small and (free := torch.cuda.mem_get_info()[0] / GIB) < NEEDED_GIB:
            raise Unavailable(f"7B shapes need about {NEEDED_GIB} GiB of memory and {free:.0f} GiB are free")
        return self._open(NUM_TOKENS)

    @cached_property
    def one_token_backbone(self) -> RandomLlavaBackbone:
        """The same weights, with answers of one token, to time the first token."""
        first = self._open(1)
        first.model = self.backbone.model
        return first

    def _open(self, num_tokens: int) -> RandomLlavaBackbone:
        shapes = _SMALL if self.is_small else {}
        return RandomLlavaBackbone(device=self.device, answer_lengths=(num_tokens, num_tokens), **shapes)

    def _start_memory(self) -> None:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()

    def measure_labelling(self, questions_per_image: int) -> Values:
        """Return speed of labelling and its ratio to the authors' way, one question and scale at a time."""
        backbone, num_images = self.backbone, 4 if self.is_small else 32
        self._start_memory()
        pictures = labelling_bench.read_pictures(self.task, "test", num_images, questions_per_image)
        results = labelling_bench.measure(backbone, pictures, num_naive=4 if self.is_small else 32, repeats=3)
        names = ("questions_per_second", "median_ratio_to_one_by_one", "share_of_matrix_peak")
        return {name: results[name] for name in (*names, "peak_memory_gib")}

    def measure_adaptive(self, batch_size: int) -> Values:
        """Return times of adaptive answers and of answers at every fixed scale, in one batch size.

        The first token is timed with answers of one token, and the others by the difference.
        """
        self._start_memory()
        whole, first = (
            self._time_adaptive(backbone, batch_size) for backbone in (self.backbone, self.one_token_backbone)
        )
        methods = {
            name: {
                "ttft_milliseconds": first["milliseconds"][name] * batch_size,
                "tpot_milliseconds": _divide_rest(took - first["milliseconds"][name], batch_size),
                "end_to_end_milliseconds": took * batch_size,
                "questions_per_second": 1000 / took,
                "adaptive_is_faster": whole["times_as_fast_as"].get(name),
            }
            for name, took in whole["milliseconds"].items()
        }
        return {"methods": methods, "peak_memory_gib": labelling_bench.measure_memory()}

    def _time_adaptive(self, backbone: RandomLlavaBackbone, batch_size: int) -> Values:
        questions = adaptive_bench.read_questions(self.task, "calibration", max(batch_size, 8))
        # Equal seeds give equal choices to both backbones.
        model = draw_choices(backbone, self.make_predictor(), questions, _SHARES, seed=0)
        repeats = 2 if self.is_small else 5
        sizes = [batch_size]
        results = adaptive_bench.measure(
            model, model.prices.default, questions, batch_sizes=sizes, repeats=repeats
        )
        return results[f"batch_size_{batch_size}"]

    def compare_attention(self, kind: str, num_questions: int) -> Values:
        """Compare an attention kernel with the engine's at the shapes of this size."""
        is_gpu = self.device != "cpu"
        if kind == "varlen" and not is_gpu:
            raise Unavailable("variable-length attention of PyTorch runs on GPUs only")
        if kind == "varlen" and num_questions > 1:
            raise Unavailable("several questions about an image need a mask, which these kernels do not take")
        inputs = PackedInputs.draw(
            num_images=4 if self.is_small else 32,
            num_questions=num_questions,
            num_visual=144 if self.is_small else 576,
            heads=2 if self.is_small else 32,
            size=32 if self.is_small else 128,
            device=self.device,
        )
        attend = prepare_varlen(inputs) if kind == "varlen" else prepare_flex(inputs, is_compiled=is_gpu)
        return compare_attention(inputs, attend, is_timed=is_gpu)


def _divide_rest(milliseconds: float, batch_size: int) -> float | str:
    """Return the time per step after the first token, given the difference of times per answer."""
    if milliseconds <= 0:
        return "unavailable, because answers of one token took as long: other load on the machine"
    return milliseconds * batch_size / (NUM_TOKENS - 1)


def list_parts(
    device: str,
    size: str,
    task: Task,
    make_predictor: Callable[[], ScalePredictor],
    recordings: Path | None = None,
) -> list[Part]:
    """Return all parts in the order in which they run.

    Raises ValueError if `recordings` is a folder without recordings.
    """
    recorded = [] if recordings is None else find_recordings(recordings)
    families: Mapping[str, Any] = list_families()
    bench = SpeedBench(device, size, task, make_predictor)
    parts = [Part("device", "facts", partial(measure_device, device))]
    for dtype in ("float32", "bfloat16"):
        for name, opener in families.items():
            parts.append(Part("parity", f"{name}, {dtype}", partial(compare_with_cpu, opener, device, dtype)))
    for dtype in ("float32", "bfloat16"):
        # The digest is part of the name, so that results for other recordings are not reused.
        name = f"{dtype}, {digest_recordings(recorded)}" if recorded else dtype
        parts.append(Part("recordings", name, partial(compare_with_recordings, recorded, device, dtype)))
    for name, opener in families.items():
        parts.append(Part("conformance", name, partial(check_conformance, opener, device)))
    for number in (1, 5):
        name = f"{number} question{'s' if number > 1 else ''} an image"
        parts.append(Part("labelling", name, partial(bench.measure_labelling, number)))
    for number in (1, 16, 64):
        parts.append(Part("adaptive", f"batches of {number}", partial(bench.measure_adaptive, number)))
    for kind in ("flex", "varlen"):
        for number in (1, 5):
            name = f"{kind}, {number} question{'s' if number > 1 else ''} an image"
            parts.append(Part("attention", name, partial(bench.compare_attention, kind, number)))
    return parts
