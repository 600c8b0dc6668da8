"""Estimate the time, memory and disk of labelling, before anything runs.

Counts the operations of labelling from the cost model of the backbone, the questions of the task and the
sizes of some of its images. Nothing is answered and no weights are read: of a checkpoint on the hub, only the
configuration and the tokenizer are fetched. On a CPU, layers of the model's shapes are timed for a few
seconds; GPUs are known from their data sheets. The estimate is also written to `estimate.json`.

Examples:
    tokenscale estimate                                                    # tiny_m3 on `scenes`, here
    tokenscale estimate backbone=random_llava device=h100 num_devices=8    # shapes of LLaVA-1.5-7B
    tokenscale estimate backbone=m3_llava_next_7b task=textvqa device=a100 mfu=0.3  # a published model
"""

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("estimate")
def main(config: DictConfig) -> None:
    from experiments.estimates.labelling import count_labelling, read_workload
    from experiments.estimates.steps import estimate_labelling
    from experiments.labels.labelling import choose_feature_scales
    from experiments.reporting.estimate import format_estimate
    from m3_backbone.outcomes.shards import write_text

    backbone = instantiate(config.backbone, _convert_="all")
    task = instantiate(config.task, _convert_="all")
    workload = read_workload(task, config.limit, config.num_images)
    estimate = estimate_labelling(
        backbone,
        task.name,
        workload,
        count_labelling(
            backbone, workload, images_per_batch=config.images_per_batch, acceptance=config.acceptance
        ),
        device=config.device,
        num_devices=config.num_devices,
        mfu=config.mfu,
        acceptance=config.acceptance,
        feature_scales=choose_feature_scales(config.feature_scales, backbone),
        num_workers=config.num_workers,
    )
    path = Path(HydraConfig.get().runtime.output_dir) / "estimate.json"
    write_text(path, json.dumps(estimate.to_json(), indent=2) + "\n")
    print(f"{format_estimate(estimate)}\n{path}")


if __name__ == "__main__":
    main()
