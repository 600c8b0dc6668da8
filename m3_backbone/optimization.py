"""AdamW with warm-up and cosine decay, as every training here uses it."""

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup


def configure_adamw(
    module: nn.Module, *, learning_rate: float, weight_decay: float, num_warmup_steps: int, num_steps: int
) -> OptimizerLRSchedulerConfig:
    """Optimizer and per-step schedule in the form that Lightning takes.

    Biases, norms and other vectors are not decayed.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps, num_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
