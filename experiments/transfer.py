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

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import Provenance, entry_point, make_recorder


@entry_point("transfer")
def main(config: DictConfig) -> None:
    from experiments.evaluation.statistics import Bootstrap
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.transfer import PAGE, list_tasks, write_transfer
    from experiments.results.transfer import TransferPlan, list_sources, transfer
    from experiments.tasks.base import SPLITS, Split
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import read_settings
    from experiments.training.trainer import quiet_lightning
    from m3_backbone.outcomes.manifest import read_manifest

    quiet_lightning()
    hydra = HydraConfig.get()
    labels, output = Path(config.paths.all_labels), Path(hydra.runtime.output_dir)
    targets = list_tasks(config.targets)
    sources = list_sources(
        list_tasks(config.sources), list_tasks(config.source_backbones), config.backbone.name
    )
    needed: dict[Path, tuple[str, tuple[Split, ...]]] = {
        source.find(labels): (source.name, ("train", "calibration")) for source in sources
    }
    evaluated: tuple[Split, ...] = ("calibration", "test")
    needed |= {
        labels / target: (target, SPLITS if config.native or labels / target in needed else evaluated)
        for target in targets
    }
    for folder, (_, splits) in needed.items():
        check_labels(folder, splits, allow_small=config.allow_small)
    rows = transfer(
        partial(instantiate, config.predictor, _convert_="all"),
        TransferPlan(
            sources,
            targets,
            config.num_recalibration,
            leave_one_out=config.leave_one_out,
            native=config.native,
            split=config.split,
            outcomes_of=config.outcomes_of,
            allow_small=config.allow_small,
        ),
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
        fingerprints={target: read_manifest(labels / target)["fingerprints"] for target in targets},
        provenance=Provenance.of(config),
        banners=sorted(banners, key=lambda banner: not banner.is_loud),
        split=config.split,
    )
    if banners:
        print(f"{frame_banners(banners)}\n")
    print(*tables, sep="\n\n")
    print(f"\nreport: {output / PAGE}, beside transfer.json, tables/ and fronts as PDF and SVG")


if __name__ == "__main__":
    main()
