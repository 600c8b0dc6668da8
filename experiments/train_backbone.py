"""Train an embedded backbone from random weights.

Trains the vision tower on dense labels of `scenes`, then the whole model at all scales on `scenes` and the
train split of other tasks. Both resume from their last checkpoint after an interruption.

Examples:
    tokenscale train_backbone folder=outputs/backbone                              # as tiny_m3 was made
    tokenscale train_backbone folder=outputs/backbone max_minutes=30  # stops after 30 minutes; run again
    tokenscale train_backbone experiment=backbone_relations start_from=CHECKPOINT  # continues from it
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.next_commands import suggest_command


@entry_point("train_backbone")
def main(config: DictConfig) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from experiments.backbone.training import train_checkpoint

    checkpoint = train_checkpoint(config, Path(config.folder))
    rank_zero_only(print)(
        f"the trained backbone is in {checkpoint}\n"
        f"next: {suggest_command('run', ['backbone=local', f'backbone.checkpoint={checkpoint}'])}"
    )


if __name__ == "__main__":
    main()
