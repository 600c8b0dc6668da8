"""Export labels as a data set folder: Parquet and a data card.

The outcomes of the test split are part of it, so that their export is recorded as a description of the data.

Examples:
    tokenscale export labels=outputs/store/labels/tiny_m3/scenes folder=my_outcomes
    tokenscale export labels=FOLDER folder=my_outcomes matrices=true 'splits=[train, calibration]'
    tokenscale export task=scenes folder=my_outcomes images=true repo=USER/NAME  # with images, and uploaded
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import make_recorder


@entry_point("export")
def main(config: DictConfig) -> None:
    from experiments.labels.export import CARD, check_target, read_exported, write_outcomes
    from experiments.labels.hub import push_files
    from experiments.reporting.data_card import write_card

    folder, labels = (
        Path(config.folder),
        Path(config.paths.labels if config.labels is None else config.labels),
    )
    check_target(folder, config.overwrite)
    task = instantiate(config.task, _convert_="all") if config.images else None
    exported = read_exported(labels, list(config.splits), make_recorder(config))
    files = write_outcomes(exported, folder, matrices=config.matrices, images=task)
    write_card(exported, folder, licence=config.license, title=config.title, has_images=config.images)
    print(f"data set: {folder}")
    if config.repo is not None:
        address = push_files(folder, config.repo, [CARD, *files], private=config.private)
        print(f"on the hub: {address}")


if __name__ == "__main__":
    main()
