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

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import Provenance, entry_point


@entry_point("label_curve")
def main(config: DictConfig) -> None:
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.label_curve import PAGE, collect, write_label_curve
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import check_names
    from experiments.training.label_curve import (
        CurveTraining,
        count_validation,
        measure_curve,
        plan_subsets,
    )
    from m3_backbone.outcomes.manifest import read_manifest

    labels, output = Path(config.paths.labels), Path(HydraConfig.get().runtime.output_dir)
    check_labels(labels, ("train",), allow_small=config.allow_small)
    check_names([str(part.name) for part in config.predictors.values()])
    subsets = plan_subsets(
        labels,
        num_images=list(config.num_images),
        questions_per_image=list(config.questions_per_image),
        soft=list(config.soft),
        seeds=list(config.seeds),
        validation_fraction=config.validation_fraction,
    )
    trainings = []
    for seed in config.seeds:
        config.seed = seed  # predictors interpolate it
        trainings += [
            CurveTraining(
                instantiate(part, _convert_="all"),
                subset,
                seed,
                labels,
                Path(config.folder),
                config.validation_fraction,
                config.stopping_fraction,
                partial(instantiate, config.trainer),
            )
            for part in config.predictors.values()
            for subset in subsets
        ]
    measurements, failures = measure_curve(trainings, config.num_processes)
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
