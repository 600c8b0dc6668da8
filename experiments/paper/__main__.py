"""Make most tables and figures of the results from a committed list of commands.

The results are those of docs/results.md. Runs the commands of `conf/paper` one after another, each in a
process of its own, with labels and predictors in one folder. Commands that are done are not run again. Ends
with `index.html`, the tables as LaTeX and CSV in `tables/`, and the figures as PDF in `figures/`.

Examples:
    tokenscale paper                       # the results on the embedded backbones
    tokenscale paper paper=short           # the same steps with few images and resamples, for a look
    tokenscale paper steps=[main,noise]    # two of the steps
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance


@entry_point("paper")
def main(config: DictConfig) -> None:
    from experiments.paper.running import run_steps
    from experiments.paper.steps import read_steps, select_steps
    from experiments.reporting.paper import format_states, write_paper

    entries: Any = OmegaConf.to_container(config.list_of_steps, resolve=True)
    steps = read_steps(entries)
    chosen = select_steps(steps, config.steps)
    folder = Path(config.folder)
    states = run_steps(
        chosen,
        folder,
        all_steps=steps,
        settings=list(config.settings),
        evaluations=Path(config.paths.evaluations),
    )
    page = write_paper(folder, steps, states, Provenance.of(config))
    print(format_states(states, folder))
    print(f"\npaper: {page.resolve()}")
    if any(state.status == "failed" for state in states.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
