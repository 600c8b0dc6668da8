"""Label a task: the backbone answers every question at every scale.

Labels are written to `paths.labels`. Repeating the command answers only what is missing. In Python:
`experiments.labels.labelling.label`.

Examples:
    tokenscale label                                                     # the embedded backbone on `scenes`
    tokenscale label limit.train=200 limit.calibration=50 limit.test=50  # fewer images
    tokenscale label task=textvqa backbone=m3_llava_7b shard=0/8       # the first of eight parts
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.next_commands import format_next
from experiments.command_line.running import format_given_command, is_one_after_another, record_command


@entry_point("label")
def main(config: DictConfig) -> None:
    from experiments.labels.configured import label_configured
    from experiments.labels.division import find_label_banners
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import frame_banners

    summary = label_configured(
        config,
        command=format_given_command(),
        make_record=record_command,
        is_one_after_another=is_one_after_another(),
    )
    print(f"{summary}\nlabels: {summary.folder}")
    if not summary.num_missing:
        if banners := find_label_banners(summary.folder, SPLITS):
            print(frame_banners(banners))
        print(format_next("train"))


if __name__ == "__main__":
    main()
