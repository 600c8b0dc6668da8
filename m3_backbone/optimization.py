"""AdamW, or Muon beside it, with warm-up and cosine decay, as every training of a backbone uses it."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import lightning
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import get_cosine_schedule_with_warmup


class SideBySide(Optimizer):
    """Several optimizers, each of its own parameters, as one: Lightning's automatic loop takes one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The very dicts of the parts, so that a schedule that changes these changes those.
        self.param_groups = list(chain.from_iterable(part.param_groups for part in self.parts))

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every part; the closure runs once, before the first of them."""
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


class CosineTraining(lightning.LightningModule):
    """A training whose trained parameters are those that require gradients.

    Biases, norms and other vectors are not decayed.

    Args:
        learning_rate: of AdamW, at the end of the warm-up.
        weight_decay: of matrices, under either optimizer.
        num_warmup_steps: steps over which the learning rates rise from 0.
        matrix_learning_rate: that of Muon (Jordan et al., 2024), scaled as Liu et al. (arXiv 2502.16982) do,
            which then trains the matrices of all linear layers but output layers; None: AdamW trains them
            too. From random weights Muon needs a fraction of the pictures. It takes no sharded parameters.
    """

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float,
        num_warmup_steps: int,
        matrix_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_warmup_steps = num_warmup_steps
        self.matrix_learning_rate = matrix_learning_rate

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer()
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.num_warmup_steps, num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self) -> Optimizer:
        """AdamW, or Muon and AdamW side by side."""
        matrices = [] if self.matrix_learning_rate is None else self._hidden_matrices()
        apart = {id(matrix) for matrix in matrices}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        if self.matrix_learning_rate is None:
            return adamw
        muon = Muon(
            matrices,
            lr=self.matrix_learning_rate,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return SideBySide(muon, adamw)

    def _hidden_matrices(self) -> list[Tensor]:
        return [
            module.weight
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and "head" not in name and module.weight.requires_grad
        ]
