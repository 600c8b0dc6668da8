"""Import outcomes made elsewhere: labels from a CSV or Parquet file.

`experiments.labels.importing.import_outcomes` is the function behind the command. It needs no backbone.

Examples:
    tokenscale import_outcomes file=mine.csv task.name=mine  # columns question, NAME.score, NAME.cost, ...
    tokenscale import_outcomes file=mine.parquet columns.question=prompt columns.category=domain
    tokenscale import_outcomes file=two.csv 'options={s: {score: s, cost: 1}, l: {score: l, cost: 25}}'
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.command_line.entry_point import entry_point
from experiments.command_line.next_commands import suggest_command
from experiments.command_line.running import format_given_command


@entry_point("import_outcomes")
def main(config: DictConfig) -> None:
    from experiments.labels.division import find_label_banners
    from experiments.labels.importing import describe_options, import_outcomes
    from experiments.tasks.base import SPLITS
    from experiments.tasks.outcome_file import OutcomeFile
    from experiments.tasks.sizes import check_task, frame_banners

    names = (
        "file",
        "options",
        "columns",
        "images",
        "cost_name",
        "cost_unit",
        "fractions",
        "seed",
        "declared",
    )
    content: Any = OmegaConf.to_container(config, resolve=True)
    file = OutcomeFile(name=config.task.name, **{name: content[name] for name in names})
    check_task(file, dict.fromkeys(SPLITS), allow_small=config.allow_small)
    summary = import_outcomes(
        file, config.paths.labels, overwrite=config.overwrite, command=format_given_command()
    )
    print(f"{summary}\n{describe_options(file)}\nlabels: {summary.folder}")
    if banners := find_label_banners(summary.folder, SPLITS):
        print(frame_banners(banners))
    given = [text for text in HydraConfig.get().overrides.task if text.startswith(("task.", "paths."))]
    print(f"next: {suggest_command('run', ['experiment=imported', *given])}")


if __name__ == "__main__":
    main()
