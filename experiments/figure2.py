"""Reproduce Figure 2 of the M3 paper with a backbone trained from random weights.

Cai et al. (arXiv 2405.17430) compare one nested model with one model per scale and with pooling that a model
was never trained for, and, in an ablation, average pooling with spatial and sequential sampling. Here every
variant starts from the same model, trained at the finest scale only, as M3 starts from LLaVA. All variants
see the same images in the same order, one stream of images per seed.

Examples:
    tokenscale figure2                                  # three seeds
    tokenscale figure2 seeds=[0]                        # one seed
    tokenscale figure2 seeds=[0,1,2,3] num_images=null  # one more seed, all test images
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import make_recorder


@entry_point("figure2")
def main(config: DictConfig) -> None:
    from experiments.backbone.variants import make_start, report, train_variant
    from experiments.evaluation.variants import list_variants
    from m3_backbone.llava.pooling import grid_scales

    folder, seeds = Path(config.folder), list(config.seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds}: give each seed once, as it stands for one training")
    variants = list_variants(
        grid_scales(config.image.image_size // config.image.patch_size), config.model.scale_groups
    )
    recorder = make_recorder(config, OmegaConf.to_yaml(config))
    start = make_start(config, folder / "start", finest=variants[0].scales[-1])
    for number, seed in enumerate(seeds):
        for variant in variants:
            train_variant(config, variant, seed, start, folder / variant.name / str(seed))
        report(config, variants, seeds[: number + 1], folder, recorder)


if __name__ == "__main__":
    main()
