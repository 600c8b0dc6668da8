"""Progress lines of a training, for log files."""

import logging
import time
from typing import Any

import lightning

from experiments.labels.progress import SECONDS_BETWEEN_LINES

log = logging.getLogger(__name__)


class EpochLines(lightning.Callback):
    """Logs the epoch and the latest logged metrics, at most every 30 seconds."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._last_line = time.monotonic()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or time.monotonic() < self._last_line + SECONDS_BETWEEN_LINES:
            return
        self._last_line = time.monotonic()
        values: dict[str, Any] = dict(trainer.callback_metrics)
        shown = ", ".join(f"{name} {float(value):.3f}" for name, value in values.items())
        log.info("epoch %d of at most %d: %s", trainer.current_epoch + 1, trainer.max_epochs or 0, shown)
