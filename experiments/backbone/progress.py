"""Log lines of a long training, and the time limit that ends it."""

import logging
import math
import time
from typing import Any

import lightning

log = logging.getLogger(__name__)

_STARTED = time.monotonic()


class ProgressLines(lightning.Callback):
    """Logs steps, pictures per second and exponential means of the metrics, every `every_n_steps` steps.

    Args:
        decay: weight of the previous mean at each step; a metric that a step does not log keeps its mean.
    """

    def __init__(self, every_n_steps: int = 100, decay: float = 0.97) -> None:
        self.every_n_steps, self.decay = every_n_steps, decay
        self.means: dict[str, float] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.since, self.num_pictures = time.perf_counter(), 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        index: int,
    ) -> None:
        pixels = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
        self.num_pictures += len(pixels) * trainer.world_size
        for name, value in trainer.callback_metrics.items():
            # A metric of an empty set (no patch with a glyph in this batch) is NaN.
            if not math.isnan(latest := float(value)):
                self.means[name] = self.decay * self.means.get(name, latest) + (1 - self.decay) * latest
        if trainer.global_step % self.every_n_steps == 0:
            rate = self.num_pictures / (time.perf_counter() - self.since)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in self.means.items())
            log.info(
                "step %d of %d  %.1f pictures/s  %s", trainer.global_step, self._total(trainer), rate, shown
            )
            self.since, self.num_pictures = time.perf_counter(), 0

    def _total(self, trainer: lightning.Trainer) -> int:
        return int(trainer.estimated_stepping_batches)


class Deadline(lightning.Callback):
    """Stops a training at the end of the first epoch after `max_minutes`, from where it can be resumed.

    Every training runs at least one epoch.

    Args:
        max_minutes: minutes since the start of the process; None means never.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.max_minutes is not None:
            is_over = time.monotonic() - _STARTED >= 60 * self.max_minutes
            # All processes have to agree, or they would wait for each other.
            trainer.should_stop = trainer.strategy.broadcast(is_over)
