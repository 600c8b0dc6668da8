"""Finished runs side by side: `python -m experiments.compare runs=[FOLDER,...]`, or a folder of runs.

`compare_runs` is the plain function behind the command: it reads every run's `metrics.json` and
`draws.safetensors` and writes `compare.html`, `front.pdf`, `front.svg` and `tables/`.
"""

from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.config import entry_point, format_command
from experiments.reporting.comparison import compare_runs
from experiments.reporting.page import Provenance


@entry_point("compare")
def main(config: DictConfig) -> None:
    hydra = HydraConfig.get()
    runs = config.runs
    compare_runs(
        [Path(runs)] if isinstance(runs, str) else [Path(str(run)) for run in runs],
        output=Path(hydra.runtime.output_dir),
        provenance=Provenance(
            command=format_command(str(hydra.job.config_name), list(hydra.overrides.task)),
            config=OmegaConf.to_yaml(config, resolve=True),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        ),
    )


if __name__ == "__main__":
    main()
