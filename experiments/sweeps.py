"""What happens when a sweep ends (`-m`): its runs are laid side by side, by the command of that name."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class ComparisonReport(Callback):
    """Writes `compare.html` into the folder of a sweep whose jobs were evaluated; see `experiments.compare`.

    A sweep of anything else has no metrics, and one over tasks or backbones nothing to compare: both are
    left as they are, the second with its reason.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not any(folder.glob("*/metrics.json")):
            return
        # Hydra makes this object at the start of every command: what draws is imported only where it is due.
        from experiments.compare import compare_runs
        from experiments.config import format_command
        from experiments.reporting.page import Provenance

        provenance = Provenance(
            command=format_command("compare", [f"runs={folder}"]),
            config=OmegaConf.to_yaml(config.hydra.overrides),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
        try:
            compare_runs([folder], output=folder, provenance=provenance)
        except ValueError as error:
            log.warning("the runs of this sweep are not laid side by side: %s", error)
