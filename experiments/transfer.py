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

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance, make_recorder


@entry_point("transfer")
def main(config: DictConfig) -> None:
    from experiments.reporting.transfer import PAGE, write_transfer
    from experiments.results.configured import transfer_configured
    from experiments.tasks.sizes import frame_banners
    from m3_backbone.outcomes.manifest import read_manifest

    output, labels = Path(HydraConfig.get().runtime.output_dir), Path(config.paths.all_labels)
    rows, banners = transfer_configured(config, make_recorder(config))
    tables = write_transfer(
        rows,
        output,
        predictor=config.predictor.name,
        backbone=config.backbone.name,
        fingerprints={row.target: read_manifest(labels / row.target)["fingerprints"] for row in rows},
        provenance=Provenance.of(config),
        banners=banners,
        split=config.split,
    )
    if banners:
        print(f"{frame_banners(banners)}\n")
    print(*tables, sep="\n\n")
    print(f"\nreport: {output / PAGE}, beside transfer.json, tables/ and fronts as PDF and SVG")


if __name__ == "__main__":
    main()
