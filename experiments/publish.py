"""Save backbone and trained predictor as one model, to use or to upload.

Its operating point `guarantee` has a certified loss against the finest scale
(`experiments.evaluation.guarantee`).

Examples:
    tokenscale publish folder=my_model                  # the predictor of `tokenscale run`
    tokenscale publish folder=my_model repo=USER/NAME   # and upload it to the Hugging Face hub
    tokenscale publish folder=my_model guarantee.alpha=0.01  # certified to lose at most one point
"""

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("publish")
def main(config: DictConfig) -> None:
    from experiments.labels.division import find_label_banners
    from experiments.labels.hub import naming_upload
    from experiments.serving.adaptive import estimate_unseen, load_adaptive, state_bounds
    from experiments.tasks.sizes import frame_banners
    from m3_backbone.outcomes.labels import read_labels
    from predictor.adaptive.model import AdaptiveVLM

    backbone = instantiate(config.backbone, _convert_="all")
    model = load_adaptive(backbone, config)
    calibration = read_labels(config.paths.labels, "calibration")
    prices = state_bounds(
        model.prices,
        *estimate_unseen(model.predictor, calibration),
        alpha=config.guarantee.alpha,
        delta=config.guarantee.delta,
        most_questions=config.guarantee.most_questions,
    )
    model = AdaptiveVLM(backbone, model.predictor, prices, model.hybrid)
    model.save_pretrained(config.folder)
    if banners := find_label_banners(config.paths.labels, ("calibration",)):
        print(frame_banners(banners))
    print(f"model: {config.folder}\nuse:   AdaptiveVLM.from_pretrained({str(config.folder)!r})")
    if config.repo is not None:
        with naming_upload(config.folder, config.repo, "run the same command again"):
            address = model.push_to_hub(config.repo, private=config.private)
        print(f"on the hub: {address}")


if __name__ == "__main__":
    main()
