"""Dense pre-training of a vision tower: every patch names what covers it.

M3 starts from CLIP's tower. A tower that starts from random weights hardly learns to see through a language
model's loss, so it first learns from dense labels, which a renderer knows and any segmentation gives.
"""

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from m3_backbone.optimization import configure_adamw


class PatchClassification(lightning.LightningModule):
    """Trains `tower` with one linear head per label of a patch.

    Args:
        tower: a CLIP vision model; its last hidden states without the class token feed the heads.
        heads: classes per label, in the order of the labels' last axis; class 0 is "does not apply".
        zero_weight: weight of class 0 in the loss. Most patches show ground; unweighted, they drown the rest.

    Batches are `(pixel_values [batch, 3, height, width], labels [batch, num_patches, num_heads])`.
    """

    def __init__(
        self,
        tower: CLIPVisionModel,
        heads: Mapping[str, int],
        zero_weight: float = 0.15,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        num_warmup_steps: int = 200,
    ) -> None:
        super().__init__()
        self.tower = tower
        hidden_size = tower.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, classes) for name, classes in heads.items()})
        self.zero_weight = zero_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_warmup_steps = num_warmup_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        pixel_values, labels = batch
        patches = self.tower(pixel_values).last_hidden_state[:, 1:]
        loss = patches.new_zeros(())
        for (name, head), label in zip(self.heads.items(), labels.unbind(-1), strict=True):
            logits = head(patches).float().flatten(0, 1)
            label = label.flatten()
            weight = torch.full((logits.shape[-1],), 1.0, device=logits.device)
            weight[0] = self.zero_weight
            loss = loss + functional.cross_entropy(logits, label, weight)
            with torch.no_grad():
                shown = label > 0
                right = (logits.argmax(-1) == label)[shown].float().mean()
                self.log(f"patch/{name}", right, prog_bar=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        return configure_adamw(
            self,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            num_warmup_steps=self.num_warmup_steps,
            num_steps=int(self.trainer.estimated_stepping_batches),
        )
