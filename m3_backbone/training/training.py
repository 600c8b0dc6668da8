"""Training of M3 with Lightning: one model for all scales.

The optimizer is AdamW, or Muon and AdamW, with warm-up and cosine decay. The loss is the mean over the scales
of the causal loss on the answer tokens (Cai et al., arXiv 2405.17430, equation 2). The vision tower runs
once, and its projected grid is pooled once per scale; or, for a backbone with another resolution per scale,
it runs once per scale on a smaller image.
"""

import random
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import AdamW, Muon, Optimizer
from transformers import get_cosine_schedule_with_warmup
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3_backbone.backbone import check_scale
from m3_backbone.llava.modeling import M3Model
from m3_backbone.llava.pooling import pooled_side
from m3_backbone.training.conversations import Conversation, expand_images


class SideBySide(Optimizer):
    """Several optimizers with separate parameters as one, for Lightning's automatic optimization."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The dicts are shared with the parts, so that a schedule changes both.
        self.param_groups = list(chain.from_iterable(part.param_groups for part in self.parts))

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of every part. The closure runs once, before the first part."""
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
    """Base of trainings with warm-up and cosine decay. Parameters that require gradients are trained.

    Weight decay does not apply to biases, norms and other vectors.

    Args:
        learning_rate: learning rate of AdamW at the end of the warm-up.
        weight_decay: weight decay of matrices, with either optimizer.
        num_warmup_steps: number of steps in which the learning rates rise from 0.
        matrix_learning_rate: learning rate of Muon (Jordan et al., 2024) with the scaling of Liu et al.
            (arXiv 2502.16982). Muon trains the matrices of all linear layers except output layers; with None,
            AdamW trains them too. From random weights, Muon needs a fraction of the images. It does not
            support sharded parameters.
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
        """Build AdamW, or Muon for hidden matrices and AdamW for all other parameters."""
        matrices = [] if self.matrix_learning_rate is None else self._hidden_matrices()
        matrix_ids = {id(matrix) for matrix in matrices}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in matrix_ids]
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


# Rows are padded to multiples of this many tokens.
LENGTH_STEP = 48


class M3Training(CosineTraining):
    """Training of an M3 model on conversations about images.

    Batches are dicts: `pixel_values` and, for tiled models, `image_sizes` from the processor, and
    `conversation`, a list of `Conversation`. Precision, devices and DDP or FSDP are settings of the Trainer.

    Args:
        model: the model to train; parameters that do not require gradients stay frozen.
        pad_id: token id of the padding, which is masked.
        scale_groups: one scale of each group is chosen at random at every step. None: every step uses all
            scales, as in M3.
        resize_images: shrink the images to the grid of the scale instead of pooling (see
            `m3_backbone.llava.downsampled`).
        learning_rate, weight_decay, num_warmup_steps, matrix_learning_rate: see `CosineTraining`.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    def __init__(
        self,
        model: M3Model,
        pad_id: int,
        scale_groups: Sequence[Sequence[int]] | None = None,
        resize_images: bool = False,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        num_warmup_steps: int = 100,
        matrix_learning_rate: float | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(learning_rate, weight_decay, num_warmup_steps, matrix_learning_rate)
        self.model = model.train()  # models are loaded in evaluation mode
        self.pad_id = pad_id
        self.resize_images = resize_images
        self.scale_groups = [
            [check_scale(scale, model.scales) for scale in group] for group in scale_groups or []
        ]
        if gradient_checkpointing:
            # The new name is transformers 5.23's; there, the old one warns.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()

    def draw_scales(self) -> list[int]:
        """Choose the scales of this step. They depend only on the step, so that all processes agree."""
        if not self.scale_groups:
            return list(self.model.scales)
        rng = random.Random(self.global_step)
        return [rng.choice(group) for group in self.scale_groups]

    def loss_at(
        self,
        tokens: Tensor,
        conversations: Sequence[Conversation],
        scale: int,
        image_sizes: Tensor | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the answer tokens at one scale.

        `tokens` `[num_tiles, grid * grid, hidden]` come from `encode_images`, or with `resize_images`
        `[num_images, scale, hidden]` from `encode_shrunk`.
        """
        features: Any
        features = list(tokens) if self.resize_images else self.model.pool_images(tokens, scale, image_sizes)
        batch = expand_images(
            conversations,
            [len(image) for image in features],
            self.model.config.image_token_id,
            self.pad_id,
            multiple=LENGTH_STEP,
        )
        batch = {name: tensor.to(tokens.device) for name, tensor in batch.items()}
        if torch.is_autocast_enabled(tokens.device.type) and batch["attention_mask"].is_floating_point():
            # A float32 mask would make eager attention compute in float32.
            batch["attention_mask"] = batch["attention_mask"].to(torch.get_autocast_dtype(tokens.device.type))
        outputs = self.model(
            **batch,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
        )
        return outputs.loss

    def loss(self, batch: dict[str, Any], scales: Sequence[int]) -> Tensor:
        """Mean over `scales` of the causal loss on a batch. Pooled images are encoded once for all scales."""
        if self.resize_images:
            losses = [self.loss_of_tokens(self.encode_at(batch, scale), batch, [scale]) for scale in scales]
            return sum(losses[1:], losses[0]) / len(losses)
        tokens = self.model.encode_images(batch["pixel_values"], batch.get("image_sizes"))
        return self.loss_of_tokens(tokens, batch, scales)

    def encode_at(self, batch: dict[str, Any], scale: int) -> Tensor:
        """Tokens `[num_images, scale, hidden]` of images that are shrunk to the grid of a scale.

        Shrinking normalised pixels differs from shrinking the image, as `DownsampledLlavaBackbone` does, by
        rounding only.
        """
        vision: Any = self.model.config.vision_config
        size = pooled_side(scale, self.model.model.grid) * vision.patch_size
        pixels = batch["pixel_values"]
        if size != pixels.shape[-1]:
            pixels = interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
        return self.model.model.encode_shrunk(pixels)

    def loss_of_tokens(self, tokens: Tensor, batch: dict[str, Any], scales: Sequence[int]) -> Tensor:
        """Loss as in `loss`, computed from the output of `encode_images`."""
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
