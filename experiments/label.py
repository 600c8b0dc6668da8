"""Label a task: the backbone answers every question at every scale.

`experiments.labels.labelling.label` is the plain function behind the command; it does only what is missing.

Examples:
    tokenscale label                                                     # the embedded backbone on `scenes`
    tokenscale label limit.train=200 limit.calibration=50 limit.test=50  # fewer images
    tokenscale label task=textvqa backbone=m3_llava_7b shard=0/8  # one of eight parts, on a machine each
"""

from functools import partial

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point, format_command, format_given_command


@entry_point("label")
def main(config: DictConfig) -> None:
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.labels.labelling import label
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import check_task, frame_banners

    hydra = HydraConfig.get()
    is_alone = hydra.job.name == "label"  # not as the first step of `run`, which uses every split
    choices = list(hydra.overrides.task)
    summary = label(
        task=instantiate(config.task, _convert_="all"),
        backbone=instantiate(config.backbone, _convert_="all"),
        folder=config.paths.labels,
        limit=config.limit,
        feature_scales=config.feature_scales,
        shard_size=config.shard_size,
        images_per_batch=config.images_per_batch,
        num_workers=config.num_workers,
        overwrite=config.overwrite,
        engine=instantiate(config.engine, _convert_="all"),
        shard=config.shard,
        command=format_given_command(),
        check=partial(check_task, needed=None if is_alone else SPLITS, allow_small=config.allow_small),
    )
    print(f"{summary}\nlabels: {summary.folder}")
    if not is_alone:
        check_labels(summary.folder, SPLITS, allow_small=config.allow_small)
    elif not summary.num_missing:
        if banners := find_label_banners(summary.folder, SPLITS):
            print(frame_banners(banners))
        shared = [
            choice for choice in choices if choice.lstrip("+~").startswith(("task", "backbone", "paths"))
        ]
        print(f"next:   {format_command('train', shared)}")


if __name__ == "__main__":
    main()
