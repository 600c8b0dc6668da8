"""Time, memory and disk of labelling, from its work and the speed of a device."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from experiments.estimates.label_curve import describe_label_curve
from experiments.estimates.labelling import LabellingWork, Workload, measure_features, measure_rows
from experiments.estimates.throughput import (
    BANDWIDTH_SHARE,
    GPUS,
    LayerShape,
    count_cores,
    measure_layer,
)
from m3_backbone.costs import read_heads
from m3_backbone.model_backbone import ModelBackbone

Device = Literal["h200", "h100", "a100", "l40s", "rtx4090", "cpu"]
# Longest row that is measured on a CPU, and the most operations of one measured pass.
_MAX_LENGTH, _MAX_FLOPS = 512, 2e10


@dataclass(frozen=True)
class Step:
    """A part of the work: its operations, seconds of one device, and bytes of memory and disk.

    The seconds of reading images are processor time.
    """

    name: str
    flops: float = 0
    seconds: float = 0
    memory: float = 0
    disk: float = 0


@dataclass(frozen=True)
class Estimate:
    """The estimate of labelling: its steps, and what it assumes.

    `device_hours` are hours of one device, of one core for `cpu`; `wall_hours` those that pass. `memory` is
    that of the device, `training_memory` what `train` and `evaluate` need for the stored features.
    `label_curve` is a sentence on what predictors recovered with as many labelled images.
    """

    backbone: str
    task: str
    device: str
    num_devices: int
    dtype: str
    num_images: int
    num_samples: int
    steps: list[Step]
    device_hours: float
    wall_hours: float
    memory: float
    disk: float
    training_memory: float
    throughput: dict[str, float]
    assumptions: list[str]
    label_curve: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; hours, FLOPs, bytes."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """Operations per second of a device in three kinds of passes, and bytes per second of its memory.

    A pass takes at least as long as reading all weights; `bandwidth` is infinite where the measured
    operations include that.
    """

    vision: float
    prompts: float
    decoding: float
    bandwidth: float


def measure_cpu(backbone: ModelBackbone, work: LabellingWork) -> Speed:
    """Return the speed of one core, measured on layers of the shapes of the model."""
    config, dtype = backbone.checkpoint.config, backbone.torch_dtype
    decoder = LayerShape.of_decoder(config)
    length = max(1, min(round(work.row_length), _MAX_LENGTH))
    num_rows = min(work.largest_batch / length, _MAX_FLOPS / decoder.flops(length, length))
    tower = LayerShape.of_tower(config)
    num_images = min(backbone.image_batch_size, _MAX_FLOPS / tower.flops(_MAX_LENGTH // 4, _MAX_LENGTH // 4))
    rows_per_step = max(1, min(round(work.rows_per_step), 32))
    return Speed(
        vision=measure_layer(tower, max(1, int(num_images)), _MAX_LENGTH // 4, dtype),
        prompts=measure_layer(decoder, max(1, int(num_rows)), length, dtype),
        decoding=measure_layer(decoder, rows_per_step, 1, dtype),
        bandwidth=float("inf"),
    )


def look_up_gpu(name: str, dtype: torch.dtype, mfu: float) -> Speed:
    """Return the speed of a GPU of the table at a share `mfu` of its peak."""
    gpu = GPUS[name]
    peak = mfu * (gpu.single if dtype == torch.float32 else gpu.half)
    return Speed(peak, peak, peak, BANDWIDTH_SHARE * gpu.bandwidth)


def estimate_labelling(
    backbone: ModelBackbone,
    task: str,
    workload: Workload,
    work: LabellingWork,
    *,
    device: Device,
    num_devices: int,
    mfu: float,
    acceptance: float,
    feature_scales: tuple[int, ...],
    num_workers: int,
) -> Estimate:
    """Return the time, memory and disk of labelling."""
    dtype = backbone.torch_dtype
    num_weights = backbone.checkpoint.count_weights()
    weights = num_weights * dtype.itemsize
    speed = measure_cpu(backbone, work) if device == "cpu" else look_up_gpu(device, dtype, mfu)
    read_weights = weights / speed.bandwidth
    vision = work.vision / speed.vision
    prompts = max(work.prompts / speed.prompts, work.passes * read_weights)
    decoding = max(work.decoding / speed.decoding, work.steps * read_weights)
    reading = workload.num_images * workload.reading_seconds
    config = backbone.checkpoint.config
    text = config.get_text_config()
    batch = work.largest_batch * (
        sum(2 * heads * size for heads, size in read_heads(config)) * dtype.itemsize
        # States of one layer at a time: input, queries, keys, values, output, and the MLP.
        + (6 * text.hidden_size + 3 * text.intermediate_size) * dtype.itemsize
    )
    logits = 2 * 4 * work.largest_outputs * text.vocab_size
    memory = weights + batch + logits
    rows = measure_rows(backbone, workload) * workload.num_samples
    features = measure_features(backbone, workload, feature_scales) * workload.num_images
    embeddings = text.vocab_size * text.hidden_size * dtype.itemsize
    steps = [
        Step("checkpoint", memory=weights, disk=weights),
        Step("read images", seconds=reading),
        Step("vision passes", work.vision, vision),
        Step("questions and drafts", work.prompts, prompts, memory=batch + logits),
        Step("decoding", work.decoding, decoding),
        Step("outcomes", disk=rows),
        Step("features", disk=features + embeddings),
    ]
    on_device = vision + prompts + decoding
    if device == "cpu":
        device_seconds = on_device + reading
        wall = device_seconds / (count_cores() * num_devices)
    else:
        device_seconds = on_device
        # Images are read beside the device, and may be what it waits for.
        wall = max(on_device, reading / max(1, num_workers)) / num_devices
    return Estimate(
        backbone=backbone.name,
        task=task,
        device=device,
        num_devices=num_devices,
        dtype=str(dtype).removeprefix("torch."),
        num_images=workload.num_images,
        num_samples=workload.num_samples,
        steps=steps,
        device_hours=device_seconds / 3600,
        wall_hours=wall / 3600,
        memory=memory,
        disk=weights + rows + features + embeddings,
        training_memory=features + embeddings,
        throughput={name: value for name, value in asdict(speed).items() if value != float("inf")},
        assumptions=_list_assumptions(workload, device, num_devices, mfu, acceptance, num_workers),
        label_curve=describe_label_curve(workload.num_train_images),
    )


def _list_assumptions(
    workload: Workload, device: str, num_devices: int, mfu: float, acceptance: float, num_workers: int
) -> list[str]:
    sample = f"{len(workload.sampled):,} of {workload.num_images:,} images, evenly spaced"
    if workload.num_unreadable:
        sample += f" ({workload.num_unreadable} more could not be read)"
    speed = (
        "operations per second: measured on one core with layers of the model's shapes; hours are those of "
        f"processor time, and pass on {count_cores() * num_devices} cores that nothing else uses"
        if device == "cpu"
        else f"operations per second: {mfu:.0%} of the peak of {device} in its data sheet; passes and "
        "decoding steps that are too small for that read all weights at "
        f"{BANDWIDTH_SHARE:.0%} of its bandwidth"
    )
    reading = (
        "images are read by the same cores"
        if device == "cpu"
        else f"images are read by {num_workers} processes beside each device"
    )
    return [
        f"sizes, questions and references: {sample}",
        f"{acceptance:.0%} of the answers equal a reference or the answer at a finer scale; the others are "
        "as long as the reference",
        speed,
        f"{reading}; resizing images for the model, starting, loading weights and scoring are not counted",
        "`train` and `evaluate` read the features into memory; their time is not estimated",
    ]


def check_memory(estimate: Estimate) -> str | None:
    """Return a sentence if the model does not fit on one device; None if it does, or for a CPU."""
    gpu = GPUS.get(estimate.device)
    if gpu is None or estimate.memory <= gpu.memory:
        return None
    count = -(-estimate.memory // gpu.memory)
    return (
        f"needs {estimate.memory / 1e9:,.0f} GB and one {estimate.device} has {gpu.memory / 1e9:,.0f}: "
        f"give smaller batches with backbone.batch_size, or {count:.0f} devices to one process with "
        "++backbone.device_map=auto"
    )
