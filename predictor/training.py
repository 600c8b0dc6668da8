"""Training of an ensemble of networks with Lightning.

Checkpoints are written atomically and checked before training resumes.
"""

import io
import logging
import signal
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from m3_backbone.outcomes.labels import Inputs, Labels
from m3_backbone.outcomes.shards import write_atomically
from predictor.batches import Batch, BatchMaker, LabelsDataset, Target
from predictor.ensemble import Ensemble
from predictor.policy.front import policy_value

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that renames a temporary file in the same folder.

    Lightning moves the file from the system's folder of temporary files. If that is on another disk, the move
    is a copy, which may be left incomplete.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, lambda temporary: temporary.write_bytes(content.getbuffer()))


def find_whole(checkpoints: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that can be loaded; delete the others with a warning."""
    return [path for path in checkpoints if path.exists() and _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # checks every checksum, which `torch.load` does not
        if damaged is not None:
            raise ValueError(f"{damaged} has a wrong checksum")
        if "state_dict" not in torch.load(path, map_location="cpu", weights_only=True):
            raise ValueError("it contains no weights")
    except OSError:
        raise  # the error names the file, which may be whole
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("the checkpoint %s is damaged and is deleted: %s", path, reason)
        path.unlink(missing_ok=True)
        return False
    return True


MONITOR = "validation_value"


class ScaleModule(lightning.LightningModule):
    """Lightning module of an ensemble.

    After each epoch, `validation_value` is the `policy_value` of the averaged estimates on validation.
    """

    token_embeddings: Tensor

    def __init__(
        self,
        members: Ensemble,
        token_embeddings: Tensor,
        *,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.members = members
        self.register_buffer("token_embeddings", token_embeddings, persistent=False)
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends only on seed and step, so that a resumed run equals an uninterrupted one.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, item: tuple[Batch, Target], batch_idx: int) -> Tensor:
        batch, target = item
        losses = [member.compute_loss(batch, target, self.token_embeddings) for member in self.members]
        self.log("loss", losses[0], prog_bar=True, batch_size=len(batch.cost))
        # With the sum, each member gets the same gradient as in a separate training.
        return torch.stack(losses).sum()

    def validation_step(self, item: tuple[Batch, Target], batch_idx: int) -> None:
        batch, target = item
        estimates = self.members(batch, self.token_embeddings)
        self._validated.append((estimates, batch.cost, target.score))

    def on_validation_epoch_end(self) -> None:
        estimates, cost, score = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        value = policy_value(estimates.cpu().numpy(), cost.cpu().numpy(), score.cpu().numpy())
        self.log(MONITOR, value, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [parameter for parameter in self.members.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.members.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        schedule = make_schedule(optimizer, self.learning_rate, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LabelsDataModule(lightning.LightningDataModule):
    """Training batches in an order that depends on seed and epoch, validation batches in table order."""

    def __init__(
        self,
        train: Labels,
        validation: Labels,
        make_batches: Callable[[Inputs], BatchMaker],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train, self.validation = (LabelsDataset(part, make_batches) for part in (train, validation))
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        return self._make_loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._make_loader(self.validation, shuffle=False)

    def _make_loader(self, dataset: LabelsDataset, shuffle: bool) -> DataLoader:
        # The order of this sampler depends only on seed and epoch, so that a resumed run has the same batches
        # as an uninterrupted one.
        sampler: DistributedSampler = DistributedSampler(dataset, 1, 0, shuffle=shuffle, seed=self.seed)
        return DataLoader(dataset, self.batch_size, sampler=sampler, collate_fn=lambda batch: batch)


def fit_module(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    resume_from: Path | None,
) -> None:
    """Train `module`, starting from the checkpoint `resume_from` if given.

    Raises KeyboardInterrupt when interrupted, after Lightning has cleaned up. Lightning itself would exit the
    process.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        interrupt = KeyboardInterrupt()
        interrupt.add_note("The unfinished epoch is lost; training resumes from the previous epoch.")
        raise interrupt from error


def make_schedule(
    optimizer: torch.optim.Optimizer, learning_rate: float, num_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a one-cycle schedule (Smith and Topin 2018): the rate rises for a tenth of
    the steps, then falls.

    With ten steps or fewer, it starts near `learning_rate` and falls from the first step.
    """
    # A schedule of one step would only have the end of the cycle, with a rate near zero.
    num_steps = max(num_steps, 2)
    # PyTorch ends the rise at step `share * num_steps - 1`, and divides by this number.
    share = 0.1 if num_steps > 10 else 0.5 / num_steps
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=share
    )
