"""Compare finished runs: fronts side by side, seeds combined, differences with intervals.

`compare_runs` is the function behind the command: it reads `metrics.json` and `draws.safetensors` of
every run and writes `compare.html`, `front.pdf`, `front.svg` and `tables/`.

Examples:
    tokenscale compare runs=outputs/multirun/2026-11-24_12-00-00_run  # all runs below a folder
    tokenscale compare runs=[outputs/runs/A,outputs/runs/B]                          # two runs
    tokenscale compare runs=[outputs/runs/A,outputs/runs/B] paths.outputs=elsewhere  # results go elsewhere
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance


@entry_point("compare")
def main(config: DictConfig) -> None:
    from experiments.reporting.comparison import compare_runs

    hydra = HydraConfig.get()
    runs = config.runs
    compare_runs(
        [Path(runs)] if isinstance(runs, str) else [Path(str(run)) for run in runs],
        output=Path(hydra.runtime.output_dir),
        provenance=Provenance.of(config),
        print_tables=config.print_tables,
    )


if __name__ == "__main__":
    main()
