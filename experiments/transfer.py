"""Train on some tasks and test on others, with and without recalibration.

Compares three predictors on each target task: trained on the source tasks, prices included; the same with
prices, and the calibrator if there is one, fitted on a few samples of the target; and, as the reference,
trained on the target itself. Sources may be labels of another backbone. For targets that are other versions
of a source that is a target too (other words, corrupted images), it reports which choices change. Writes
`transfer.html`, `transfer.json`, `tables/` and a front of each target as PDF and SVG.

Examples:
    tokenscale transfer  # from `scenes` to `scenes_shifted` and `easy_vqa`
    tokenscale transfer sources=[textvqa,gqa] targets=docvqa backbone=m3_llava_7b  # two sources, one target
    tokenscale transfer 'targets=[scenes,scenes_noise]' native=false  # choices on noisy images
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import Provenance, entry_point, make_recorder

if TYPE_CHECKING:
    from experiments.results.transfer import TransferPlan


@entry_point("transfer")
def main(config: DictConfig) -> None:
    from experiments.evaluation.statistics import Bootstrap
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.transfer import PAGE, write_transfer
    from experiments.results.transfer import transfer
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import read_settings
    from experiments.training.trainer import quiet_lightning
    from m3_backbone.outcomes.manifest import read_manifest

    quiet_lightning()
    labels, output = Path(config.paths.all_labels), Path(HydraConfig.get().runtime.output_dir)
    plan = read_plan(config)
    needed = plan.list_needed(labels)
    for folder, (_, splits) in needed.items():
        check_labels(folder, splits, allow_small=config.allow_small)
    rows = transfer(
        partial(instantiate, config.predictor, _convert_="all"),
        plan,
        labels=labels,
        settings=read_settings(config),
        recorder=make_recorder(config),
        make_trainer=partial(instantiate, config.trainer),
        bootstrap=Bootstrap(config.num_resamples, config.confidence, config.seed),
    )
    banners = [
        banner
        for folder, (name, splits) in needed.items()
        for banner in find_label_banners(folder, splits, name)
    ]
    tables = write_transfer(
        rows,
        output,
        predictor=config.predictor.name,
        backbone=config.backbone.name,
        fingerprints={target: read_manifest(labels / target)["fingerprints"] for target in plan.targets},
        provenance=Provenance.of(config),
        banners=sorted(banners, key=lambda banner: not banner.is_loud),
        split=config.split,
    )
    if banners:
        print(f"{frame_banners(banners)}\n")
    print(*tables, sep="\n\n")
    print(f"\nreport: {output / PAGE}, beside transfer.json, tables/ and fronts as PDF and SVG")


def read_plan(config: DictConfig) -> "TransferPlan":
    """Return the plan of a configuration."""
    from experiments.reporting.transfer import list_tasks
    from experiments.results.transfer import TransferPlan, list_sources

    backbones = list_tasks(config.source_backbones)
    return TransferPlan(
        list_sources(list_tasks(config.sources), backbones, config.backbone.name),
        list_tasks(config.targets),
        config.num_recalibration,
        leave_one_out=config.leave_one_out,
        native=config.native,
        split=config.split,
        outcomes_of=config.outcomes_of,
        allow_small=config.allow_small,
    )


if __name__ == "__main__":
    main()
