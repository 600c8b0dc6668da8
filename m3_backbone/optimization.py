"""AdamW with warm-up and cosine decay, as every training of a backbone uses it."""

import lightning
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup


class CosineTraining(lightning.LightningModule):
    """A training whose trained parameters are those that require gradients.

    Biases, norms and other vectors are not decayed.
    """

    def __init__(self, learning_rate: float, weight_decay: float, num_warmup_steps: int) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_warmup_steps = num_warmup_steps

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.num_warmup_steps, num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
