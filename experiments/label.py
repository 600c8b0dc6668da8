"""Label a task: the backbone answers every question at every scale.

Labels are written to `paths.labels`. Repeating the command answers only what is missing. In Python:
`experiments.labels.labelling.label`.

Examples:
    tokenscale label                                                     # the embedded backbone on `scenes`
    tokenscale label limit.train=200 limit.calibration=50 limit.test=50  # fewer images
    tokenscale label task=textvqa backbone=m3_llava_7b shard=0/8       # the first of eight parts
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point, format_given_command, is_one_after_another, record_command
from experiments.next_commands import format_next

if TYPE_CHECKING:
    from experiments.labels.label_summary import LabelSummary
    from experiments.tasks.base import Split


@entry_point("label")
def main(config: DictConfig) -> None:
    from experiments.labels.division import find_label_banners
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import frame_banners

    summary = label_configured(config)
    print(f"{summary}\nlabels: {summary.folder}")
    if not summary.num_missing:
        if banners := find_label_banners(summary.folder, SPLITS):
            print(frame_banners(banners))
        print(format_next("train"))


def label_configured(config: DictConfig, needed: "Sequence[Split] | None" = None) -> "LabelSummary":
    """Label the samples of a task that have no labels yet; returns a summary.

    `needed` are the splits that need enough images for later steps; None means those that are labelled.
    """
    from experiments.labels.devices import take_devices
    from experiments.labels.division import check_labels
    from experiments.labels.engines import LocalEngine
    from experiments.labels.folder import KeptInputs
    from experiments.labels.labelling import ShardSubset, label
    from experiments.tasks.sizes import check_task

    engine = instantiate(config.engine, _convert_="all")
    if isinstance(engine, LocalEngine) and engine.share_gpus and not is_one_after_another():
        subset = ShardSubset.parse(config.shard)
        take_devices((subset.index, subset.count))
    summary = label(
        task=instantiate(config.task, _convert_="all"),
        backbone=instantiate(config.backbone, _convert_="all"),
        folder=config.paths.labels,
        limit=config.limit,
        kept=KeptInputs(
            None if config.feature_scales is None else tuple(config.feature_scales),
            config.decoder_state,
            config.thumbnail_size,
            config.self_asking_prompt if config.self_asking else None,
        ),
        shard_size=config.shard_size,
        images_per_batch=config.images_per_batch,
        num_workers=config.num_workers,
        overwrite=config.overwrite,
        engine=engine,
        shard=config.shard,
        command=format_given_command(),
        record=record_command(),
        check=partial(check_task, needed=needed, allow_small=config.allow_small),
    )
    if needed is not None:
        check_labels(summary.folder, needed, allow_small=config.allow_small)
    return summary


if __name__ == "__main__":
    main()
