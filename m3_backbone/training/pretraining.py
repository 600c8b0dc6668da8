"""Pretraining of a vision tower on dense labels: the content of every patch.

M3 starts from CLIP's tower. A tower with random weights learns too little from the loss of a language model,
so it is first trained on dense labels, which come from a renderer or a segmentation, and later on both
losses.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from m3_backbone.training.training import CosineTraining, M3Training

log = logging.getLogger(__name__)


class PatchHeads(nn.Module):
    """One linear classifier per label of a patch.

    Args:
        hidden_size: size of the patch features.
        classes: number of classes per label, in the order of the labels' last axis; 0 is "does not apply".
        zero_weight: weight of class 0 in the loss, below 1 because most patches show background.
    """

    def __init__(self, hidden_size: int, classes: Mapping[str, int], zero_weight: float = 0.15) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, count) for name, count in classes.items()})
        self.zero_weight = zero_weight

    def forward(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy summed over labels, and each label's accuracy on patches of class > 0.

        `patches` are `[batch, num_patches, hidden_size]`, `labels` `[batch, num_patches, num_labels]`.
        `batch` may be 0 if no image has labels.
        """
        loss = patches.new_zeros(())
        accuracy = {}
        for (name, head), label in zip(self.heads.items(), labels.unbind(-1), strict=True):
            logits, label = head(patches).float().flatten(0, 1), label.flatten()
            weight = torch.ones(logits.shape[-1], device=logits.device)
            weight[0] = self.zero_weight
            # The weighted mean, but 0 and not nan if no image has labels.
            total = functional.cross_entropy(logits, label, weight, reduction="sum")
            loss = loss + total / weight[label].sum().clamp(min=self.zero_weight)
            applies = label > 0
            accuracy[name] = (logits.detach().argmax(-1) == label)[applies].float().mean()
        return loss, accuracy

    def take_over(self, stored: Mapping[str, Tensor]) -> None:
        """Load weights whose shapes fit. Other heads keep their initial weights and are logged."""
        initial = self.state_dict()
        fitting = {
            name: tensor
            for name, tensor in stored.items()
            if name in initial and initial[name].shape == tensor.shape
        }
        if not_loaded := sorted({name.split(".")[1] for name in initial.keys() - fitting.keys()}):
            log.info("heads that keep their initial weights: %s", ", ".join(not_loaded))
        self.load_state_dict({**initial, **fitting})


class PatchClassification(CosineTraining):
    """Training of a CLIP vision tower on dense labels.

    Batches are `(pixel_values [batch, 3, height, width], labels [batch, num_patches, num_labels])`.
    """

    def __init__(
        self,
        tower: CLIPVisionModel,
        classes: Mapping[str, int],
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        num_warmup_steps: int = 200,
        matrix_learning_rate: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, num_warmup_steps, matrix_learning_rate)
        self.tower = tower
        self.patch_heads = PatchHeads(tower.config.hidden_size, classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        pixel_values, labels = batch
        loss, accuracy = self.patch_heads(self.tower(pixel_values).last_hidden_state[:, 1:], labels)
        self.log_dict({f"patch/{name}": value for name, value in accuracy.items()}, prog_bar=True)
        self.log("loss", loss, prog_bar=True)
        return loss


class SeeingM3Training(M3Training):
    """M3 training with an additional loss on dense labels.

    The heads classify the projected tokens, so that each visual token linearly encodes the content of its
    patch; pooled tokens then do too. Batches also contain `patches` `[batch, num_patches, num_labels]`, which
    are -1 for images without dense labels.

    Args:
        args, kwargs: arguments of `M3Training`.
        classes: number of classes per label, as in `PatchHeads`.
        dense_weight: weight of the additional loss.
    """

    def __init__(
        self, *args: Any, classes: Mapping[str, int], dense_weight: float = 0.2, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.patch_heads = PatchHeads(self.model.config.get_text_config().hidden_size, classes)
        self.dense_weight = dense_weight

    def loss_of_tokens(self, tokens: Tensor, batch: dict[str, Any], scales: Sequence[int]) -> Tensor:
        loss = super().loss_of_tokens(tokens, batch, scales)
        labels = batch["patches"]
        if tokens.shape[1] != labels.shape[1]:
            return loss  # a smaller image has no label per patch
        labelled = labels[:, 0, 0] >= 0
        dense_loss, accuracy = self.patch_heads(tokens[labelled], labels[labelled])
        for name, value in accuracy.items():
            self.log_if_training(f"patch/{name}", value)
        return loss + self.dense_weight * dense_loss
