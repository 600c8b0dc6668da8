"""Train an embedded backbone from nothing: `python -m experiments.train_backbone`.

First the vision tower alone on dense labels of `scenes`, then the whole model over all scales on `scenes`
and the train part of other tasks. Either goes on from its last checkpoint after a kill.
"""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from experiments.backbone.training import train_checkpoint
from experiments.config import entry_point


@entry_point("train_backbone")
def main(config: DictConfig) -> None:
    checkpoint = train_checkpoint(config, Path(config.folder))
    rank_zero_only(print)(
        f"the trained backbone is in {checkpoint}\n"
        f"next: python -m experiments.run backbone=local backbone.checkpoint={checkpoint}"
    )


if __name__ == "__main__":
    main()
