"""Answer questions several times, for the noise-free oracle or as soft targets.

An oracle that takes the best of noisy outcomes is optimistic. With several runs, the scale is chosen on all
runs but one and scored on that one (`experiments.evaluation.fronts`), also for tasks without a meaningful
likelihood. The scores are stored beside the labels, and later evaluations show the noise-free oracle. With
split=train, the means over the runs are soft targets for `tokenscale train labels.soft=true`. Running the
command again, also with more images, makes only what is missing.

Examples:
    tokenscale resample num_images=null num_runs=8  # all test images, eight answers to every question
    tokenscale resample split=train num_images=300  # soft targets: four answers to each training question
    tokenscale resample task=scienceqa backbone=m3_llava_7b variation=rotated  # options in another order
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import format_running_command, make_recorder, record_command


@entry_point("resample")
def main(config: DictConfig) -> None:
    from experiments.labels.resampled import ResampledFolder
    from experiments.labels.resampling import Variation, resample_answers
    from experiments.reporting.findings import describe_record
    from m3_backbone.outcomes.labels import read_labels
    from m3_backbone.outcomes.table import HELD_OUT

    labels, command, record = Path(config.paths.labels), format_running_command(), None
    if config.split == HELD_OUT:
        split_labels, record = make_recorder(config).open_test(labels)
    else:
        split_labels = read_labels(labels, config.split)
    table = split_labels.outcomes
    variation: Variation = instantiate(config.variation)
    folder = ResampledFolder(labels, table.fingerprints, variation.identity, command, config.split)
    resampled = resample_answers(
        instantiate(config.backbone, _convert_="all"),
        instantiate(config.task, _convert_="all"),
        table,
        folder,
        variation,
        split=config.split,
        num_images=config.num_images,
        num_runs=config.num_runs,
        images_per_batch=config.images_per_batch,
        num_workers=config.num_workers,
        overwrite=config.overwrite,
        engine=instantiate(config.engine, _convert_="all"),
        record=record_command(),
    )
    num_runs, num_questions, _ = resampled.score.shape
    means = ", ".join(
        f"{scale}: {100 * value:.1f}%"
        for scale, value in zip(table.scales, resampled.score.mean((0, 1)), strict=True)
    )
    print(f"{num_questions:,} questions, {num_runs} answers each; scores {means}")
    if record is not None:
        print(describe_record(record))
    print(folder.path)


if __name__ == "__main__":
    main()
