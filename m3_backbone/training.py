"""M3 training: one model, every scale.

The loss is the mean over the scales of the usual causal loss on the answer tokens (Cai et al.,
arXiv 2405.17430, equation 2); the vision tower runs once, and its projected grid is pooled once per scale.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.conversations import Conversation, expand_images
from m3_backbone.modeling import M3Model
from m3_backbone.optimization import CosineTraining

# Rows are padded to multiples of this many tokens.
LENGTH_STEP = 48


class M3Training(CosineTraining):
    """Trains an M3 model on conversations about pictures.

    Batches are dicts: `pixel_values` and, for tiled models, `image_sizes`, as the processor makes them, and
    `conversation`, a list of `Conversation`. Precision, devices and DDP or FSDP are the Trainer's.

    Args:
        model: the model to train; parameters that do not require gradients stay frozen.
        pad_id: token id that fills short rows; it is masked.
        scale_groups: one scale is drawn from each group at every step; None: all at every step, as M3.
        learning_rate, weight_decay, num_warmup_steps, matrix_learning_rate: see `CosineTraining`.
        gradient_checkpointing: recompute activations in the backward pass, for less memory.
    """

    def __init__(
        self,
        model: M3Model,
        pad_id: int,
        scale_groups: Sequence[Sequence[int]] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        num_warmup_steps: int = 100,
        matrix_learning_rate: float | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(learning_rate, weight_decay, num_warmup_steps, matrix_learning_rate)
        self.model = model.train()  # it is loaded in evaluation mode
        self.pad_id = pad_id
        ladder = model.scale_ladder
        self.scale_groups = [[ladder.check(scale) for scale in group] for group in scale_groups or []]
        if gradient_checkpointing:
            model.activation_checkpointing_enable()

    def draw_scales(self) -> list[int]:
        """The scales of this step; a function of the step alone, so that all processes agree."""
        if not self.scale_groups:
            return list(self.model.scale_ladder)
        rng = random.Random(self.global_step)
        return [rng.choice(group) for group in self.scale_groups]

    def loss_at(
        self,
        tokens: Tensor,
        conversations: Sequence[Conversation],
        scale: int,
        image_sizes: Tensor | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the answer tokens, given the finest tokens of the images' tiles."""
        features = self.model.pool_images(tokens, scale, image_sizes)
        batch = expand_images(
            conversations,
            [len(image) for image in features],
            self.model.config.image_token_id,
            self.pad_id,
            multiple=LENGTH_STEP,
        )
        batch = {name: tensor.to(tokens.device) for name, tensor in batch.items()}
        if torch.is_autocast_enabled(tokens.device.type) and batch["attention_mask"].is_floating_point():
            # Else float32 masks would raise the whole of an eager attention to float32.
            batch["attention_mask"] = batch["attention_mask"].to(torch.get_autocast_dtype(tokens.device.type))
        outputs = self.model(
            **batch,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
        )
        return outputs.loss

    def loss(self, batch: dict[str, Any], scales: Sequence[int]) -> Tensor:
        """Mean over `scales` of the causal loss on a batch; the images are encoded once for all of them."""
        tokens = self.model.encode_images(batch["pixel_values"], batch.get("image_sizes"))
        return self.loss_of_tokens(tokens, batch, scales)

    def loss_of_tokens(self, tokens: Tensor, batch: dict[str, Any], scales: Sequence[int]) -> Tensor:
        """`loss`, given what `encode_images` made of the batch."""
        sizes = batch.get("image_sizes")
        losses = [self.loss_at(tokens, batch["conversation"], scale, sizes) for scale in scales]
        for scale, loss in zip(scales, losses, strict=True):
            self.log_if_training(f"loss/{scale}", loss)
        return sum(losses[1:], losses[0]) / len(losses)

    def log_if_training(self, name: str, value: Tensor) -> None:
        if self._trainer is not None and self._trainer.training:
            self.log(name, value.detach(), prog_bar=True, batch_size=1)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        return self.loss(batch, self.draw_scales())
