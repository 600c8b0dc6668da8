"""Train on some tasks and test on others, with and without recalibration.

Compares three predictors on each target task: trained on the source tasks, prices included; the same with
prices, and the calibrator if there is one, fitted on a few samples of the target; and, as the reference,
trained on the target itself. Writes `transfer.html`, `transfer.json`, `tables/`
and a front of each target as PDF and SVG.

Examples:
    tokenscale transfer  # from `scenes` to `scenes_shifted` and `easy_vqa`
    tokenscale transfer sources=[textvqa,gqa] targets=docvqa backbone=m3_llava_7b  # two sources, one target
    tokenscale transfer predictor=mlp num_recalibration=50  # another predictor, fewer samples
"""

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import Provenance, entry_point


@entry_point("transfer")
def main(config: DictConfig) -> None:
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.transfer import PAGE, list_tasks, transfer, write_transfer
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import read_subset
    from experiments.training.trainer import quiet_lightning
    from m3_backbone.outcomes.manifest import read_manifest

    quiet_lightning()
    small, sources = config.allow_small, list_tasks(config.sources)
    hydra = HydraConfig.get()
    labels, output = Path(config.paths.all_labels), Path(hydra.runtime.output_dir)
    targets = list_tasks(config.targets)
    for task in dict.fromkeys([*sources, *targets]):
        check_labels(
            labels / task, SPLITS if task in targets else ("train", "calibration"), allow_small=small
        )
    provenance = Provenance.of(config)
    rows = transfer(
        partial(instantiate, config.predictor, _convert_="all"),
        sources=sources,
        targets=targets,
        labels=labels,
        num_recalibration=config.num_recalibration,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        subset=read_subset(config),
        make_trainer=partial(instantiate, config.trainer),
        calibrator=instantiate(config.get("calibrator")),
        records=Path(config.paths.evaluations),
        command=provenance.command,
        configuration=provenance.config,
        allow_unrecorded=config.allow_unrecorded,
        num_resamples=config.num_resamples,
        confidence=config.confidence,
        allow_small=small,
    )
    manifests = {target: read_manifest(labels / target) for target in targets}
    banners = [
        banner
        for task in dict.fromkeys([*targets, *sources])
        for banner in find_label_banners(
            labels / task, SPLITS if task in targets else ("train", "calibration"), task
        )
    ]
    table = write_transfer(
        rows,
        output,
        predictor=config.predictor.name,
        backbone=config.backbone.name,
        fingerprints={target: manifest["fingerprints"] for target, manifest in manifests.items()},
        provenance=provenance,
        banners=sorted(banners, key=lambda banner: not banner.is_loud),
    )
    if banners:
        print(f"{frame_banners(banners)}\n")
    print(f"{table}\n\nreport: {output / PAGE}, beside transfer.json, tables/ and fronts as PDF and SVG")


if __name__ == "__main__":
    main()
