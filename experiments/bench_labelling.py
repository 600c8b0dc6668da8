"""Time labelling at all scales against plain `generate`.

Times the labelling engine on the images and questions of a task, and in the same run plain `generate`:
(a) one call per question and scale, each encoding its image, as in published evaluations; (b) the same in
batches; (c) the engine at the finest scale only. The last line is the table as one JSON object.

Examples:
    tokenscale bench_labelling                                      # 48 images
    tokenscale bench_labelling num_images=8 num_naive=16 repeats=1  # a short one
    tokenscale bench_labelling backbone=m3_llava_7b task=textvqa    # published weights
"""

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("bench_labelling")
def main(config: DictConfig) -> None:
    from experiments.bench.labelling import measure, read_pictures, report
    from m3_backbone.model_backbone import ModelBackbone

    backbone: ModelBackbone = instantiate(config.backbone, _convert_="all")
    task = instantiate(config.task, _convert_="all")
    pictures = read_pictures(task, config.split, config.num_images, config.questions_per_image)
    report(measure(backbone, pictures, num_naive=config.num_naive, repeats=config.repeats))


if __name__ == "__main__":
    main()
