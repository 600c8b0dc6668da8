"""Dense labels for a vision tower: every patch names what covers it.

M3 starts from CLIP's tower. A tower that starts from random weights hardly learns to see through a language
model's loss, so it first learns from dense labels, which a renderer knows and any segmentation gives, and
keeps learning from them beside the language model's loss.
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
        hidden_size: size of the patches' features.
        classes: number of classes per label, in the order of the labels' last axis; 0 is "does not apply".
        zero_weight: weight of class 0 in the loss. Most patches show ground; unweighted, they drown the rest.
    """

    def __init__(self, hidden_size: int, classes: Mapping[str, int], zero_weight: float = 0.15) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, count) for name, count in classes.items()})
        self.zero_weight = zero_weight

    def forward(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed cross-entropy of the labels, and per label the share got right where it applies.

        patches `[batch, num_patches, hidden_size]`, labels `[batch, num_patches, num_labels]`; batches may be
        without any picture that has labels (batch 0).
        """
        loss = patches.new_zeros(())
        right = {}
        for (name, head), label in zip(self.heads.items(), labels.unbind(-1), strict=True):
            logits, label = head(patches).float().flatten(0, 1), label.flatten()
            weight = torch.ones(logits.shape[-1], device=logits.device)
            weight[0] = self.zero_weight
            # As the weighted mean, but 0 and not nan where no picture has labels.
            total = functional.cross_entropy(logits, label, weight, reduction="sum")
            loss = loss + total / weight[label].sum().clamp(min=self.zero_weight)
            shown = label > 0
            right[name] = (logits.detach().argmax(-1) == label)[shown].float().mean()
        return loss, right

    def take_over(self, stored: Mapping[str, Tensor]) -> None:
        """Load a state dict; heads of labels that are other ones now start anew, and are named in the log."""
        own = self.state_dict()
        fitting = {
            name: tensor for name, tensor in stored.items() if name in own and own[name].shape == tensor.shape
        }
        if anew := sorted({name.split(".")[1] for name in own.keys() - fitting.keys()}):
            log.info("heads that start anew: %s", ", ".join(anew))
        self.load_state_dict({**own, **fitting})


class PatchClassification(CosineTraining):
    """Trains a CLIP vision tower on dense labels.

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
        loss, right = self.patch_heads(self.tower(pixel_values).last_hidden_state[:, 1:], labels)
        self.log_dict({f"patch/{name}": share for name, share in right.items()}, prog_bar=True)
        self.log("loss", loss, prog_bar=True)
        return loss


class SeeingM3Training(M3Training):
    """M3 training that keeps the dense loss beside the language model's.

    The heads read the projected tokens, so what the decoder gets holds, token by token and linearly, what the
    patches show; averages of it then do too. Batches also carry `patches [batch, num_patches, num_labels]`,
    -1 throughout on pictures without dense labels.
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
        labelled = labels[:, 0, 0] >= 0
        dense, right = self.patch_heads(tokens[labelled], labels[labelled])
        for name, share in right.items():
            self.log_if_training(f"patch/{name}", share)
        return loss + self.dense_weight * dense
