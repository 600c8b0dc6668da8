"""Measure how much of the gap predictors recover with how many labelled images.

Trains each predictor on parts of the train split of a finished label folder, over several numbers of images,
numbers of questions and seeds, and measures the share of the gap from mix to budgeted oracle on images of the
train split that are not trained on. Calibration and test split are not read. Fits a power law to each curve
and writes `label_curve.html`, `label_curve.json`, `tables/`, `measurements.csv` and the figure. A repeated
command trains only what is missing.

Examples:
    tokenscale label_curve  # four predictors on `scenes`, five numbers of images, three seeds
    tokenscale label_curve questions_per_image=[2,null] num_processes=4  # fewer questions an image too
    tokenscale label_curve soft=[false,true]  # means of sampled answers against greedy outcomes
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance


@entry_point("label_curve")
def main(config: DictConfig) -> None:
    from experiments.evaluation.label_curve import collect
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.label_curve import PAGE, write_label_curve
    from experiments.tasks.sizes import frame_banners
    from experiments.training.label_curve import count_validation, make_trainings, measure_curve
    from m3_backbone.outcomes.manifest import read_manifest

    labels, output = Path(config.paths.labels), Path(HydraConfig.get().runtime.output_dir)
    check_labels(labels, ("train",), allow_small=config.allow_small)
    measurements, failures = measure_curve(make_trainings(config, labels), config.num_processes)
    banners = find_label_banners(labels, ("train",))
    manifest = read_manifest(labels)
    curve = collect(
        measurements,
        task=manifest["task"],
        backbone=manifest["backbone"],
        confidence=config.confidence,
        num_validation_images=count_validation(labels, config.validation_fraction),
    )
    text = write_label_curve(curve, output, failures, provenance=Provenance.of(config), banners=banners)
    print("\n\n".join(filter(None, [text, frame_banners(banners) if banners else ""])))
    print(f"\nreport: {output.resolve() / PAGE}, beside label_curve.json, measurements.csv and tables/")


if __name__ == "__main__":
    main()
