"""The labelling of a configuration."""

from collections.abc import Callable, Sequence
from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.labels.devices import take_devices
from experiments.labels.division import check_labels
from experiments.labels.engines import LocalEngine
from experiments.labels.folder import KeptInputs
from experiments.labels.label_summary import LabelSummary
from experiments.labels.labelling import ShardSubset, label
from experiments.labels.records import WorkRecord
from experiments.tasks.base import Split
from experiments.tasks.sizes import check_task


def label_configured(
    config: DictConfig,
    *,
    command: str,
    make_record: Callable[[], WorkRecord],
    is_one_after_another: bool,
    needed: Sequence[Split] | None = None,
) -> LabelSummary:
    """Label the samples of a task that have no labels yet; return a summary.

    `command` resumes the running command. `make_record` describes it, after its devices are chosen. Jobs that
    run one after another all get the same devices. `needed` are the splits that need enough images for later
    steps; None means those that are labelled.
    """
    engine = instantiate(config.engine, _convert_="all")
    if isinstance(engine, LocalEngine) and engine.share_gpus and not is_one_after_another:
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
        command=command,
        record=make_record(),
        check=partial(check_task, needed=needed, allow_small=config.allow_small),
    )
    if needed is not None:
        check_labels(summary.folder, needed, allow_small=config.allow_small)
    return summary
